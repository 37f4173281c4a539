"""Trains ResNet-18 with the paper's ImageNet recipe on a small set, kills and resumes one run, and tests the nets."""

import argparse
import json
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax import evaluate, load_config, measure, train
from resnet_jax.records import read_record, read_rows
from resnet_jax.workdir import Workdir

HERE = Path(__file__).parent
CONFIG = "imagenet:paper,resnet18"
SIZE = 64
# Every size of the paper times 64/224, so that a crop shows as much of an image as there; one group of batch norm.
OVERRIDES: dict[str, Any] = {
    "data.image_size": SIZE,
    "data.short_sides": (73, 137),
    "evaluate.short_side": 73,
    "evaluate.batch_size": 50,
    "evaluate.train_split": "train",
    "train.batch_size": 32,
    "train.duration": 400,
    "train.log_every": 20,
    "evaluate.every": 50,
    "checkpoint.every": 50,
    "schedule.learning_rate": 0.05,
    "schedule.patience": 3,
}
SCALES = (64, 73, 110, 137, 183)
KILLED_AFTER = 210
PROTOCOLS = {"center": {}, "ten_crop": {}, "multi_scale": {"scales": SCALES}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--data_dir", required=True, help="folder of TFDS data sets with imagenet2012, or a part of it")
    flags = parser.parse_args()
    flags.workdir.mkdir(parents=True, exist_ok=True)
    statistics = flags.workdir / "pixel_statistics.npz"
    if not statistics.is_file():
        measure("imagenet2012", data_dir=flags.data_dir, image_size=SIZE, short_side=73, output=statistics)
    overrides = {**OVERRIDES, "data.data_dir": flags.data_dir, "data.statistics": str(statistics)}
    runs = {seed: flags.workdir / f"resnet18_seed{seed}" for seed in (0, 1)}
    for seed, workdir in runs.items():
        train(load_config(CONFIG, {**overrides, "seed": seed}), workdir)
        Workdir(workdir).publish(HERE, workdir.name)
    resumed = flags.workdir / "killed"
    killed_at = kill_and_resume(resumed, {**overrides, "seed": 0})
    write("resume.json", {"killed_at_step": killed_at, **compare(runs[0], resumed)})
    tests = {
        split: {
            name: evaluate([*runs.values()], protocol=name, split=split, **given) for name, given in PROTOCOLS.items()
        }
        for split in ("validation", "train")
    }
    write("protocols.json", tests)
    write_table(tests)


def kill_and_resume(workdir: Path, overrides: dict[str, Any]) -> int:
    """Kills a run without warning once it has logged a step past KILLED_AFTER, and lets it go on to its end."""
    if workdir.exists():
        raise FileExistsError(f"{workdir} is there already: remove it, so that there is a run to kill")
    values = [f"--config.{key}={text(value)}" for key, value in overrides.items()]
    command = [sys.executable, "-m", "resnet_jax", "train", f"--config={CONFIG}", f"--workdir={workdir}", *values]
    files = Workdir(workdir)
    with subprocess.Popen(command, start_new_session=True) as process:
        while process.poll() is None:
            steps = [row["step"] for row in read_rows(files.metrics)] if files.metrics.is_file() else []
            if steps and steps[-1] > KILLED_AFTER:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.2)
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the run ended by itself ({process.returncode}) before it could be killed")
    subprocess.run(command, check=True)
    if not read_record(files.record)["resumed_from_step"]:
        raise RuntimeError("the second process began anew")
    return steps[-1]


def text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def compare(left: Path, right: Path) -> dict[str, Any]:
    """How many arrays of the last checkpoints, and lines of metrics, are equal to the last bit."""
    states = [everything(workdir) for workdir in (left, right)]
    lines = [
        [
            {k: v for k, v in row.items() if k != "train/images_per_second"}
            for row in read_rows(Workdir(workdir).metrics)
        ]
        for workdir in (left, right)
    ]
    if states[0].keys() != states[1].keys():
        raise RuntimeError("the two checkpoints hold different arrays")
    equal = sum(np.array_equal(states[0][name], states[1][name]) for name in states[0])
    return {
        "arrays": len(states[0]),
        "equal_arrays": equal,
        "metric_lines": len(lines[0]),
        "equal_metric_lines": sum(a == b for a, b in zip(*lines, strict=True)),
    }


def everything(workdir: Path) -> dict[str, np.ndarray]:
    """All arrays of the last checkpoint: parameters, statistics, momentum, schedule and counters."""
    import jax
    from orbax.checkpoint import v1 as ocp

    folder = max(Workdir(workdir).checkpoints.iterdir(), key=lambda path: int(path.name))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sharding info not provided when restoring")
        tree = ocp.load(folder)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def write(name: str, content: dict[str, Any]) -> None:
    (HERE / name).write_text(json.dumps(content, indent=2) + "\n")


def write_table(tests: dict[str, Any]) -> None:
    """Puts the table of the protocols into the README, between its marks."""
    columns = ("images of", "protocol", "net", "loss", "top-1 error, %", "top-5 error, %", "images")
    rows = [f"| {' | '.join(columns)} |", "| --- | --- | --- |" + " ---: |" * 4]
    for split, protocols in tests.items():
        for test in protocols.values():
            for entry in [*test["members"], test["ensemble"]]:
                errors = (f"{100 * entry[key]:.2f}" for key in ("error_top1", "error_top5"))
                cells = (
                    split,
                    entry["protocol"],
                    entry["member"],
                    f"{entry['loss']:.3f}",
                    *errors,
                    str(entry["count"]),
                )
                rows.append(f"| {' | '.join(cells)} |")
    begin, end = "<!-- protocols: made by sweep.py -->\n", "<!-- end of protocols -->"
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition(begin)
    readme.write_text(before + begin + "\n".join(rows) + "\n" + end + rest.partition(end)[2])


if __name__ == "__main__":
    main()
