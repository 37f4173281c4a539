"""`image_folder`: a TFDS data set made from a folder of class folders, the files kept byte for byte."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from resnet_jax.data.builders.array_records import SplitExamples, write_data_set

VERSION = "1.0.0"

_EXTENSIONS = (".jpg", ".jpeg", ".png")
_SPLIT_FOLDERS = {"train": "train", "test": "test", "val": "validation", "validation": "validation"}
_GREY_MODES = ("1", "L")
# Modes that decode to 8-bit grey or RGB without loss of depth; 16-bit files, for one, are not among them.
_MODES = (*_GREY_MODES, "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


@dataclass(frozen=True)
class FolderLayout:
    """What a folder of images holds.

    Attributes:
      name: the data set's name, from the folder's.
      class_names: sorted names of the training split's class folders; a label is a position in them.
      files: for every split, its (class, path) pairs in sorted order.
      image_shape: (H, W, C); H and W are None unless all images have the same, C is 1 if all are grey or 3.
    """

    name: str
    class_names: tuple[str, ...]
    files: dict[str, list[tuple[str, Path]]]
    image_shape: tuple[int | None, int | None, int]


def write(folder: Path, layout: FolderLayout) -> None:
    """Writes the data set of a `FolderLayout`; features `file_name` (CLASS/FILE), `image` and `label`.

    Args:
      folder: of the data set's version, there and empty.
      layout: from `scan`.

    Raises:
      OSError: a file cannot be read any more.
    """
    features = tfds.features.FeaturesDict(
        {
            "file_name": tfds.features.Text(),
            "image": tfds.features.Image(shape=layout.image_shape),
            "label": tfds.features.ClassLabel(names=list(layout.class_names)),
        }
    )
    write_data_set(
        folder,
        {split: _examples(files) for split, files in layout.files.items()},
        name=layout.name,
        version=VERSION,
        features=features,
        description=f"Images of {len(layout.class_names)} classes, from a folder of class folders.",
    )


def _examples(files: list[tuple[str, Path]]) -> SplitExamples:
    file_names = [f"{class_name}/{path.name}" for class_name, path in files]

    def example(position: int) -> dict[str, Any]:
        class_name, path = files[position]
        return {"file_name": file_names[position], "image": path.read_bytes(), "label": class_name}

    return SplitExamples(file_names, sum(path.stat().st_size for _, path in files), example)


def data_set_name(folder: Path) -> str:
    """The data set's name: the folder's in lower case, other characters than a-z and 0-9 as underscores.

    A name that would not start with a letter gets "images_" before it: `101 Flowers!` is
    `images_101_flowers`.
    """
    name = re.sub(r"[^a-z0-9]+", "_", folder.resolve().name.lower()).strip("_")
    return name if re.match(r"[a-z]", name) else f"images_{name}".rstrip("_")


def scan(folder: Path) -> FolderLayout:
    """Reads and checks a folder of images.

    It is FOLDER/SPLIT/CLASS/FILE, with the splits `train` and, if wanted, `test` and `val` or `validation`
    (both become `validation`); or FOLDER/CLASS/FILE, which has the split `train` only. Hidden files (a dot
    first) are passed over. Every image is decoded once. An orientation stored in a file's EXIF data is not
    applied, neither here nor when the data set is read.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: a file that is no readable 8-bit JPEG or PNG image, a folder or file in an unexpected place,
        a class without training images, or a class of another split that `train` lacks; the message names it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"source={str(folder)!r} is not a folder")
    files = {split: _class_files(path) for split, path in _split_folders(folder).items()}
    class_names = tuple(sorted({class_name for class_name, _ in files["train"]}))
    for split, pairs in files.items():
        for class_name, path in pairs:
            if class_name not in class_names:
                raise ValueError(f"{path.parent}: class {class_name!r} of split {split!r} is not a class of 'train'")
    formats = {_image_format(path) for pairs in files.values() for _, path in pairs}
    sizes = {size for size, _ in formats}
    height_width = next(iter(sizes)) if len(sizes) == 1 else (None, None)
    channels = 1 if all(mode in _GREY_MODES for _, mode in formats) else 3
    return FolderLayout(data_set_name(folder), class_names, files, (*height_width, channels))


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _split_folders(folder: Path) -> dict[str, Path]:
    names = [path.name for path in _visible(folder)]
    if not any(name in _SPLIT_FOLDERS for name in names):
        return {"train": folder}
    if "train" not in names:
        raise ValueError(f"{folder} has a split's folder but none called 'train'; it holds {', '.join(names)}")
    if unexpected := [name for name in names if name not in _SPLIT_FOLDERS]:
        raise ValueError(
            f"{folder / unexpected[0]} is not a split; allowed beside 'train' are test, val and validation"
        )
    if "val" in names and "validation" in names:
        raise ValueError(f"{folder} has both 'val' and 'validation', which are the same split")
    return {_SPLIT_FOLDERS[name]: folder / name for name in names}


def _class_files(folder: Path) -> list[tuple[str, Path]]:
    pairs: list[tuple[str, Path]] = []
    for class_folder in _visible(folder):
        if not class_folder.is_dir():
            raise ValueError(f"{class_folder} is a file where a class folder is expected")
        paths = _visible(class_folder)
        if not paths:
            raise ValueError(f"{class_folder} holds no images")
        pairs.extend((class_folder.name, path) for path in paths)
    if not pairs:
        raise ValueError(f"{folder} holds no class folders")
    return pairs


def _image_format(path: Path) -> tuple[tuple[int, int], str]:
    """Decodes the file to be sure that it can be, and returns its (height, width) and Pillow mode."""
    if path.suffix.lower() not in _EXTENSIONS or not path.is_file():
        raise ValueError(f"{path} is not an image: a class folder holds files ending in {', '.join(_EXTENSIONS)}")
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            size, mode = (image.height, image.width), image.mode
            # A JPEG at its smallest scale decodes faster and is read to the end all the same.
            image.draft("RGB", (1, 1))
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a JPEG or PNG image: {error}") from error
    if mode not in _MODES:
        raise ValueError(f"{path} has Pillow mode {mode!r}, not 8-bit grey or colour; allowed: {', '.join(_MODES)}")
    return size, mode
