"""A split's encoded images and labels by their place in it, from ArrayRecord or TFRecord files."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from resnet_jax.data.check_batch import check_labels
from resnet_jax.data.datasets import DatasetInfo, builder_of, serialized_examples, split_size
from resnet_jax.data.decode import UndecodableImage

# Files are opened side by side: most of the time is waiting for the disk.
_COUNTING_THREADS = 16

# Small records take a tenth of the time when many are read at once: one alone may unpack a whole group of them.
_READ_AT_ONCE = 1000
# Where sets keep the name of an image's file.
FILE_NAMES = ("file_name", "image/filename")

T = TypeVar("T")


class Example(NamedTuple):
    """An image as its file's bytes, and its class number."""

    image: bytes
    label: int


class Examples:
    """Random access to a split; picklable, so that worker processes read their own copy.

    Raises (when an example is read):
      UndecodableImage: its record is damaged.
      ValueError: its label is not one integer among the classes; no policy for unreadable images passes over that.
    """

    def __init__(self, info: DatasetInfo, split: str):
        """Opens a split in TFDS's syntax; of its files only the indices are read yet.

        Raises:
          FileNotFoundError: a file of the split is missing; the message names the files.
          ValueError: as `split_size` does, or a file that is cut off or of another data set.
        """
        split_size(info, split)
        self.info, self.split = info, split
        builder = builder_of(info.directory)
        if info.file_format == "array_record":
            # TFDS opens these files when they are first read.
            self._records = serialized_examples(builder, split, file_format=info.file_format)
        _check_files(
            info, {file.filename: file.examples_in_shard for file in builder.info.splits[split].file_instructions}
        )
        if info.file_format == "tfrecord":
            self._records = serialized_examples(builder, split, file_format=info.file_format)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        return self._example(index)

    def _example(self, index: int, record: bytes | None = None) -> Example:
        fields = self.fields(index, record)
        images, labels = fields["image"].bytes_list.value, numbers(fields["label"])
        if len(images) != 1:
            raise UndecodableImage(f"{self._place(index)}: its record is damaged: {len(images)} images in it, not one")
        label = labels[0] if len(labels) == 1 else labels
        checked = check_labels([label], self.info.num_classes, lambda _: self.where(index))
        return Example(images[0], int(checked[0]))

    def check_some(self, count: int = 256) -> None:
        """Reads examples at equal distances, so that labels that are wrong throughout stop before training.

        A damaged record among them does not: that is for the policy for unreadable images, when its turn comes.
        """
        for index in sorted({round(k * (len(self) - 1) / count) for k in range(count + 1)}):
            with contextlib.suppress(UndecodableImage):
                self[index]

    def where(self, index: int) -> str:
        """Names an example in a message: data set, split, index, and its file's name if the set keeps it."""
        try:
            fields = self.fields(index)
            names = [name for key in FILE_NAMES for name in fields[key].bytes_list.value]
        except UndecodableImage:
            names = []
        return self._place(index) + "".join(f" ({name.decode(errors='replace')})" for name in names)

    def decoded(self, index: int, decode: Callable[[bytes], T]) -> tuple[T, int]:
        """An example's image after `decode`, and its label.

        Raises:
          UndecodableImage: `decode` cannot; the message names the example.
        """
        return self._decoded(index, self[index], decode)

    def all_decoded(self, decode: Callable[[bytes], T]) -> Iterator[tuple[T, int]]:
        """As `decoded`, all examples in their order."""
        for start in range(0, len(self), _READ_AT_ONCE):
            indices = range(start, min(start + _READ_AT_ONCE, len(self)))
            for index, record in zip(indices, self._read(indices), strict=True):
                yield self._decoded(index, self._example(index, record), decode)

    def _decoded(self, index: int, example: Example, decode: Callable[[bytes], T]) -> tuple[T, int]:
        try:
            return decode(example.image), example.label
        except UndecodableImage as error:
            raise UndecodableImage(f"{self.where(index)}: {error}") from error

    def _place(self, index: int) -> str:
        return f"data set {self.info.name!r}, split {self.split!r}, example {index}"

    def _read(self, indices: range) -> Sequence[bytes | None]:
        """Several records at once, None for those that are to be read one by one."""
        if self.info.file_format == "array_record":
            # If one is damaged, the error does not say which.
            with contextlib.suppress(RuntimeError, ValueError):
                return self._records.__getitems__(list(indices))
        return [None] * len(indices)

    def fields(self, index: int, record: bytes | None = None) -> Mapping[str, Any]:
        """A record as TFDS stores it: each feature by its name, objects/label for one of a sequence.

        Raises:
          UndecodableImage: the record is damaged.
        """
        # As protocol buffers: TFDS's own reader would make 1 of a label that is stored as 1.7.
        try:
            record = self._records[index] if record is None else record
            return tf_example_pb2.Example.FromString(record).features.feature
        except (RuntimeError, ValueError, DecodeError) as error:
            # A checksum that does not agree, or what it passed is no example.
            raise UndecodableImage(f"{self._place(index)}: its record is damaged: {error}") from error


def _check_files(info: DatasetInfo, lengths: dict[str, int]) -> None:
    """Raises unless the files (name to number of examples) are there and, as ArrayRecord, hold as many examples.

    Those of TFRecord are counted when they are opened. It takes 1 to 3 ms a file.
    """
    made = f"copy it anew, or remove {info.directory} and make the data set again"
    if missing := [name for name in lengths if not Path(name).is_file()]:
        more = f", and so are {len(missing) - 1} more of its {len(lengths)} files" if len(missing) > 1 else ""
        raise FileNotFoundError(f"data set {info.name!r}: {missing[0]} is missing{more}; {made}")
    if info.file_format == "array_record":
        with ThreadPoolExecutor(_COUNTING_THREADS) as executor:
            for name, found in zip(lengths, executor.map(_records_in, lengths), strict=True):
                if found != f"{lengths[name]} records":
                    raise ValueError(
                        f"data set {info.name!r}: {name} is cut off, damaged or of another set: dataset_info.json says "
                        f"{lengths[name]} records, found: {found}; {made}"
                    )


def _records_in(name: str) -> str:
    """How many records the index at the end of an ArrayRecord file lists, or what is wrong with it."""
    with open(name, "rb"):
        # For its own error, where there is no permission: the next line says nothing.
        pass
    reader = ArrayRecordReader(name)
    count = reader.num_records()
    try:
        reader.close()
    except RuntimeError as error:
        return str(error)
    return f"{count} records"


def numbers(field: Any) -> list[Any]:
    """What a field of a record holds, of whatever kind."""
    kind = field.WhichOneof("kind")
    return [] if kind is None else list(getattr(field, kind).value)
