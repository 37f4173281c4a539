"""`tfds_folder`: a copy in ArrayRecord form of a data set that TFDS has made, with smaller images if wanted.

Order, names, labels and all other features stay. Smaller images are another data set (see `smaller_images`).
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from tensorflow_datasets.core import dataset_info
from tensorflow_datasets.proto import tf_example_pb2

from resnet_jax.data.builders.array_records import map_ahead, write_split
from resnet_jax.data.builders.smaller_images import SmallerImages
from resnet_jax.data.datasets import FILE_FORMATS, serialized_examples
from resnet_jax.data.decode import UndecodableImage

# Decoding, resizing and encoding all release the interpreter's lock, so that threads do.
_THREADS = max(2, os.cpu_count() or 1)
_SAMPLED_EXAMPLES = 64


@runtime_checkable
class Source(Protocol):
    """The serialized examples of a split."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> bytes: ...


def open_folder(source: Path) -> tfds.core.DatasetBuilder:
    """Opens DIR/NAME/VERSION, or DIR/NAME/CONFIG/VERSION.

    Raises:
      FileNotFoundError: there is no data set of TFDS.
      ValueError: it is stored in another form than TFRecord and ArrayRecord.
    """
    if not (source / "dataset_info.json").is_file():
        raise FileNotFoundError(
            f"source={str(source)!r} holds no dataset_info.json; expected is DIR/NAME/VERSION, made by TFDS"
        )
    builder = tfds.builder_from_directory(source)
    form = builder.info.file_format and builder.info.file_format.value
    if form not in FILE_FORMATS:
        raise ValueError(f"source={str(source)!r} is stored as {form}; allowed are tfrecord and array_record")
    return builder


def check_images(info: tfds.core.DatasetInfo) -> None:
    """Raises a ValueError unless the feature `image` is 8-bit and in colour, as making it smaller takes."""
    image = dict(info.features.items()).get("image")
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8 or image.shape[-1] != 3:
        raise ValueError(
            f"data set {info.full_name!r} has the feature image={image}; short_side takes 8-bit images of 3 channels"
        )


def copied_name(info: tfds.core.DatasetInfo, smaller: SmallerImages | None) -> str:
    """The name of the copy."""
    return info.name + (smaller.suffix if smaller else "")


def copied_bytes(builder: tfds.core.DatasetBuilder, splits: Sequence[str], smaller: SmallerImages | None) -> int:
    """About how much disk the copy takes; where images are made smaller, judged by a few of each split."""
    if smaller is None:
        return sum(builder.info.splits[split].num_bytes for split in splits)
    total = 0
    for split in splits:
        source = _serialized(builder, split)
        sample = range(0, len(source), -(-len(source) // _SAMPLED_EXAMPLES))
        convert = _converter(source, smaller, where=f"{builder.info.full_name}, split {split!r}")
        total += sum(len(convert(index)) for index in sample) * len(source) // len(sample)
    return total


def copy(folder: Path, builder: tfds.core.DatasetBuilder, splits: Sequence[str], smaller: SmallerImages | None) -> None:
    """Writes the copy into a folder: as many files as the source has, with the same examples.

    Args:
      folder: of the copy's version, there and empty.
      builder: from `open_folder`.
      splits: those to copy.
      smaller: None leaves the examples byte for byte as they are.

    Raises:
      ValueError: a damaged record, or an image that cannot be decoded; the message gives split, index and name.
    """
    info, name = builder.info, copied_name(builder.info, smaller)
    written = []
    with ThreadPoolExecutor(_THREADS) as executor:
        for split in splits:
            source, split_info = _serialized(builder, split), info.splits[split]
            convert = _converter(source, smaller, where=f"{info.full_name}, split {split!r}")
            examples = map_ahead(executor, convert, range(len(source)), ahead=4 * _THREADS)
            written.append(write_split(folder, name, split, examples, shard_lengths=split_info.shard_lengths))
    _write_description(folder, info, name, written, smaller)


def _serialized(builder: tfds.core.DatasetBuilder, split: str) -> Source:
    return serialized_examples(builder, split, file_format=builder.info.file_format.value)


def _converter(source: Source, smaller: SmallerImages | None, *, where: str) -> Callable[[int], bytes]:
    """The function from an example's index to the serialized example to be stored."""
    if smaller is None:
        return source.__getitem__

    def convert(index: int) -> bytes:
        try:
            example = tf_example_pb2.Example.FromString(source[index])
        except DecodeError as error:
            raise ValueError(f"{where}, example {index} is damaged: {error}") from error
        features = example.features.feature
        image = features["image"].bytes_list.value
        try:
            image[0] = smaller.encode(image[0])
        except UndecodableImage as error:
            names = [features[name].bytes_list.value[0].decode() for name in ("file_name", "id") if name in features]
            called = f" ({names[0]})" if names else ""
            raise ValueError(f"{where}, example {index}{called}: the image cannot be decoded: {error}") from error
        return example.SerializeToString(deterministic=True)

    return convert


def _write_description(
    folder: Path,
    info: tfds.core.DatasetInfo,
    name: str,
    splits: Sequence[tfds.core.SplitInfo],
    smaller: SmallerImages | None,
) -> None:
    """Writes the source's features, labels and `dataset_info.json` with what differs in the copy."""
    info.write_to_directory(folder)
    description = dataset_info.read_from_json(folder / "dataset_info.json")
    description.name, description.file_format = name, "array_record"
    del description.alternative_file_formats[:]
    del description.splits[:]
    description.splits.extend(split.to_proto() for split in splits)
    if smaller is not None:
        encoding_format = "jpeg" if smaller.encoding == "jpeg" else None
        image = tfds.features.Image(shape=(None, None, 3), encoding_format=encoding_format)
        tfds.features.FeaturesDict({**info.features, "image": image}).save_config(folder)
        description.description += f"\n\nMade from {info.full_name}: {smaller.description}."
    dataset_info.write_dataset_info_proto(description, dataset_info_dir=folder)
