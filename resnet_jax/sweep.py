"""A list of runs, one after the other, their records stored with an experiment; stopped, it goes on where it was."""

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from resnet_jax.training.loop import train
from resnet_jax.workdir import Workdir

# Name -> config of each run.
Runs = Mapping[str, ConfigDict]


def sweep(runs: Runs, *, workdir: Path, experiment: Path, minutes: float | int = math.inf) -> bool:
    """Trains each config and stores its record and metrics with the experiment.

    A run that has its record is finished and is not trained again; one that was stopped goes on, see `train`. Where one
    fails, its exception ends the sweep, and those before it have their records.

    Args:
      runs: by name.
      workdir: a folder for their workdirs, each under its name.
      experiment: takes `records/NAME.json` and `records/NAME.metrics.jsonl`.
      minutes: begin no run that would end later if it took as long as the longest yet; the first is begun in any case.

    Returns:
      Whether all are finished.
    """
    begun, longest, first = time.monotonic(), 0.0, True
    for name, config in runs.items():
        now = time.monotonic()
        if not first and now + longest > begun + 60 * minutes:
            print(f"there is no time for {name}; the same command goes on with it", flush=True)
            return False
        print(f"{name} ...", flush=True)
        train(config, workdir / name)
        Workdir(workdir / name).publish(experiment, name)
        longest, first = max(longest, time.monotonic() - now), False
    return True


def sweep_command(
    doc: str, scales: Mapping[str, Callable[[str | None], Runs]], *, experiment: Path, argv: Sequence[str] | None = None
) -> int:
    """The command line of an experiment that is a sweep.

    Args:
      doc: what it does, for the help.
      scales: name -> (folder of data sets, None for TFDS's own) -> the runs; the first is the default, and its records
        go to the experiment's folder, those of others to a folder of their name in it.
      experiment: the folder.
      argv: the command line, without the command.

    Returns:
      The exit code: 1 while something is left.
    """
    parser = argparse.ArgumentParser(description=doc)
    default = next(iter(scales))
    parser.add_argument("--workdir", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--scale", choices=tuple(scales), default=default, help="(%(default)s)")
    parser.add_argument("--data_dir", help="folder of TFDS data sets (TFDS's own)")
    help = "begin no run that would take longer; the same command again goes on (no limit)"
    parser.add_argument("--minutes", type=float, default=math.inf, help=help)
    flags = parser.parse_args(argv)
    folder = experiment if flags.scale == default else experiment / flags.scale
    runs = scales[flags.scale](flags.data_dir)
    return int(not sweep(runs, workdir=flags.workdir, experiment=folder, minutes=flags.minutes))
