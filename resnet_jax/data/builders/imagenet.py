"""`imagenet2012`: the TFDS data set made from the original archives or from a folder of class folders.

Nothing is extracted: the archives are not compressed, so once a first pass has found where each file lies, the
images are read in the order in which they are stored. The files are kept byte for byte. TFDS rewrites 23 of them
(22 CMYK files and a PNG, all called .JPEG) as RGB JPEG; those are left to the decoder.
"""

import functools
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from resnet_jax.data.builders.array_records import SplitExamples, write_data_set

NAME, VERSION = "imagenet2012", "5.1.0"
SPLITS = ("train", "validation")

_ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}
_FOLDERS = {"train": "train", "validation": "val"}
# Classes and images: Russakovsky et al. 2015, table 2.
_COUNTS = {"train": (1000, 1_281_167), "validation": (1000, 50_000)}
_FILE_NAMES = {
    "train": re.compile(r"(n\d{8})_\d+\.JPEG"),
    "validation": re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG"),
}
_TAR_BLOCK_BYTES = 512
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


class ImageFile(NamedTuple):
    """Where one image lies: in an archive from byte `offset`, or in a file of its own, from byte 0.

    `class_name` is a WordNet id, empty as long as it is not known.
    """

    path: Path
    offset: int
    size: int
    file_name: str
    class_name: str

    def read(self) -> bytes:
        """The file's bytes.

        Raises:
          ValueError: it is cut short, or begins neither as a JPEG nor as a PNG.
        """
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            content = os.pread(descriptor, self.size, self.offset)
        finally:
            os.close(descriptor)
        if len(content) != self.size or not content.startswith(_SIGNATURES):
            raise ValueError(
                f"{self.path}: {self.file_name}, {self.size} bytes from byte {self.offset}, is damaged: "
                f"it begins with {content[:8].hex(' ') or 'nothing'}, which is no JPEG or PNG"
            )
        return content


@functools.cache
def class_names() -> tuple[str, ...]:
    """The 1,000 WordNet ids such as "n01440764", in the order of their labels; from TFDS."""
    return tuple(_tfds_lines("labels.txt"))


@functools.cache
def _labels() -> frozenset[str]:
    return frozenset(class_names())


@functools.cache
def validation_class_names() -> tuple[str, ...]:
    """The class of every validation image, in the order of the files' names; from TFDS."""
    return tuple(_tfds_lines("validation_labels.txt"))


def _tfds_lines(name: str) -> list[str]:
    return tfds.core.tfds_path(f"datasets/imagenet2012/{name}").read_text().split()


def locate(source: Path, splits: Sequence[str]) -> dict[str, Path]:
    """Finds the archive or folder of each split.

    The archives are ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar; the folders are train/, with class folders,
    and val/, with class folders or without.

    Raises:
      FileNotFoundError: `source` is not a folder.
      ValueError: a split is there in no form or in both; the message lists what was found and what is missing.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"source={str(source)!r} is not a folder")
    found: dict[str, Path] = {}
    lines, wrong = [], False
    for split in splits:
        archive, folder = source / _ARCHIVES[split], source / _FOLDERS[split]
        present = [path for path, there in ((archive, archive.is_file()), (folder, folder.is_dir())) if there]
        if len(present) == 1:
            found[split] = present[0]
            lines.append(f"{split}: found {present[0].name}")
        else:
            wrong = True
            what = f"both {archive.name} and {folder.name}/" if present else f"no {archive.name} and no {folder.name}/"
            lines.append(f"{split}: {what}")
    if wrong:
        raise ValueError(
            f"source={str(source)!r} needs each split once, as an archive or a folder ({'; '.join(lines)}); "
            f"splits names those to make, of {', '.join(SPLITS)}"
        )
    return found


def scan(path: Path, split: str) -> list[ImageFile]:
    """Finds every image of a split, without reading the images.

    Args:
      path: an archive or a folder, see `locate`.
      split: "train" or "validation".

    Raises:
      ValueError: a damaged archive, a file or class that does not belong there, or another count of classes or
        images than ImageNet has; the message names it.
    """
    if path.is_dir():
        found = _folder_files(path, path)
    elif split == "train":
        found = _train_archive_files(path)
    else:
        found = _archive_files(path, 0, path.stat().st_size, str(path))
    files = [_with_class(file, split) for file in found]
    num_classes, num_images = _COUNTS[split]
    hint = "for a part of ImageNet or another set, prepare image_folder"
    present = {file.class_name for file in files}
    if len(present) != num_classes:
        missing = ", ".join([name for name in class_names() if name not in present][:3])
        what = f"{path} has images of {len(present)} classes, ImageNet has {num_classes}"
        raise ValueError(f"{what}; missing are {missing} and so on; {hint}")
    if len(files) != num_images:
        raise ValueError(f"{path} has {len(files)} images, ImageNet's {split} split has {num_images}; {hint}")
    return files


def _folder_files(folder: Path, path: Path) -> Iterator[ImageFile]:
    """The files of a folder, or of the class folders in it; hidden ones, with a dot first, are passed over."""
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                class_name = "" if path == folder else path.name
                yield ImageFile(Path(entry.path), 0, entry.stat().st_size, entry.name, class_name)
            elif path == folder:
                yield from _folder_files(folder, Path(entry.path))
            else:
                raise ValueError(f"{entry.path} is a folder where images are expected")


def _train_archive_files(path: Path) -> Iterator[ImageFile]:
    """The images in the classes' archives in the archive."""
    for member in _archive_files(path, 0, path.stat().st_size, str(path)):
        class_name, suffix = os.path.splitext(member.file_name)
        if suffix != ".tar":
            raise ValueError(f"{path}: {member.file_name} is no class's archive such as {class_names()[0]}.tar")
        where = f"{path}: {member.file_name}"
        for image in _archive_files(path, member.offset, member.offset + member.size, where):
            yield image._replace(class_name=class_name)


