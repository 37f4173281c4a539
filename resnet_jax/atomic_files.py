"""Files that are written whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def open_atomically(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a new file, which takes the place of an old one at the end of the block, on the disk.

    Until then, or if the block fails or the process is killed, the old one stays as it was. Of several that write to
    one path at once the last to end has it, whole. A killed process leaves an `unfinished_path`. Makes the folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_path(path)
    # "x" makes a new file, and follows no link that somebody put there; before `try`, which removes its own file alone.
    file = unfinished.open("xb")
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def unfinished_path(path: Path) -> Path:
    """Where to make what gets the name `path` when it is complete: beside it, PATH.RANDOM.unfinished.

    Each call gives another: two writers must not share one, and a fixed name might be somebody's file.
    """
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.unfinished")


def check_new_file(*paths: str | os.PathLike) -> None:
    """Raises a FileExistsError if there is a file, or anything else, at one of the paths."""
    for path in paths:
        if os.path.lexists(path):
            raise FileExistsError(f"{path} is there already; overwrite=True (--overwrite) replaces it")


def write_text_atomically(path: str | os.PathLike, text: str) -> Path:
    """Writes a whole text file in UTF-8, see `open_atomically`; returns its path."""
    with open_atomically(path) as file:
        file.write(text.encode())
    return Path(path)
