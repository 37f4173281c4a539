"""Image files by name, and those in folders."""

import logging
import os
from collections.abc import Iterator, Sequence

_log = logging.getLogger(__name__)

# Of the formats that `decode` knows.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")


def image_files(images: Sequence[str | os.PathLike]) -> list[str]:
    """The files that are named, and in place of each folder those in it and in its folders, sorted by path.

    Args:
      images: files, which need not exist and may be called anything, and folders. Of a folder count the files that end
        in one of `IMAGE_SUFFIXES`, in capitals or not; hidden files and folders (a dot first) and links to folders are
        passed over, and other files with a warning that counts them.

    Raises:
      OSError: a folder cannot be listed.
      ValueError: nothing is named, or a folder that holds no image; it is named.
    """
    paths: list[str] = []
    for image in images:
        path = os.fspath(image)
        found = _images_in(path) if os.path.isdir(path) else [path]
        if not found:
            raise ValueError(f"{path} holds no image: no file that ends in {', '.join(IMAGE_SUFFIXES)}")
        paths += found
    if not paths:
        raise ValueError("there is nothing to predict: name an image or a folder of images")
    return paths


def _images_in(folder: str) -> list[str]:
    files = list(_files_in(folder))
    images = [path for path in files if path.lower().endswith(IMAGE_SUFFIXES)]
    if others := sorted({os.path.splitext(path)[1].lower() or "no ending" for path in set(files) - set(images)}):
        _log.warning("%s: %d files passed over (%s)", folder, len(files) - len(images), ", ".join(others))
    return images


def _files_in(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in visible:
        # Links to folders could lead in a circle.
        if entry.is_dir(follow_symlinks=False):
            yield from _files_in(entry.path)
        elif not entry.is_dir():
            yield entry.path
