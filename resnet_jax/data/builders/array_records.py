"""Writes TFDS data sets of any size in ArrayRecord form, without TensorFlow and in little memory.

TFDS's own writer keeps the examples of a split in memory to sort them, and beyond a gigabyte needs TensorFlow. Here
only the keys are sorted: the examples are made in the order in which they are stored, so none is kept.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core import dataset_info, example_serializer, hashing
from tensorflow_datasets.core.utils import shard_utils
from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")

# One record is read at a time, in any order. Encoded images do not get smaller, and compressed ones take twice as long
# to be read; BMP would shrink by a fifth.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_READING_THREADS = 8
_READ_AHEAD = 64


class SplitExamples(NamedTuple):
    """The examples of a split, before they are sorted.

    Attributes:
      keys: a name for each, from which its place follows.
      num_bytes: about how many bytes they are together, from which the number of files follows.
      example: makes the example at a position, as a value for each feature; called by several threads.
    """

    keys: Sequence[str]
    num_bytes: int
    example: Callable[[int], dict[str, Any]]


def write_data_set(
    folder: Path,
    splits: Mapping[str, SplitExamples],
    *,
    name: str,
    version: str,
    features: tfds.features.FeaturesDict,
    description: str,
    homepage: str | None = None,
) -> None:
    """Writes a whole data set, in the order in which TFDS would store examples with these keys.

    Args:
      folder: of the data set's version, there and empty.
      splits: what each split holds.
      name: of the data set.
      version: such as "1.0.0".
      features: `image` and `label` among others.
      description: for whoever reads `dataset_info.json`.
      homepage: a URL.

    Raises:
      ValueError: two examples of a split with one key.
    """
    info = tfds.core.DatasetInfo(
        builder=dataset_info.DatasetIdentity(
            name=name, version=tfds.core.Version(version), data_dir=str(folder), module_name=__name__
        ),
        description=description,
        features=features,
        supervised_keys=("image", "label"),
        homepage=homepage,
    )
    info.set_file_format("array_record")
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    written = []
    with ThreadPoolExecutor(_READING_THREADS) as executor:
        for split, (keys, num_bytes, example) in splits.items():

            def serialized(position: int, example=example) -> bytes:
                return serializer.serialize_example(features.encode_example(example(position)))

            examples = map_ahead(executor, serialized, stored_order(split, keys), ahead=_READ_AHEAD)
            shard_lengths = usual_shard_lengths(len(keys), num_bytes)
            written.append(write_split(folder, name, split, examples, shard_lengths=shard_lengths))
    info.set_splits(tfds.core.SplitDict(written))
    info.write_to_directory(folder)


def write_split(
    folder: Path, name: str, split: str, examples: Iterable[bytes], *, shard_lengths: Sequence[int]
) -> tfds.core.SplitInfo:
    """Writes the record files of one split, and returns the entry for `dataset_info.json`.

    Args:
      folder: of the data set's version.
      name: of the data set.
      split: such as "train".
      examples: as many serialized examples as the shards hold together, in order.
      shard_lengths: how many examples each file gets.
    """
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, split=split, filetype_suffix="array_record"
    )
    num_bytes, rest = 0, iter(examples)
    with tqdm(total=sum(shard_lengths), desc=f"{name} {split}", unit=" examples", disable=None) as bar:
        for index, length in enumerate(shard_lengths):
            path = template.sharded_filepath(shard_index=index, num_shards=len(shard_lengths))
            writer = ArrayRecordWriter(str(path), _WRITER_OPTIONS)
            for _ in range(length):
                example = next(rest)
                writer.write(example)
                num_bytes += len(example)
                bar.update()
            writer.close()
    return tfds.core.SplitInfo(
        name=split, shard_lengths=list(shard_lengths), num_bytes=num_bytes, filename_template=template
    )


def stored_order(split: str, keys: Iterable[str]) -> list[int]:
    """The order in which TFDS stores examples with these keys: positions in `keys`.

    Raises:
      ValueError: a key that comes twice.
    """
    hasher = hashing.Hasher(split)
    hashed = sorted((hasher.hash_key(key), position, key) for position, key in enumerate(keys))
    for (first, _, _), (second, _, key) in zip(hashed, hashed[1:], strict=False):
        if first == second:
            raise ValueError(f"split {split!r} has two examples called {key!r}")
    return [position for _, position, _ in hashed]


def usual_shard_lengths(num_examples: int, num_bytes: int) -> list[int]:
    """How many examples TFDS would put into each file of a split of this size."""
    count = shard_utils.ShardConfig().get_number_shards(num_bytes, num_examples)
    ends = shard_utils.get_shard_boundaries(num_examples, count)
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def map_ahead(
    executor: Executor, function: Callable[[Item], Result], items: Iterable[Item], *, ahead: int
) -> Iterator[Result]:
    """Results in the order of the items, of which no more than `ahead` are in work or waiting to be taken."""
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
