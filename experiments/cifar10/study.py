"""Trains the nets of the study one after the other, and stores of each its record, curves and layer responses.

With PyTorch installed also those that some of them are compared with.

    python experiments/cifar10/study.py --workdir=DIR --data_dir=DATA --minutes=9

Stopped by time, SIGTERM or a kill, the same command goes on: runs that have their record are passed over, and one that
was begun continues from its last checkpoint.
"""

import argparse
import fnmatch
import importlib.util
import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from runs import HERE, SCALES, Run, Yardstick, in_order

from resnet_jax.atomic_files import write_text_atomically
from resnet_jax.exit_codes import DIVERGED, DONE, PREEMPTED
from resnet_jax.records import read_record
from resnet_jax.workdir import Workdir

# Shares of the time given: when a run is asked to stop, which leaves it the step at hand and a checkpoint, and when it
# is ended if it has not.
STOP_AT, END_AT = 0.9, 0.98

# What one process trains.
Job = tuple[Run | Yardstick, ...]


def main(argv: Sequence[str] | None = None) -> int:
    flags = parse(argv)
    scale = SCALES[flags.scale]
    folder = flags.experiment / scale.folder / "records"
    runs = possible(chosen(in_order(scale), flags.only))
    slot, failed = Slot(flags.minutes), []
    for job in jobs(runs, together=flags.together):
        if slot.over():
            break
        if all(is_done(run, folder) for run in job):
            continue
        print(f"study: {', '.join(run.name for run in job)}", flush=True)
        code = slot.run(work, job, flags.workdir.resolve(), folder.resolve(), flags.data_dir, scale.responses_on)
        if code == DIVERGED:
            failed.append(job)
        elif code != DONE and not slot.over():
            print(f"study: {job[0].name} ended with exit code {code}", file=sys.stderr)
            return code if code > 0 else 1
    left = [run.name for run in runs if not is_done(run, folder)]
    print(f"study: {len(runs) - len(left)} of {len(runs)} runs are done")
    if left:
        print(f"study: left are {', '.join(left[:8])}" + (f" and {len(left) - 8} more" if len(left) > 8 else ""))
    if slot.signalled:
        return PREEMPTED
    return DIVERGED if failed else DONE


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="folder for the runs and for compiled programs")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--data_dir", type=Path, help="folder of TFDS data sets with cifar10; else TFDS's own default")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of names of runs, such as 'resnet20_seed*'")
    parser.add_argument("--minutes", type=float, help="stop before so many are over, saved, with exit code 0")
    parser.add_argument("--together", action="store_true", help="train the seeds of a net as one program, for a GPU")
    parser.add_argument("--experiment", type=Path, default=HERE, help="whose records are written (%(default)s)")
    return parser.parse_args(argv)


def chosen(runs: Sequence[Run | Yardstick], pattern: str) -> list[Run | Yardstick]:
    """The runs whose names match; ValueError if none does."""
    found = [run for run in runs if fnmatch.fnmatch(run.name, pattern)]
    if not found:
        raise ValueError(f"--only={pattern} matches none of {', '.join(run.name for run in runs)}")
    return found


def possible(runs: Sequence[Run | Yardstick]) -> list[Run | Yardstick]:
    """Without what needs PyTorch, where it is not installed."""
    if importlib.util.find_spec("torch"):
        return list(runs)
    found = [run for run in runs if isinstance(run, Run)]
    if len(found) < len(runs):
        print(f"study: PyTorch is not installed: its {len(runs) - len(found)} runs are left out")
    return found


def jobs(runs: Sequence[Run | Yardstick], *, together: bool) -> list[Job]:
    """A run each, or all runs of a net that follow each other."""
    if not together:
        return [(run,) for run in runs]
    return [tuple(job) for _, job in itertools.groupby(runs, key=lambda run: _together(run))]


def _together(run: Run | Yardstick) -> str:
    return run.group if isinstance(run, Run) else run.name


def is_done(run: Run | Yardstick, records: Path) -> bool:
    """Whether the run has its record, which is stored last of all; one of another config is not its own."""
    path = records / run.record
    return path.is_file() and not run.differing(json.loads(path.read_text(encoding="utf-8")))


