"""Splits of a data set written record by record: with images and labels that TFDS itself would not write."""

from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core import example_serializer

INTEGER = tfds.features.Scalar(np.int64)


def write_records(folder: Path, split: str, images: list[bytes], labels: list, label_feature=INTEGER) -> None:
    """Writes a split of `build_colored_images` anew: as many images, as bytes, and labels of any feature."""
    features = tfds.features.FeaturesDict(
        {"file_name": tfds.features.Text(), "image": tfds.features.Text(), "label": label_feature}
    )
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    examples = (
        {"file_name": f"image{index}.jpg", "image": image, "label": label}
        for index, (image, label) in enumerate(zip(images, labels, strict=True))
    )
    replace_records(
        folder, split, [serializer.serialize_example(features.encode_example(example)) for example in examples]
    )


def replace_records(folder: Path, split: str, records: list[bytes]) -> None:
    """Writes the one file of a split anew."""
    (path,) = (path for path in folder.iterdir() if f"-{split}." in path.name)
    path.unlink()
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()
