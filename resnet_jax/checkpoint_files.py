"""The files of a checkpoint: which may be there, what their bytes must be, and what its folder's name says.

In a folder of checkpoints `7` is complete. `7.saving`, and names that Orbax makes from it, is being written, and
`7.deleting` deleted; what a killed process leaves under such a name is removed. `7.damaged` (`7.damaged-2`, ...) was
set aside, and is never removed. A checkpoint gets its step's name last, when its bytes and manifests are on the disk.

A manifest holds the sizes and SHA-256 of the files that one process wrote. Together a checkpoint's manifests, one a
process, name each of its files once. They tell damage, not intent: who can change a file can change its manifest.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from resnet_jax.atomic_files import write_text_atomically

MANIFEST_BYTES = 16 * 2**20
METADATA_BYTES = 64 * 2**20

_STEP = re.compile(r"0|[1-9][0-9]*", re.ASCII)
_UNFINISHED = re.compile(r"[0-9]+\.(saving|deleting|orbax-checkpoint-tmp).*", re.ASCII)
_DAMAGED = re.compile(r"([0-9]+)\.damaged(-[0-9]+)?", re.ASCII)
_SAFE_NAME = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
_MANIFEST = re.compile(r"manifest_[0-9]+\.json", re.ASCII)
_OF_PROCESS = re.compile(r"(?:ocdbt\.)?process_([0-9]+)", re.ASCII)

# A read of so many bytes leaves the training thread the interpreter for long stretches.
_READ_BYTES = 4 * 2**20


class Damage(Exception):
    """A checkpoint is not what was saved; the message names the file and what is wrong with it."""


class _Saved(NamedTuple):
    """What a manifest says of a file."""

    size: int
    sha256: str


def step_folders(directory: Path) -> dict[int, Path]:
    """What has a step's name, whether or not it is sound, by step."""
    return {int(entry.name): entry for entry in _entries(directory) if _STEP.fullmatch(entry.name)}


def damaged_folders(directory: Path) -> list[Path]:
    """What was set aside, by step."""
    named = [(match, entry) for entry in _entries(directory) if (match := _DAMAGED.fullmatch(entry.name))]
    return [entry for _, entry in sorted(named, key=lambda item: (int(item[0][1]), item[1].name))]


def saving_folder(directory: Path, step: int) -> Path:
    """Where a checkpoint is written before it has its step's name."""
    return directory / f"{step}.saving"


def remove_unfinished(directory: Path) -> None:
    """Removes what killed or failed saves and deletions have left."""
    for entry in _entries(directory):
        if _UNFINISHED.fullmatch(entry.name):
            if entry.is_symlink() or not entry.is_dir():
                entry.unlink()
            else:
                shutil.rmtree(entry)


def delete(folder: Path) -> None:
    """Deletes a checkpoint; if that is interrupted, what is left does not look like one."""
    doomed = folder.with_name(folder.name + ".deleting")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def set_aside(folder: Path) -> Path:
    """Renames a damaged checkpoint; returns its new path."""
    number, aside = 1, folder.with_name(folder.name + ".damaged")
    while os.path.lexists(aside):
        number += 1
        aside = folder.with_name(f"{folder.name}.damaged-{number}")
    return folder.rename(aside)


def write_manifest(folder: Path, *, process: int, processes: int) -> None:
    """Puts on the disk the files that one process wrote and, after them, their manifest.

    Args:
      folder: that Orbax has written to the end, on all processes.
      process: whose files: those in Orbax's folders named by it; process 0 has the rest, too.
      processes: how many write.

    Raises:
      Damage: there is what a checkpoint must not hold.
      OSError: a file cannot be read or written.
    """
    listed = {}
    # What other processes write comes and goes meanwhile.
    for name in sorted(_regular_files(folder, lambda name: _is_of(name, process, processes))):
        size, sha256 = _fingerprint(folder / name, sync=True)
        listed[name] = {"size": size, "sha256": sha256}
    manifest: dict[str, Any] = {"process": process, "processes": processes, "files": listed}
    manifest["sha256"] = _own_hash(manifest)
    write_text_atomically(_manifest_path(folder, process), json.dumps(manifest, indent=1))


def has_all_manifests(folder: Path, processes: int) -> bool:
    """Whether every process has written its manifest."""
    return all(_manifest_path(folder, process).is_file() for process in range(processes))


def commit(written: Path, final: Path) -> None:
    """Gives a checkpoint the name of its step, on the disk; its files and manifests are there already."""
    for folder, _, _ in os.walk(written):
        _sync_folder(folder)
    written.rename(final)
    _sync_folder(final.parent)


def find_damage(folder: Path, *, hashed: bool = True) -> str | None:
    """What is wrong with a checkpoint; None if it is as it was saved.

    Names and kinds are checked before anything is opened, so that no link leads out of the folder.

    Args:
      folder: of a checkpoint.
      hashed: read and compare every byte; or else only which files there are, and their sizes.
    """
    try:
        for name, saved in _compare_sizes(folder).items():
            if hashed:
                _compare_bytes(folder, name, saved)
    except Damage as damage:
        return str(damage)
    except OSError as error:
        return f"cannot be read: {error}"
    return None


def read_small_file(folder: Path, name: str) -> bytes | None:
    """A file's contents, which are as they were saved; None if it was not saved.

    Raises:
      Damage: the checkpoint's list of files, or this file, is not as it was saved.
      OSError: it cannot be read.
    """
    saved = _compare_sizes(folder).get(name)
    if saved is None:
        return None
    _compare_bytes(folder, name, saved)
    return (folder / name).read_bytes()


