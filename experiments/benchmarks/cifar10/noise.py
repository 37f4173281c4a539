"""Random images in place of CIFAR-10's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from resnet_jax.data.builders.array_records import SplitExamples, write_data_set


def make_noise(data_dir: Path, *, name: str, side: int, sizes: Mapping[str, int]) -> None:
    """Writes a data set of coloured squares in ten classes, whose pixels and labels are random."""

    def split_of(number: int, count: int) -> SplitExamples:
        random = np.random.default_rng(number)
        images, labels = random.integers(0, 256, (count, side, side, 3), np.uint8), random.integers(0, 10, count)

        def example(index: int) -> dict[str, Any]:
            return {"image": Image.fromarray(images[index]), "label": int(labels[index])}

        return SplitExamples([str(index) for index in range(count)], images.nbytes, example)

    features = {
        "image": tfds.features.Image(shape=(side, side, 3), encoding_format="png"),
        "label": tfds.features.ClassLabel(num_classes=10),
    }
    folder = data_dir / name / "1.0.0"
    folder.mkdir(parents=True)
    splits = {split: split_of(number, count) for number, (split, count) in enumerate(sizes.items())}
    options = {"name": name, "version": "1.0.0", "description": "Random pixels and labels."}
    write_data_set(folder, splits, features=tfds.features.FeaturesDict(features), **options)
