"""Image files by name, and those in folders."""

import os
from collections.abc import Iterator, Sequence

# Of the formats that `decode` knows.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")


def image_files(images: Sequence[str | os.PathLike]) -> list[str]:
    """The files that are named, and in place of each folder those in it and in its folders, sorted by path.

    Args:
      images: files, which need not exist and may be called anything, and folders. Of a folder count the files that end
        in one of `IMAGE_SUFFIXES`, in capitals or not; hidden files and folders (a dot first) and links to folders are
        passed over.

    Raises:
      OSError: a folder cannot be listed.
      ValueError: nothing is named, or a folder that holds no image; it is named.
    """
    paths: list[str] = []
    for image in images:
        path = os.fspath(image)
        found = list(_images_in(path)) if os.path.isdir(path) else [path]
        if not found:
            raise ValueError(f"{path} holds no image: no file that ends in {', '.join(IMAGE_SUFFIXES)}")
        paths += found
    if not paths:
        raise ValueError("there is nothing to predict: name an image or a folder of images")
    return paths


def _images_in(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in visible:
        # Links to folders could lead in a circle.
        if entry.is_dir(follow_symlinks=False):
            yield from _images_in(entry.path)
        elif entry.name.lower().endswith(IMAGE_SUFFIXES) and not entry.is_dir():
            yield entry.path