def _entries(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.is_dir() else []


def _manifest_path(folder: Path, process: int) -> Path:
    return folder / f"manifest_{process}.json"


def _owner(name: str, processes: int) -> int:
    """The process that alone writes the file; 0 for what is written for all."""
    for part in name.split("/"):
        match = _OF_PROCESS.fullmatch(part)
        if match and int(match[1]) < processes:
            return int(match[1])
    return 0


def _is_of(name: str, process: int, processes: int) -> bool:
    """Whether it is for the process to list a file; manifests and their drafts list themselves."""
    return not name.startswith("manifest_") and _owner(name, processes) == process


def _regular_files(folder: Path, wanted: Callable[[str], bool] | None = None) -> dict[str, int]:
    """Sizes by relative name, nothing opened, of all files or those wanted."""
    if folder.is_symlink() or not folder.is_dir():
        raise Damage("it is not a folder" if not folder.is_symlink() else "it is a symbolic link")
    sizes, folders = {}, [""]
    while folders:
        parent = folders.pop()
        with os.scandir(folder / parent) as entries:
            for entry in entries:
                name = parent + entry.name
                is_folder = entry.is_dir(follow_symlinks=False)
                if not is_folder and wanted is not None and not wanted(name):
                    continue
                if not _is_safe(entry.name):
                    raise Damage(f"{name!r}: a name may hold only letters, digits, '_', '.' and '-'")
                if is_folder:
                    folders.append(name + "/")
                elif entry.is_file(follow_symlinks=False):
                    sizes[name] = entry.stat(follow_symlinks=False).st_size
                    _check_size(name, sizes[name])
                else:
                    kind = "a symbolic link" if entry.is_symlink() else "neither a file nor a folder"
                    raise Damage(f"{name}: is {kind}")
    return sizes


def _is_safe(name: str) -> bool:
    return _SAFE_NAME.fullmatch(name) is not None and name not in (".", "..")


def _check_size(name: str, size: int) -> None:
    limit = MANIFEST_BYTES if _MANIFEST.fullmatch(name) else METADATA_BYTES
    # Orbax keeps arrays in folders called d, and only there.
    if size > limit and "/d/" not in name:
        raise Damage(f"{name}: has {size} bytes, at most {limit} are read of such a file")


def _compare_sizes(folder: Path) -> dict[str, _Saved]:
    """What was saved, by name; raises Damage unless just these files are there, with their sizes."""
    sizes = _regular_files(folder)
    present = {name for name in sizes if _MANIFEST.fullmatch(name)}
    processes, saved = _read_manifest(folder, 0)
    for process in range(1, processes):
        others, more = _read_manifest(folder, process)
        if others != processes:
            raise Damage(f"manifest_{process}.json: is of {others} processes, not {processes}")
        saved |= more
    manifests = {_manifest_path(folder, process).name for process in range(processes)}
    for name in sorted(saved.keys() - sizes.keys()):
        raise Damage(f"{name}: is missing")
    for name in sorted((sizes.keys() - present - saved.keys()) | (present - manifests)):
        raise Damage(f"{name}: was not there when the checkpoint was saved")
    for name, (size, _) in saved.items():
        if sizes[name] != size:
            raise Damage(f"{name}: has {sizes[name]} bytes, {size} were saved")
    return saved


def _read_manifest(folder: Path, process: int) -> tuple[int, dict[str, _Saved]]:
    """How many processes wrote the checkpoint, and what this one did."""
    path = _manifest_path(folder, process)
    if not path.is_file():
        raise Damage(f"{path.name}: is missing, which lists the files (resnet_jax did not always write it)")
    try:
        manifest = json.loads(path.read_bytes())
        if manifest.pop("sha256") != _own_hash(manifest):
            raise ValueError("its contents are not those that were saved (SHA-256)")
        processes, saved = manifest["processes"], dict(_listed(manifest["files"]))
        if type(processes) is not int or processes <= process or manifest["process"] != process:
            raise ValueError("process or processes")
        if any(_owner(name, processes) != process for name in saved):
            raise ValueError("another process's files")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damage(f"{path.name}: cannot be used as a list of files: {error}") from error
    return processes, saved


def _own_hash(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _listed(files: dict) -> Iterator[tuple[str, _Saved]]:
    for name, entry in files.items():
        size, sha256 = entry["size"], entry["sha256"]
        if not all(map(_is_safe, name.split("/"))) or type(size) is not int or type(sha256) is not str:
            raise ValueError(f"the entry {name!r}")
        yield name, _Saved(size, sha256)


def _compare_bytes(folder: Path, name: str, saved: _Saved) -> None:
    try:
        found = _fingerprint(folder / name)
    except OSError as error:
        raise Damage(f"{name}: cannot be read: {error}") from error
    if found != saved:
        raise Damage(f"{name}: its bytes are not those that were saved (SHA-256)")


def _fingerprint(path: Path, *, sync: bool = False) -> _Saved:
    """Size and SHA-256; with `sync` of what is on the disk by then."""
    digest, size, buffer = hashlib.sha256(), 0, memoryview(bytearray(_READ_BYTES))
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
        if sync:
            os.fsync(file.fileno())
    return _Saved(size, digest.hexdigest())


def _sync_folder(folder: str | os.PathLike) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