def _archive_files(path: Path, start: int, end: int, where: str) -> Iterator[ImageFile]:
    """The files in the tar archive that is bytes `start` to `end` of a file."""
    last = "its start"
    try:
        with path.open("rb") as file:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    last = f"member {member.name}"
                    if member.isreg():
                        name = member.name.rsplit("/", 1)[-1]
                        yield ImageFile(path, member.offset_data, member.size, name, "")
                # tarfile takes a damaged header for the archive's end, which is in truth a block of zeros.
                stop = archive.offset
                file.seek(stop)
                if stop + _TAR_BLOCK_BYTES > end or file.read(_TAR_BLOCK_BYTES) != bytes(_TAR_BLOCK_BYTES):
                    raise ValueError(
                        f"{where} is damaged or cut short: no header and no end at byte {stop}, after {last}"
                    )
    except tarfile.TarError as error:
        raise ValueError(f"{where} is damaged or cut short after {last}: {error}") from error


def _with_class(file: ImageFile, split: str) -> ImageFile:
    """Checks a file's name and place, and gives it its class."""
    match = _FILE_NAMES[split].fullmatch(file.file_name)
    where = f"{file.path.parent}/" if file.offset == 0 else f"{file.path}: "
    if match is None:
        expected = {"train": "n01440764_10026.JPEG", "validation": "ILSVRC2012_val_00000001.JPEG"}[split]
        raise ValueError(f"{where}{file.file_name} is not named like an image of ImageNet's {split} split: {expected}")
    if split == "train":
        class_name = match[1]
    else:
        number, classes = int(match[1]), validation_class_names()
        if not 1 <= number <= len(classes):
            raise ValueError(f"{where}{file.file_name}: the validation images are numbered 1 to {len(classes)}")
        class_name = classes[number - 1]
    if class_name not in _labels():
        raise ValueError(f"{where}{file.file_name}: {class_name} is none of ImageNet's 1,000 classes")
    if class_name != (file.class_name or class_name):
        raise ValueError(f"{where}{file.file_name} is an image of {class_name}, and lies with {file.class_name}")
    return file._replace(class_name=class_name)


def write(folder: Path, files: dict[str, list[ImageFile]]) -> None:
    """Writes the data set into a folder: what TFDS would write, but for the files that it rewrites.

    Args:
      folder: of the data set's version, there and empty.
      files: for each split, from `scan`.

    Raises:
      ValueError: two files of one name, or an image that is damaged.
    """
    features = tfds.features.FeaturesDict(
        {
            "file_name": tfds.features.Text(),
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=list(class_names())),
        }
    )
    write_data_set(
        folder,
        {split: _examples(found) for split, found in files.items()},
        name=NAME,
        version=VERSION,
        features=features,
        description="ImageNet, ILSVRC 2012: 1,281,167 training and 50,000 validation images in 1,000 classes.",
        homepage="https://image-net.org/",
    )


def _examples(files: list[ImageFile]) -> SplitExamples:
    def example(position: int) -> dict[str, Any]:
        file = files[position]
        return {"file_name": file.file_name, "image": file.read(), "label": file.class_name}

    return SplitExamples([file.file_name for file in files], sum(file.size for file in files), example)
