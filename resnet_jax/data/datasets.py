"""Data sets on disk: any TFDS image-classification set in ArrayRecord form, read without TensorFlow."""

import difflib
import io
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int32, UInt8
from PIL import Image

from resnet_jax.data.prepare import DATASETS, PathLike, default_data_dir, is_prepared, prepare

MAX_RESIDENT_BYTES = 8 * 2**30
_READ_EXAMPLES = 1000
_MODES = {1: "L", 3: "RGB"}
# What TFDS decodes with TensorFlow; Pillow alone would try some forty formats on bytes from anywhere.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF")


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before its images are read.

    Attributes:
      name: as TFDS has it; with a configuration, "NAME/CONFIG".
      version: such as "3.0.2".
      image_shape: (H, W, C), H and W in pixels, None where the images may differ; C is 1 or 3.
      num_classes: labels are 0 to num_classes - 1.
      class_names: one for each label.
      split_sizes: examples in each split.
      directory: the folder of this version.
    """

    name: str
    version: str
    image_shape: tuple[int | None, int | None, int]
    num_classes: int
    class_names: tuple[str, ...]
    split_sizes: dict[str, int]
    directory: Path


class ImageArrays(NamedTuple):
    """A whole split in memory: images [N, H, W, C] as stored, 0 to 255, and labels [N]."""

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, " n"]


def dataset_info(name: str, *, data_dir: PathLike | None = None) -> DatasetInfo:
    """Describes the newest version of a data set under `data_dir`; `digits` is made on first use.

    Args:
      name: the data set's name, or "NAME/CONFIG" for one of a set's configurations.
      data_dir: where data sets live, which may be read-only; None is TFDS's default, the environment variable
        TFDS_DATA_DIR or else ~/tensorflow_datasets.

    Raises:
      FileNotFoundError: there is no such data set; the message says where it was sought and how to make it.
      ValueError: a malformed name, a set without the features `image` (8-bit, 1 or 3 channels) and `label`
        (a class), or one that is stored in another form than ArrayRecord.
    """
    if not re.fullmatch(r"[A-Za-z]\w*(/\w[\w.\-]*)?", name):
        raise ValueError(f"name={name!r} is not the name of a data set: allowed are NAME and NAME/CONFIG")
    data_dir = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
    directory = _newest_version(data_dir / name)
    if directory is None and name == "digits":
        directory = prepare("digits", data_dir=data_dir)
    if directory is None:
        raise FileNotFoundError(_missing_message(name, data_dir))
    return _describe(name, directory)


def split_size(info: DatasetInfo, split: str) -> int:
    """Number of examples in a split, such as "train", "train[:45000]", "train[90%:]" or "train+test".

    Raises:
      ValueError: an unknown split, a malformed or empty slice, or one beyond the split's end.
    """
    sizes = ", ".join(f"{split_name} ({size})" for split_name, size in info.split_sizes.items())
    try:
        size = _builder(info.directory).info.splits[split].num_examples
    except (ValueError, KeyError) as error:
        raise ValueError(f"split={split!r} of data set {info.name!r}: {error}; the splits are {sizes}") from error
    if size <= 0:
        raise ValueError(f"split={split!r} of data set {info.name!r} holds no examples; the splits are {sizes}")
    return size


def load_arrays(info: DatasetInfo, split: str, *, max_bytes: int = MAX_RESIDENT_BYTES) -> ImageArrays:
    """Reads and decodes a whole split into memory, in the order in which it is stored.

    Images with another number of channels than the data set has are converted, as TFDS does with TensorFlow.
    Decoding stays on one thread: with small images most of its time is Python's, where threads do not help.

    Args:
      info: from `dataset_info`.
      split: TFDS split syntax, see `split_size`.
      max_bytes: what the images may take in memory.

    Raises:
      ValueError: images of different sizes or more than `max_bytes` of them (such a set must be streamed),
        an image that cannot be decoded, or a label outside 0 to num_classes - 1; the message gives the
        example's index in the split.
    """
    count, channels = split_size(info, split), info.image_shape[-1]
    source = _builder(info.directory).as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    where = f"data set {info.name!r}, split {split!r}, example"
    first_shape = _decode(source[0]["image"], channels, where=f"{where} 0").shape
    images = _allocate(info, count, first_shape, max_bytes=max_bytes, where=where)
    labels = np.empty(count, np.int32)
    for start in range(0, count, _READ_EXAMPLES):
        indices = range(start, min(start + _READ_EXAMPLES, count))
        for index, example in zip(indices, source.__getitems__(indices), strict=True):
            image = _decode(example["image"], channels, where=f"{where} {index}")
            if image.shape != first_shape:
                raise ValueError(
                    f"{where} {index} has shape {image.shape}, those before it {first_shape}: images of "
                    f"different sizes have to be streamed, load_arrays holds one shape only"
                )
            if not 0 <= example["label"] < info.num_classes:
                raise ValueError(
                    f"{where} {index} has label {example['label']}; allowed is 0 to {info.num_classes - 1}"
                )
            images[index], labels[index] = image, example["label"]
    return ImageArrays(images, labels)


def _builder(directory: Path) -> tfds.core.DatasetBuilder:
    return tfds.builder_from_directory(directory)


def _newest_version(folder: Path) -> Path | None:
    paths = (path for path in folder.glob("*") if re.fullmatch(r"\d+\.\d+\.\d+", path.name))
    return max(
        filter(is_prepared, paths),
        key=lambda path: [int(part) for part in path.name.split(".")],
        default=None,
    )


def _describe(name: str, directory: Path) -> DatasetInfo:
    info = _builder(directory).info
    features = dict(info.features.items())
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise ValueError(
            f"data set {name!r} in {directory} is no image-classification set: it needs the features 'image' "
            f"(Image) and 'label' (ClassLabel), and has {', '.join(sorted(features))}"
        )
    if image.np_dtype != np.uint8 or image.shape[-1] not in _MODES:
        raise ValueError(
            f"data set {name!r} in {directory} has images of type {image.np_dtype} with {image.shape[-1]} "
            f"channels; allowed are uint8 and {' or '.join(map(str, _MODES))} channels"
        )
    if "array_record" not in {form.value for form in info.available_file_formats()}:
        raise ValueError(
            f"data set {name!r} in {directory} is stored as {info.file_format.value}, which only TensorFlow "
            f"reads; make it again with TFDS's download_and_prepare(file_format='array_record')"
        )
    return DatasetInfo(
        name=name,
        version=directory.name,
        image_shape=tuple(image.shape),
        num_classes=label.num_classes,
        class_names=tuple(label.names),
        split_sizes={split: split_info.num_examples for split, split_info in info.splits.items()},
        directory=directory,
    )


def _missing_message(name: str, data_dir: Path) -> str:
    descriptions = [*data_dir.glob("*/*/dataset_info.json"), *data_dir.glob("*/*/*/dataset_info.json")]
    present = sorted({str(path.parent.parent.relative_to(data_dir)) for path in descriptions})
    if name in DATASETS and name != "image_folder":
        command = f"resnet-jax prepare {name} --data_dir={data_dir}"
    else:
        command = (
            f"resnet-jax prepare image_folder --data_dir={data_dir} --source=FOLDER (its name counts), "
            f"or, with TensorFlow: tfds build {name} --file_format=array_record --data_dir={data_dir}"
        )
    nearest = difflib.get_close_matches(name, [*present, *DATASETS], n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest and nearest[0] != name else ""
    return (
        f"no data set {name!r} in {data_dir} (no {data_dir / name}/VERSION/dataset_info.json){hint}; "
        f"data sets there: {', '.join(present) or 'none'}; make it with: {command}"
    )


def _decode(encoded: bytes, channels: int, *, where: str) -> UInt8[np.ndarray, "h w c"]:
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"Pillow mode {image.mode!r} has more than 8 bits a channel")
            mode = _MODES[channels]
            pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where}: the image cannot be decoded: {error}") from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _allocate(
    info: DatasetInfo, count: int, shape: tuple[int, ...], *, max_bytes: int, where: str
) -> UInt8[np.ndarray, "n h w c"]:
    if any(declared not in (None, found) for declared, found in zip(info.image_shape, shape, strict=True)):
        raise ValueError(f"{where} 0 has shape {shape}, the data set declares {info.image_shape}")
    if (needed := count * math.prod(shape)) > max_bytes:
        raise ValueError(
            f"data set {info.name!r} takes {needed / 2**30:.3g} GiB as {count} images of shape {shape}, more "
            f"than max_bytes ({max_bytes / 2**30:.3g} GiB); such a set has to be streamed"
        )
    return np.empty((count, *shape), np.uint8)
