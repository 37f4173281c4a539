"""`cifar10` and `cifar100`: TFDS data sets made from the original binary archives, without TensorFlow."""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image

from resnet_jax.download import RemoteFile, download

_IMAGE_BYTES = 3 * 32 * 32

# Sizes and checksums are those that TFDS 4.9.10 lists under url_checksums/.
CIFAR10_ARCHIVE = RemoteFile(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    size=170_052_171,
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
CIFAR100_ARCHIVE = RemoteFile(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    size=168_513_733,
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
)


class _Cifar(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """What both sets share: records of label bytes and 3,072 image bytes (three planes of 32x32).

    Names, features, keys and hence the order of the examples are those of the data sets in TFDS, so
    "train[:45000]" names the same images. Images are stored as lossless PNG.
    """

    VERSION = tfds.core.Version("3.0.2")
    # TFDS would look for checksums of downloads beside the code, with a package that it does not declare.
    code_path = None
    DESCRIPTION: str
    # One entry for every label byte at the head of a record, in the records' order.
    LABELS: dict[str, int]
    LABEL_FILES: dict[str, str]
    FILES: dict[str, tuple[str, ...]]

    def __init__(self, *, archive: Path, **arguments: Any):
        """Takes the archive to read, checked already, and TFDS's own arguments."""
        self._archive = archive
        super().__init__(**arguments)

    def _info(self) -> tfds.core.DatasetInfo:
        labels = {name: tfds.features.ClassLabel(num_classes=count) for name, count in self.LABELS.items()}
        image = tfds.features.Image(shape=(32, 32, 3))
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict({"id": tfds.features.Text(), "image": image, **labels}),
            supervised_keys=("image", "label"),
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
        del dl_manager
        wanted = [*self.LABEL_FILES.values(), *(name for names in self.FILES.values() for name in names)]
        members = _read_members(self._archive, wanted)
        for feature, name in self.LABEL_FILES.items():
            class_names = members[name].decode("ascii").split()
            if len(class_names) != self.LABELS[feature]:
                where, expected = f"{self._archive}: {name}", self.LABELS[feature]
                raise ValueError(f"{where} holds {len(class_names)} class names, expected {expected}")
            self.info.features[feature].names = class_names
        return {
            split: self._generate_examples(split, {name: members[name] for name in names})
            for split, names in self.FILES.items()
        }

    def _generate_examples(self, split: str, members: dict[str, bytes]) -> Iterator[tuple[int, dict]]:
        index = 0
        for name, content in members.items():
            labels, images = _parse_records(content, self.LABELS, where=f"{self._archive}: {name}")
            for record_labels, image in zip(labels.tolist(), images, strict=True):
                # TFDS needs TensorFlow to encode an array, but none for a Pillow image.
                named_labels = dict(zip(self.LABELS, record_labels, strict=True))
                yield index, {"id": f"{split}_{index:05d}", "image": Image.fromarray(image), **named_labels}
                index += 1


class Cifar10(_Cifar, skip_registration=True):  # type: ignore[call-arg]
    """Builder of `cifar10` 3.0.2 from cifar-10-binary.tar.gz (Krizhevsky, 2009)."""

    DESCRIPTION = "CIFAR-10: 60,000 colour images of 32x32 pixels in 10 classes, 50,000 of them for training."
    LABELS = {"label": 10}
    LABEL_FILES = {"label": "batches.meta.txt"}
    FILES = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}


class Cifar100(_Cifar, skip_registration=True):  # type: ignore[call-arg]
    """Builder of `cifar100` 3.0.2 from cifar-100-binary.tar.gz (Krizhevsky, 2009); `label` is fine."""

    DESCRIPTION = (
        "CIFAR-100: 60,000 colour images of 32x32 pixels in 100 classes (20 coarse ones), 50,000 of them for training."
    )
    LABELS = {"coarse_label": 20, "label": 100}
    LABEL_FILES = {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"}
    FILES = {"train": ("train.bin",), "test": ("test.bin",)}


def check_archive(path: Path, archive: RemoteFile) -> None:
    """Checks that the file is the published one.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: its size or SHA-256 differs (both values are given), or it is the Python (pickle) version.
    """
    if not path.is_file():
        expected = f"{archive.file_name} from {archive.url}"
        raise FileNotFoundError(f"source={str(path)!r} is not a file; expected {expected}")
    try:
        archive.check(path)
    except ValueError:
        if not _is_python_version(path):
            raise
        raise ValueError(
            f"source={str(path)!r} is the Python version, made of pickles, which can run any code when they "
            f"are read; give the binary version, {archive.file_name}, from {archive.url}"
        ) from None


def _is_python_version(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:*") as tar:
            first = tar.next()
    except (tarfile.TarError, EOFError, OSError):
        # Not a tar file at all: its size and checksum are reported.
        return False
    return first is not None and re.match(r"cifar-10-batches-py|cifar-100-python", first.name) is not None


def download_archive(archive: RemoteFile, folder: Path) -> Path:
    """Downloads the archive into a folder, unless it is there already, and returns its path.

    Raises:
      ValueError: size or checksum is wrong, of the download or of the file already there, see `check_archive`.
      ConnectionError: it cannot be downloaded, see `download`.
    """
    target = folder / archive.file_name
    if target.exists():
        check_archive(target, archive)
        return target
    return download(archive, target, by_hand="give it as --source=FILE")


def _read_members(path: Path, names: list[str]) -> dict[str, bytes]:
    """Reads the members with these base names into memory; nothing is written to disk."""
    contents: dict[str, bytes] = {}
    with tarfile.open(path, "r|gz") as tar:
        for member in tar:
            name = member.name.rsplit("/", 1)[-1]
            file = tar.extractfile(member) if name in names else None
            if file is not None:
                contents[name] = file.read()
    if missing := [name for name in names if name not in contents]:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    return contents


def _parse_records(
    content: bytes, labels: dict[str, int], *, where: str
) -> tuple[UInt8[np.ndarray, "n k"], UInt8[np.ndarray, "n 32 32 3"]]:
    """Splits a file of records into labels [N, K] and images [N, 32, 32, 3]."""
    record_bytes = len(labels) + _IMAGE_BYTES
    if not content or len(content) % record_bytes:
        raise ValueError(f"{where} holds {len(content)} bytes, no whole number of {record_bytes}-byte records")
    records = np.frombuffer(content, np.uint8).reshape(-1, record_bytes)
    for position, (name, num_classes) in enumerate(labels.items()):
        if (wrong := np.flatnonzero(records[:, position] >= num_classes)).size:
            label = f"record {wrong[0]} has {name} {records[wrong[0], position]}"
            raise ValueError(f"{where}: {label}, allowed is 0 to {num_classes - 1}")
    images = records[:, len(labels) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return records[:, : len(labels)], np.ascontiguousarray(images)
