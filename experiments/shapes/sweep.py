"""Trains a net to tell drawn shapes apart, and from it detectors, jointly and in four steps; stores the records."""

import argparse
from pathlib import Path
from typing import Any

from make_shapes import MOST_OBJECTS, make_classes, make_shapes
from ml_collections import ConfigDict

from resnet_jax import load_config, load_workdir, measure, prepare, save_pretrained, train
from resnet_jax.config import base_config
from resnet_jax.data.input_description import InputDescription
from resnet_jax.detection.four_steps import four_steps
from resnet_jax.workdir import Workdir

HERE = Path(__file__).parent
IMAGES = 2000
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
    given = {**OVERRIDES, **sets, "detector.weights": str(pretrained(flags.workdir))}
    train(load_config(CONFIG, given), flags.workdir / "joint")
    Workdir(flags.workdir / "joint").publish(HERE, "joint")
    runs = four_steps(load_config(CONFIG, {**given, "train.duration": STEPS}), flags.workdir / "four_steps")
    for workdir, own in runs:
        train(own, workdir)
    Workdir(runs[-1][0]).publish(HERE, "four_steps")


def pretrained(workdir: Path) -> Path:
    """The weight file of a net that tells the shapes apart, as the paper's detectors begin with one of ImageNet."""
    classes, data, run, path = (workdir / name for name in ("classes", "tfds", "net", "net.safetensors"))
    if path.is_file():
        return path.resolve()
    if not classes.is_dir():
        make_classes(classes, images=IMAGES, seed=1)
    prepare("image_folder", data_dir=data, source=classes)
    measure("classes", data_dir=data)
    train(classifying(data), run)
    Workdir(run).publish(HERE / "pretraining", "net")
    save_pretrained(path, *load_workdir(run), input=InputDescription.load(Workdir(run).input))
    return path.resolve()


def classifying(data_dir: Path) -> ConfigDict:
    """The config of the net that classifies: the detector's, on crops of 96 pixels."""
    config = base_config()
    config.model.name, config.model.width = "resnet18", 16
    config.data.name, config.data.data_dir = "classes", str(data_dir.resolve())
    config.data.pipeline, config.data.normalization = "streamed", "channel_mean_std"
    config.data.image_size, config.data.short_sides = 96, (96, 128)
    config.evaluate.short_side = 112
    config.evaluate.batch_size = 50
    config.train.batch_size, config.train.duration = 64, 400
    config.schedule.name = "cosine"
    config.evaluate.every = config.checkpoint.every = 200
    return config


if __name__ == "__main__":
    main()
