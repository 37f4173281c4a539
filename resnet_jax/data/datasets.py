"""Data sets on disk: any TFDS set of images with classes, as ArrayRecord or TFRecord, read without TensorFlow."""

import difflib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from resnet_jax.data.prepare import DATASETS, PathLike, default_data_dir, is_prepared, prepare
from resnet_jax.data.tfrecord import tfrecord_split

_CHANNELS = (1, 3)
# Ways to prepare a set that is then called otherwise.
_NO_NAMES = ("image_folder", "tfds_folder")
FILE_FORMATS = ("array_record", "tfrecord")
# Features that can hold the classes, and what a set is then called.
LABELS = {"label": "image-classification set", "objects/label": "set of images with boxes"}


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
      file_format: "array_record" or "tfrecord".
      directory: the folder of this version.
    """

    name: str
    version: str
    image_shape: tuple[int | None, int | None, int]
    num_classes: int
    class_names: tuple[str, ...]
    split_sizes: dict[str, int]
    file_format: str
    directory: Path


def dataset_info(name: str, *, data_dir: PathLike | None = None, label: str = "label") -> DatasetInfo:
    """Describes the newest version of a data set under `data_dir`; `digits` is made on first use.

    Args:
      name: the data set's name, or "NAME/CONFIG" for one of a set's configurations.
      data_dir: where data sets live, which may be read-only; None is TFDS's default, the environment variable
        TFDS_DATA_DIR or else ~/tensorflow_datasets.
      label: the feature that holds classes, one of `LABELS`; that of a sequence is named after a slash.

    Raises:
      FileNotFoundError: there is no such data set; the message says where it was sought and how to make it.
      ValueError: a malformed name, a set without the features `image` (8-bit, 1 or 3 channels) and that of
        `label` (a class), or one that is stored in another form than ArrayRecord or TFRecord.
    """
    return _describe(name, _directory_of(name, data_dir), label)


def feature_names(name: str, *, data_dir: PathLike | None = None) -> tuple[str, ...]:
    """The features of a data set's examples, in the order of the alphabet.

    Args:
      name: see `dataset_info`.
      data_dir: likewise.

    Raises:
      FileNotFoundError: there is no such data set.
      ValueError: a malformed name, or a data set that cannot be opened.
    """
    return tuple(sorted(dict(_info_of(name, _directory_of(name, data_dir)).features.items())))


def _directory_of(name: str, data_dir: PathLike | None) -> Path:
    """The folder of a data set's newest version; `digits` is made on first use."""
    if not re.fullmatch(r"[A-Za-z]\w*(/\w[\w.\-]*)?", name):
        raise ValueError(f"name={name!r} is not the name of a data set: allowed are NAME and NAME/CONFIG")
    data_dir = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
    directory = _newest_version(data_dir / name)
    if directory is None and name == "digits":
        directory = prepare("digits", data_dir=data_dir)
    if directory is None:
        raise FileNotFoundError(_missing_message(name, data_dir))
    return directory


def split_size(info: DatasetInfo, split: str) -> int:
    """Number of examples in a split, such as "train", "train[:45000]", "train[90%:]" or "train+test".

    Raises:
      ValueError: an unknown split, a malformed or empty slice, or one beyond the split's end.
    """
    sizes = ", ".join(f"{split_name} ({size})" for split_name, size in info.split_sizes.items())
    try:
        size = builder_of(info.directory).info.splits[split].num_examples
    except (ValueError, KeyError) as error:
        raise ValueError(f"split={split!r} of data set {info.name!r}: {error}; the splits are {sizes}") from error
    if size <= 0:
        raise ValueError(f"split={split!r} of data set {info.name!r} holds no examples; the splits are {sizes}")
    return size


def data_manifest(info: DatasetInfo) -> str:
    """SHA-256, in hex, of the names, sizes and order of the files that hold a data set's examples.

    Where it is the same, so is the example at every position. No file is read: that each holds what was written is
    for the checksums of its own format to say.
    """
    splits = builder_of(info.directory).info.splits
    digest = hashlib.sha256()
    for name, count in sorted(info.split_sizes.items()):
        files = [Path(path) for path in splits[name].filepaths]
        sizes = [(path.name, path.stat().st_size) for path in files]
        digest.update(f"{name} {count} {sizes}\n".encode())
    return digest.hexdigest()


