"""A small data set of JPEG images of many sizes, each of which says by its colour which it is."""

import io
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from resnet_jax.data.prepare import build


def encoded_image(index: int) -> bytes:
    """An image whose mean colour says which it is, of a size of its own, and no part of it like another."""
    noise = np.random.default_rng(index).integers(-40, 41, (50 - index % 11, 40 + 7 * (index % 11), 3))
    file = io.BytesIO()
    Image.fromarray((noise + mean_color(index)).clip(0, 255).astype(np.uint8)).save(file, "JPEG")
    return file.getvalue()


def mean_color(index: int) -> tuple[int, int, int]:
    """Red, green and blue of an image."""
    return 20 * (index % 11) + 20, 220 - 15 * (index % 11), 90


class ColoredImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images in the order of their numbers; the label is the number modulo `classes`, `broken` ones are cut off."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def __init__(self, *, name: str, sizes: dict[str, int], classes: int, broken: tuple[int, ...] = (), **arguments):
        self.name, self._sizes, self._classes, self._broken = name, sizes, classes, broken
        super().__init__(**arguments)

    def _info(self):
        features = {
            "file_name": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=self._classes),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(count) for split, count in self._sizes.items()}

    def _generate_examples(self, count):
        for index in range(count):
            image = encoded_image(index)
            if index in self._broken:
                image = image[: len(image) // 2]
            yield index, {"file_name": f"image{index}.jpg", "image": image, "label": index % self._classes}


def build_colored_images(folder: Path, name: str = "colors", *, classes: int = 11, broken=(), **sizes: int) -> Path:
    """Makes the data set under a folder, for `dataset_info(name, data_dir=folder)`."""
    return build(ColoredImages, folder, name=name, sizes=sizes or {"train": 11}, classes=classes, broken=broken)
