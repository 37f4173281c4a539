"""TFRecord files, and TFDS data sets in that form, written without TensorFlow."""

import json
import shutil
import struct

import tensorflow_datasets as tfds

from resnet_jax.data.tfrecord import masked_crc32c


def checksum(data):
    return struct.pack("<I", masked_crc32c(data))


def record(data):
    length = struct.pack("<Q", len(data))
    return length + checksum(length) + data + checksum(data)


def as_tfrecord(source, folder, shards):
    """Copies an ArrayRecord data set into TFRecord form; `shards` gives the lengths of each split's files."""
    builder = tfds.builder_from_directory(source)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*array_record*"))
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        name, lengths = split["name"], shards[split["name"]]
        raw = builder.as_data_source(name, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        examples = iter(list(raw))
        for index, length in enumerate(lengths):
            path = folder / f"{builder.info.name}-{name}.tfrecord-{index:05d}-of-{len(lengths):05d}"
            path.write_bytes(b"".join(record(next(examples)) for _ in range(length)))
        split["shardLengths"] = [str(length) for length in lengths]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder
