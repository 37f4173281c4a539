"""`digits`: the 1,797 scans of hand-written digits that scikit-learn carries, as a TFDS data set."""

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image
from sklearn.datasets import load_digits

TEST_EVERY = 5


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builder of `digits`: 8x8 grey images in 10 classes, 1,438 for training and 359 for testing.

    The images come from scikit-learn's `load_digits`, which is the test part of "Optical Recognition of
    Handwritten Digits" (Alpaydin and Kaynak, UCI, 1998); no network is needed. Values 0 to 16 become
    `(255 * value + 8) // 16`, that is 0 to 255 rounded to nearest, stored as lossless PNG.

    Every fifth image (`index % 5 == 4` in scikit-learn's order) belongs to `test`, the rest to `train`.
    A writer's digits follow each other in that order, so both splits hold digits of the same writers.
    """

    VERSION = tfds.core.Version("1.0.0")
    # TFDS would look for checksums of downloads beside the code, with a package that it does not declare.
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Hand-written digits: 1,797 scans of 8x8 pixels, 10 classes, from scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.24432/C50P49",
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
        del dl_manager
        return {"train": self._generate_examples(test=False), "test": self._generate_examples(test=True)}

    def _generate_examples(self, *, test: bool) -> Iterator[tuple[int, dict]]:
        values, labels = load_digits(return_X_y=True)
        # TFDS needs TensorFlow to encode an array, but none for a Pillow image.
        images = _to_uint8(values.reshape(-1, 8, 8))
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            if (index % TEST_EVERY == TEST_EVERY - 1) == test:
                yield index, {"image": Image.fromarray(image), "label": int(label)}


def _to_uint8(values: np.ndarray) -> UInt8[np.ndarray, "n h w"]:
    return ((255 * values.astype(np.int32) + 8) // 16).astype(np.uint8)
