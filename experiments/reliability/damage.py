"""Ways to damage the files of a checkpoint; each changes a folder and says what it did."""

import os
import random
import re
import shutil
from pathlib import Path


def files_of(checkpoint: Path, *, empty: bool = False) -> list[Path]:
    """In the order of their names; those without a byte only if asked for."""
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and (empty or path.stat().st_size))


def kind_of(path: Path, checkpoint: Path) -> str:
    """A file's name in the checkpoint, without what chance has given it."""
    return re.sub(r"[0-9a-f]{32}", "*", path.relative_to(checkpoint).as_posix())


def flip_bit(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_last_byte(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def fill_with_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def delete(path: Path) -> None:
    path.unlink()


ON_FILES = {
    "cut in half": cut_in_half,
    "cut by a byte": cut_last_byte,
    "filled with zeros": fill_with_zeros,
    "deleted": delete,
}


def add_empty_step(checkpoints: Path) -> str:
    """A folder with the name of a newer step, and nothing in it."""
    newest = max(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
    (checkpoints / str(newest + 4)).mkdir()
    return "empty folder of a newer step"


def empty_newest(checkpoints: Path) -> str:
    """The newest checkpoint's folder, emptied."""
    newest = max((path for path in checkpoints.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    shutil.rmtree(newest)
    newest.mkdir()
    return "newest checkpoint emptied"


ON_FOLDERS = (add_empty_step, empty_newest)
