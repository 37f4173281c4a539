"""A split's encoded images and labels by their place in it, from ArrayRecord or TFRecord files."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError

from resnet_jax.data.datasets import DatasetInfo, builder_of, serialized_examples, split_size
from resnet_jax.data.decode import UndecodableImage

_DECODERS = {"image": tfds.decode.SkipDecoding()}

T = TypeVar("T")


class Example(NamedTuple):
    """An image as its file's bytes, and its class number."""

    image: bytes
    label: int


class Examples:
    """Random access to a split; picklable, so that worker processes read their own copy.

    Raises (when an example is read):
      UndecodableImage: its record is damaged.
      ValueError: its label is not among the classes.
    """

    def __init__(self, info: DatasetInfo, split: str):
        """Opens a split in TFDS's syntax; nothing is read yet. Raises ValueError as `split_size` does."""
        split_size(info, split)
        self.info, self.split = info, split
        builder = builder_of(info.directory)
        self._features = builder.info.features
        self._records = serialized_examples(builder, split, file_format=info.file_format)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        fields = self._fields(index)
        label, classes = int(fields["label"]), self.info.num_classes
        if not 0 <= label < classes:
            raise ValueError(f"{self.where(index)} has label {label}; allowed is 0 to {classes - 1}")
        return Example(fields["image"], label)

    def check_some(self, count: int = 256) -> None:
        """Reads examples at equal distances, so that labels or files that are wrong throughout stop before training."""
        for index in sorted({round(k * (len(self) - 1) / count) for k in range(count + 1)}):
            self[index]

    def where(self, index: int) -> str:
        """Names an example in a message: data set, split, index, and its file's name if the set keeps it."""
        try:
            name = self._fields(index).get("file_name")
        except UndecodableImage:
            name = None
        file_name = f" ({name.decode(errors='replace')})" if isinstance(name, bytes) else ""
        return f"{self._place(index)}{file_name}"

    def decoded(self, index: int, decode: Callable[[bytes], T]) -> tuple[T, int]:
        """An example's image after `decode`, and its label.

        Raises:
          UndecodableImage: `decode` cannot; the message names the example.
        """
        image, label = self[index]
        try:
            return decode(image), label
        except UndecodableImage as error:
            raise UndecodableImage(f"{self.where(index)}: {error}") from error

    def _place(self, index: int) -> str:
        return f"data set {self.info.name!r}, split {self.split!r}, example {index}"

    def _fields(self, index: int) -> dict[str, Any]:
        try:
            return self._features.deserialize_example_np(self._records[index], decoders=_DECODERS)
        except (RuntimeError, ValueError, DecodeError) as error:
            # A checksum that does not agree, or what it passed is no example.
            raise UndecodableImage(f"{self._place(index)}: its record is damaged: {error}") from error