def builder_of(directory: Path) -> tfds.core.DatasetBuilder:
    """TFDS's own reader of a folder."""
    return tfds.builder_from_directory(directory)


def serialized_examples(builder: tfds.core.DatasetBuilder, split: str, *, file_format: str) -> Any:
    """Random access to a split's examples as serialized bytes, in the order that TFDS gives them in; picklable."""
    if file_format == "tfrecord":
        return tfrecord_split(builder.info, split)
    return builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)


def _newest_version(folder: Path) -> Path | None:
    if not folder.is_dir():
        return None
    # Not `glob`, to which a folder without permission is an empty one.
    paths = (path for path in folder.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", path.name))
    return max(
        filter(is_prepared, paths),
        key=lambda path: [int(part) for part in path.name.split(".")],
        default=None,
    )


def _info_of(name: str, directory: Path) -> tfds.core.DatasetInfo:
    try:
        return builder_of(directory).info
    # Of the description's own format, too, whose errors have no base but this one.
    except Exception as error:
        if isinstance(error, OSError):
            raise
        raise ValueError(
            f"data set {name!r} in {directory} cannot be opened: {error}; copy it anew, or make it again"
        ) from error


def _describe(name: str, directory: Path, label_name: str) -> DatasetInfo:
    info = _info_of(name, directory)
    features = dict(info.features.items())
    image, label = features.get("image"), _inner(features, label_name)
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise ValueError(
            f"data set {name!r} in {directory} is no {LABELS[label_name]}: it needs the features 'image' "
            f"(Image) and {label_name!r} (ClassLabel), and has {', '.join(sorted(features))}"
        )
    if image.np_dtype != np.uint8 or image.shape[-1] not in _CHANNELS:
        raise ValueError(
            f"data set {name!r} in {directory} has images of type {image.np_dtype} with {image.shape[-1]} "
            f"channels; allowed are uint8 and {' or '.join(map(str, _CHANNELS))} channels"
        )
    stored = {form.value for form in info.available_file_formats()}
    readable = [form for form in FILE_FORMATS if form in stored]
    if not readable:
        raise ValueError(
            f"data set {name!r} in {directory} is stored as {info.file_format.value}; allowed are "
            f"{' and '.join(FILE_FORMATS)}: make it again with TFDS's download_and_prepare(file_format='array_record')"
        )
    return DatasetInfo(
        name=name,
        version=directory.name,
        image_shape=tuple(image.shape),
        num_classes=label.num_classes,
        class_names=tuple(label.names),
        split_sizes={split: split_info.num_examples for split, split_info in info.splits.items()},
        file_format=readable[0],
        directory=directory,
    )


def _inner(features: dict[str, Any], name: str) -> Any:
    """A feature, or that of a sequence after a slash; None where there is none."""
    outer, _, inner = name.partition("/")
    found = features.get(outer)
    if not inner:
        return found
    members = getattr(found, "feature", None)
    return dict(members.items()).get(inner) if isinstance(members, tfds.features.FeaturesDict) else None


def _missing_message(name: str, data_dir: Path) -> str:
    descriptions = [*data_dir.glob("*/*/dataset_info.json"), *data_dir.glob("*/*/*/dataset_info.json")]
    present = sorted({str(path.parent.parent.relative_to(data_dir)) for path in descriptions})
    if name in DATASETS and name not in _NO_NAMES:
        source = " --source=FOLDER (the original archives, or train/ and val/)" if name == "imagenet2012" else ""
        command = f"resnet-jax prepare {name} --data_dir={data_dir}{source}"
    else:
        command = (
            f"resnet-jax prepare image_folder --data_dir={data_dir} --source=FOLDER (its name counts), "
            f"or, with TensorFlow: tfds build {name} --data_dir={data_dir}"
        )
    named = [dataset for dataset in DATASETS if dataset not in _NO_NAMES]
    nearest = difflib.get_close_matches(name, [*present, *named], n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest and nearest[0] != name else ""
    return (
        f"no data set {name!r} in {data_dir} (no {data_dir / name}/VERSION/dataset_info.json){hint}; "
        f"data sets there: {', '.join(present) or 'none'}; make it with: {command}"
    )