class Slot:
    """The time of one call. What runs in it is asked to stop before it is over, and ended if it does not.

    Attributes:
      signalled: whether SIGTERM asked for the end.
    """

    def __init__(self, minutes: float | None):
        seconds = float("inf") if minutes is None else 60 * minutes
        self.stops_at, self.ends_at = (time.monotonic() + share * seconds for share in (STOP_AT, END_AT))
        self.signalled = False
        self._process: Any = None
        signal.signal(signal.SIGTERM, self._pass_on)

    def over(self) -> bool:
        """Whether nothing is to begin any more."""
        return self.signalled or time.monotonic() >= self.stops_at

    def run(self, function: Callable, *arguments: Any) -> int:
        """Calls a function in a process of its own, whose memory and devices are free afterwards; its exit code."""
        # Of a new interpreter: a fork would share jax's threads. A daemon ends with this process by SIGTERM.
        process = multiprocessing.get_context("spawn").Process(target=function, args=arguments, daemon=True)
        process.start()
        self._process = process
        if self.signalled:
            process.terminate()
        self._join(self.stops_at)
        if process.is_alive() and not self.signalled:
            process.terminate()
        self._join(self.ends_at)
        if process.is_alive():
            process.kill()
            process.join()
        self._process = None
        return process.exitcode

    def _join(self, until: float) -> None:
        left = until - time.monotonic()
        self._process.join(None if left == float("inf") else max(0.0, left))

    def _pass_on(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        self.signalled = True
        if self._process is not None:
            self._process.terminate()


def work(job: Job, workdir: Path, records: Path, data_dir: Path | None, responses_on: int) -> None:
    """Trains a job's runs and publishes them; the process ends with the exit code of `resnet-jax train`."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    for run in job:
        if isinstance(run, Yardstick):
            train_yardstick(run, workdir, records, data_dir)
    if runs := tuple(run for run in job if isinstance(run, Run)):
        train(runs, workdir, records, data_dir, responses_on)


def train_yardstick(run: Yardstick, workdir: Path, records: Path, data_dir: Path | None) -> None:
    """Trains PyTorch's net, and stores its record."""
    import jax

    # Imported already, so that the variable which the next import sets would come too late.
    jax.config.update("jax_platforms", "cpu")
    import pytorch_reference as reference
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = {"data_dir": data_dir, "device": device, "every": max(1, run.steps // 20)}
    record = reference.run(run.config(), workdir / run.name, **options)
    (records / run.record).parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(records / run.record, json.dumps(record, indent=2, allow_nan=False) + "\n")


def train(job: tuple[Run, ...], workdir: Path, records: Path, data_dir: Path | None, responses_on: int) -> None:
    """Trains this library's nets, and publishes them."""
    import jax

    from resnet_jax.cli import main as resnet_jax

    jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
    files = Workdir(workdir / (job[0].name if len(job) == 1 else f"{job[0].name}_to_{job[-1].seed}"))
    if code := resnet_jax(command(job, files.path, data_dir)):
        sys.exit(code)
    for run in job:
        publish(run.name, files if len(job) == 1 else files.of_seed(run.seed), records, data_dir, responses_on)


def end_with_parent() -> None:
    """Ends this process at once when the one that started it is gone, so that the next finds the workdir free."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def command(job: tuple[Run, ...], workdir: Path, data_dir: Path | None) -> list[str]:
    """The words of `resnet-jax train` for a job."""
    first = job[0]
    changes = {**first.changes, "seed": first.seed, "num_seeds": len(job), "data.data_dir": data_dir}
    values = [f"--config.{key}={text(value)}" for key, value in changes.items()]
    return ["train", f"--config=cifar10:{first.variant}", f"--workdir={workdir}", *values]


def text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def publish(name: str, files: Workdir, records: Path, data_dir: Path | None, responses_on: int) -> None:
    """Stores what a finished run leaves behind, each file whole or not at all, and the record last: it says "done"."""
    measured = {"commit": read_record(files.record)["commit"], **measure(files, data_dir, responses_on)}
    write_text_atomically(records / f"{name}.responses.json", json.dumps(measured, indent=1) + "\n")
    write_text_atomically(records / f"{name}.metrics.jsonl", files.metrics.read_text(encoding="utf-8"))
    write_text_atomically(records / f"{name}.json", files.record.read_text(encoding="utf-8"))


def measure(files: Workdir, data_dir: Path | None, count: int) -> dict[str, Any]:
    """Responses of a trained net's layers on the first test images, and from what files its images were."""
    from resnet_jax import load_workdir
    from resnet_jax.analysis.responses import layer_responses
    from resnet_jax.data.arrays import load_arrays
    from resnet_jax.data.datasets import dataset_info
    from resnet_jax.data.device_augment import normalize
    from resnet_jax.data.examples import Examples
    from resnet_jax.data.input_description import InputDescription

    info, split = dataset_info(files.read_config().data.name, data_dir=data_dir), f"test[:{count}]"
    input = InputDescription.load(files.input)
    images = normalize(load_arrays(info, split).images, input.mean, input.std)
    responses = layer_responses(*load_workdir(files.path), images)
    jpeg = Examples(info, split)[0].image.startswith(b"\xff\xd8")
    manifest, pixels = json.loads(files.data.read_text())["files"].split()
    return {
        "data": {"files": manifest, "stored_as": "JPEG" if jpeg else "PNG"},
        "train_pixels": pixels,
        "split": split,
        "responses": {response.layer: response.std for response in responses},
    }


if __name__ == "__main__":
    sys.exit(main())
