"""Data sets that are not what they were: the digits changed, and images of which some are odd or damaged."""

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resnet_jax.data.builders.digits import Digits
from resnet_jax.data.prepare import build
from resnet_jax.data.statistics import measure

# The images are made of what the tests are made of.
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
import colored_images  # noqa: E402

Rows = list[tuple[int, dict[str, Any]]]


def _one_fewer(rows: Rows) -> Rows:
    return rows[:-1]


def _reordered(rows: Rows) -> Rows:
    """The same examples; TFDS sorts them by a hash of their key."""
    return [(len(rows) - 1 - key, example) for key, example in enumerate(example for _, example in rows)]


def _relabelled(rows: Rows) -> Rows:
    first, example = rows[0]
    return [(first, {**example, "label": (example["label"] + 1) % 10}), *rows[1:]]


def _labels(label: int) -> Callable[[Rows], Rows]:
    """A label that is no class; TFDS lets it be written as there are more classes at that time."""

    def change(rows: Rows) -> Rows:
        return [(rows[0][0], {**rows[0][1], "label": label}), *rows[1:]]

    return change


CHANGES: dict[str, Callable[[Rows], Rows]] = {
    "one fewer": _one_fewer,
    "reordered": _reordered,
    "another label": _relabelled,
    "label -1": _labels(-1),
    "label 10": _labels(10),
    "label 11": _labels(11),
}


def build_digits(folder: Path, change: str) -> Path:
    """The digits with a change in the training split; returns their `data_dir`."""
    target = folder / change.replace(" ", "_")
    if target.is_dir():
        return target

    class Changed(Digits, skip_registration=True):
        name = "digits"

        def _info(self) -> Any:
            info = super()._info()
            if change.startswith("label "):
                info.features["label"]._num_classes = 20
            return info

        def _generate_examples(self, *, test: bool) -> Iterator[tuple[int, dict]]:
            rows = list(super()._generate_examples(test=test))
            yield from rows if test else CHANGES[change](rows)

    made = build(Changed, target)
    features = made / "features.json"
    if change.startswith("label "):
        described = json.loads(features.read_text())
        described["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = "10"
        features.write_text(json.dumps(described))
    return target


def _encoded(mode: str, form: str, size: tuple[int, int] = (40, 50), **options: Any) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, form, **options)
    return file.getvalue()


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _encoded("RGB", "JPEG", exif=exif)


def _huge() -> bytes:
    """A small file that would take 400 MB and more."""
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    return file.getvalue()


@cache
def odd_images() -> dict[str, bytes]:
    """Images that are no plain JPEG, and can be decoded."""
    return {
        "PNG": _encoded("RGB", "PNG"),
        "PNG with a palette": _encoded("P", "PNG"),
        "grey JPEG": _encoded("L", "JPEG"),
        "CMYK JPEG": _encoded("CMYK", "JPEG"),
        "1 x 1": _encoded("RGB", "JPEG", (1, 1)),
        "turned by EXIF": _rotated(),
    }


@cache
def bad_images() -> dict[str, bytes]:
    """Images that cannot be decoded."""
    whole = _encoded("RGB", "JPEG")
    return {
        "truncated JPEG": whole[: len(whole) // 2],
        "no byte": b"",
        "text": b"this is no image",
        "JPEG with a damaged header": whole[:2] + bytes(20) + whole[22:],
        "truncated PNG": _encoded("RGB", "PNG")[:100],
        "20,000 x 20,000": _huge(),
    }


def build_images(folder: Path, images: dict[int, bytes]) -> Path:
    """44 training and 21 test images, of which those given, by their number in training, are others."""
    if folder.is_dir():
        shutil.rmtree(folder)

    class Images(colored_images.ColoredImages, skip_registration=True):
        def _generate_examples(self, count: int) -> Iterator[tuple[int, dict]]:
            for index, example in super()._generate_examples(count):
                # What TFDS gets as bytes of a file it stores as they are.
                image = images.get(index) if count == TRAIN else None
                yield index, example if image is None else {**example, "image": image}

    build(Images, folder, name="colors", sizes={"train": TRAIN, "test": 21}, classes=4)
    measure("colors", data_dir=folder, split="test[4:]", image_size=32, short_side=36, workers=0)
    return folder


TRAIN = 44
