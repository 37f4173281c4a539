"""The sizes of a set's images, kept on disk from one start to the next where all its records are read to find them.

A file is the SHA-256 of the rest, and height and width of each image as four bytes each. One that is damaged, or of
another number of images, counts as absent and is made anew.
"""

import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from resnet_jax.atomic_files import open_atomically
from resnet_jax.cache_folder import cache_folder

_log = logging.getLogger(__name__)

_FOLDER = "image_sizes"
_DIGEST_BYTES = hashlib.sha256().digest_size
_NUMBER = np.dtype("<i4")

Sizes = list[tuple[int, int]]


def kept_sizes(digest: str, count: int, find: Callable[[], Sizes]) -> Sizes:
    """The sizes in `cache_folder() / "image_sizes"`, or those that are found, which are then kept there.

    Several processes may do so at once: each writes a whole file, of the same content. Where the folder cannot be used
    a warning says so, and nothing is kept.

    Args:
      digest: of the images, see `BoxSource.digest`; the file's name.
      count: of the images.
      find: gives (height, width) of each in their order, in pixels.
    """
    try:
        path = cache_folder() / _FOLDER / digest
    except RuntimeError as error:  # of a home that is not known
        _warn(str(error))
        return find()
    sizes = _read(path, count)
    if sizes is None:
        sizes = find()
        _write(path, sizes)
    return sizes


def _read(path: Path, count: int) -> Sizes | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, value = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(value).digest() != digest or len(value) != 2 * count * _NUMBER.itemsize:
        return None
    return [(height, width) for height, width in np.frombuffer(value, _NUMBER).reshape(-1, 2).tolist()]


def _write(path: Path, sizes: Sizes) -> None:
    value = np.array(sizes, _NUMBER).tobytes()
    try:
        with open_atomically(path) as file:
            file.write(hashlib.sha256(value).digest() + value)
    except OSError as error:
        _warn(f"{path.parent}: {error.strerror}")


@functools.cache
def _warn(what: str) -> None:
    """Once, however many sets there are."""
    _log.warning("images' sizes are not kept, so that each start reads the data sets in whole: %s", what)
