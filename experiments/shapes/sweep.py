"""Trains detectors on drawn shapes, jointly and in the paper's four steps, and stores their records."""

import argparse
from pathlib import Path
from typing import Any

from make_shapes import KIND, Kind, make_shapes
from ml_collections import ConfigDict

from resnet_jax import load_config, train
from resnet_jax.detection.four_steps import four_steps
from resnet_jax.workdir import Workdir

HERE = Path(__file__).parent
IMAGES = 2000
# By the name of their folder: which part of an object others may cover.
SETS = {"shapes": Kind(covered=0.25), "covered_shapes": Kind(covered=0.6)}
# Of each of the four steps; joint training is as long as the config says.
STEPS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="folder for the images and the runs")
    workdir = parser.parse_args().workdir
    for name, kind in SETS.items():
        if not (workdir / name).is_dir():
            make_shapes(workdir / name, images=IMAGES, seed=0, kind=kind)
    for name, run in (("shapes", "joint"), ("covered_shapes", "joint_covered")):
        train(config_of(workdir / name), workdir / run)
        Workdir(workdir / run).publish(HERE, run)
    runs = four_steps(config_of(workdir / "shapes", **{"train.duration": STEPS}), workdir / "four_steps")
    for own_workdir, own in runs:
        train(own, own_workdir)
    Workdir(runs[-1][0]).publish(HERE, "four_steps")


def config_of(folder: Path, **changes: Any) -> ConfigDict:
    """The small detector's, for a folder of shapes; no image has more objects."""
    sets = {"data.train_sets": f"{folder.resolve()}:train", "data.test_sets": f"{folder.resolve()}:test"}
    return load_config("detection:small", {"data.max_boxes": KIND.most, **sets, **changes})


if __name__ == "__main__":
    main()
