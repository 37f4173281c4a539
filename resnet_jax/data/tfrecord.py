"""TFRecord files, the form in which TFDS stores data sets by default: any record by its index, without TensorFlow.

A record is its length (8 bytes, little-endian), a checksum of those 8 bytes, the data, and a checksum of the
data. A checksum is the CRC-32C, rotated right by 15 bits, plus a constant, in 4 bytes (TensorFlow's
`tensorflow/core/lib/hash/crc32c.h` and the guide "TFRecord and tf.train.Example").
"""

import itertools
import os
import struct
from array import array
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import tensorflow_datasets as tfds

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
# Headers lie apart on the disk, so that most of an index's time is waiting when the files are not cached.
_INDEXING_THREADS = 16


class TFRecordFile:
    """The records of one file, as bytes, by index.

    The file is opened anew for every read: an object may be shared by threads, pickled with its index, or
    forked, and thousands of files take no file descriptors.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Finds where every record starts, by reading the records' headers and nothing else.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: a header that is damaged, or a file that ends within a record.
        """
        self.path = Path(path)
        self._starts = self._index()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> bytes:
        """The data of one record.

        Raises:
          IndexError: no such record; a negative index counts from the end.
          ValueError: the data does not agree with its checksum.
        """
        index = range(len(self))[index]
        start = self._starts[index]
        size = self._starts[index + 1] - start
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            record = os.pread(descriptor, size, start)
        finally:
            os.close(descriptor)
        if len(record) != size:
            raise self._damaged(index, start, f"the file ends after {len(record)} of the record's {size} bytes")
        data, checksum = record[_HEADER.size : -_CHECKSUM.size], record[-_CHECKSUM.size :]
        if _CHECKSUM.pack(masked_crc32c(data)) != checksum:
            raise self._damaged(index, start, f"the checksum of its {len(data)} bytes of data is wrong")
        return data

    def _index(self) -> array:
        """Byte offsets of all records and of the end of the file."""
        starts, start = array("q", [0]), 0
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            if hasattr(os, "posix_fadvise"):
                # Else the system reads ahead from each header, which in the end is the whole file.
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            file_bytes = os.fstat(descriptor).st_size
            while start < file_bytes:
                header = os.pread(descriptor, _HEADER.size, start)
                if len(header) < _HEADER.size:
                    raise self._damaged(len(starts) - 1, start, f"the file ends within the header, at {file_bytes}")
                length, checksum = _HEADER.unpack(header)
                if masked_crc32c(header[:8]) != checksum:
                    raise self._damaged(len(starts) - 1, start, "the checksum of its length is wrong")
                end = start + _HEADER.size + length + _CHECKSUM.size
                if end > file_bytes:
                    raise self._damaged(len(starts) - 1, start, f"it would end at {end}, the file ends at {file_bytes}")
                starts.append(end)
                start = end
        finally:
            os.close(descriptor)
        return starts

    def _damaged(self, index: int, start: int, what: str) -> ValueError:
        return ValueError(f"{self.path} is damaged or no TFRecord file: record {index}, at byte {start}: {what}")


def masked_crc32c(data: bytes) -> int:
    """TFRecord's checksum of some bytes: 32 bits."""
    checksum = google_crc32c.value(data)
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF


class TFRecordSplit:
    """The serialized examples of a TFDS split stored as TFRecord, by index.

    The order is that of `tfds.data_source` over the same set in ArrayRecord form. One example is read by
    `info.features.deserialize_example_np(split[i], decoders={"image": tfds.decode.SkipDecoding()})`.
    """

    def __init__(self, parts: list[tuple[TFRecordFile, range]]):
        """Takes runs of records: files, and which of their records in a row."""
        self._parts = parts
        self._ends = list(itertools.accumulate(len(records) for _, records in parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> bytes:
        """One serialized `tf.train.Example`.

        Raises:
          IndexError: no such example; a negative index counts from the end.
          ValueError: a damaged record, see `TFRecordFile`.
        """
        index = range(len(self))[index]
        part = bisect_right(self._ends, index)
        file, records = self._parts[part]
        return file[records[index - (self._ends[part] - len(records))]]


def tfrecord_split(info: tfds.core.DatasetInfo, split: str) -> TFRecordSplit:
    """Opens a split of a data set that TFDS has stored as TFRecord.

    Only the files that hold examples of the split are looked at, each one once.

    Args:
      info: of the builder that `tfds.builder_from_directory` returns.
      split: TFDS split syntax, such as "train", "train[:90%]" or "train+test".

    Raises:
      FileNotFoundError: a file of the data set is missing.
      ValueError: the set is stored in another form, the split is unknown or malformed, or a file is damaged or
        holds another number of records than the data set says.
    """
    if info.file_format is None or info.file_format.value != "tfrecord":
        form = info.file_format and info.file_format.value
        raise ValueError(f"data set {info.full_name!r} is stored as {form}; allowed is tfrecord")
    try:
        instructions = info.splits[split].file_instructions
    except (KeyError, ValueError) as error:
        known, what = ", ".join(info.splits), " ".join(str(error).split())
        raise ValueError(f"split={split!r} of data set {info.full_name!r}: {what}; the splits are {known}") from error
    lengths = {instruction.filename: instruction.examples_in_shard for instruction in instructions}
    with ThreadPoolExecutor(_INDEXING_THREADS) as executor:
        files = dict(zip(lengths, executor.map(TFRecordFile, lengths), strict=True))
    for name, file in files.items():
        if len(file) != lengths[name]:
            raise ValueError(f"{name} holds {len(file)} records, dataset_info.json says {lengths[name]}")
    return TFRecordSplit(
        [(files[one.filename], range(one.skip, one.skip + one.take)) for one in instructions if one.take]
    )
