"""Trains detectors on drawn shapes, jointly and in the paper's four steps, and stores their records."""

import argparse
from pathlib import Path
from typing import Any

from make_shapes import MOST_OBJECTS, make_shapes

from resnet_jax import load_config, train
from resnet_jax.detection.four_steps import four_steps
from resnet_jax.workdir import Workdir

HERE = Path(__file__).parent
IMAGES = 1000
# Of each of the four steps; joint training is as long as the config says.
STEPS = 1000
CONFIG = "detection:small"
# No image has more objects.
OVERRIDES: dict[str, Any] = {"data.max_boxes": MOST_OBJECTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="folder for the images and the runs")
    flags = parser.parse_args()
    folder = flags.workdir / "shapes"
    if not folder.is_dir():
        make_shapes(folder, images=IMAGES, seed=0)
    sets = {"data.train_sets": f"{folder.resolve()}:train", "data.test_sets": f"{folder.resolve()}:test"}
    config = load_config(CONFIG, {**OVERRIDES, **sets})
    train(config, flags.workdir / "joint")
    Workdir(flags.workdir / "joint").publish(HERE, "joint")
    shorter = load_config(CONFIG, {**OVERRIDES, **sets, "train.duration": STEPS})
    runs = four_steps(shorter, flags.workdir / "four_steps")
    for workdir, own in runs:
        train(own, workdir)
    Workdir(runs[-1][0]).publish(HERE, "four_steps")


if __name__ == "__main__":
    main()
