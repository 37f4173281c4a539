"""Reading of PyTorch's files without PyTorch, and without running anything in them.

`torch.save` has written two formats. Since 1.6 it is a ZIP archive: `NAME/data.pkl` holds the values, and each
storage of a tensor's values is an entry `NAME/data/KEY`. Before, it was five pickles in a row (a magic number, the
version of the protocol, properties of the machine, the values, the keys of the storages), then each storage as a
count of 8 bytes and its values.
"""

import io
import os
import zlib
from pathlib import Path
from typing import Any

from resnet_jax.pretrained.pytorch import safe_pickle
from resnet_jax.pretrained.pytorch.safe_pickle import ForbiddenName, describe
from resnet_jax.pretrained.pytorch.stored_zip import StoredEntry, read_directory
from resnet_jax.pretrained.pytorch.torch_objects import CALLS, CONSTANTS, Storages, TorchTensor
from resnet_jax.pretrained.pytorch.torch_values import StorageBytes, stored_tensor
from resnet_jax.pretrained.stored_tensor import StoredTensor

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "model_state", "state_dict_ema", "net")
# Tensors may share a storage, a tied pair say. Real files never come near this, and nothing can ask for much more
# memory than its own size.
_MOST_USES = 2
# Those of 1202 layers are 7,212.
_MOST_TENSORS = 50_000
# An error may quote what a file holds.
_LONGEST_MESSAGE = 1000
_ADVICE = "save the tensors alone, in PyTorch: torch.save(model.state_dict(), path)"


def is_torch(path: str | os.PathLike) -> bool:
    """Whether a file begins as a ZIP archive or a pickle does, which is all that tells PyTorch's files from others."""
    with Path(path).open("rb") as file:
        return file.read(4).startswith((b"PK\3\4", b"\x80"))


def read_torch(path: str | os.PathLike) -> dict[str, StoredTensor]:
    """Finds the state dict of a file that `torch.save` wrote (`.pth`, `.pt`, `.th`, `.bin`), or claims to be one.

    All of the file's structure is checked here; the values of a tensor, and their checksum, when it is read.

    Args:
      path: the file: a state dict, or a dict that has one as "state_dict", "model_state_dict", "model", "model_state",
        "state_dict_ema" or "net", the first of these that there is.

    Returns:
      The tensors by their names, which are as the file has them ("module." of `DataParallel` included), in its order.
      Together they have at most twice the bytes of the file: two may share the same values.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is anything else, damaged, or asks for a function or class beyond those that tensors need; the
        message starts with the path and says what was found where.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ValueError("not a file")
        with path.open("rb") as file:
            return _read(path, file)
    except ForbiddenName as error:
        raise ValueError(f"{path}: {str(error)[:_LONGEST_MESSAGE]}; nothing was run; {_ADVICE}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {str(error)[:_LONGEST_MESSAGE]}") from error


def _read(path: Path, file: io.BufferedReader) -> dict[str, StoredTensor]:
    file_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(512)
    file.seek(0)
    if start.startswith(b"PK"):
        value, places = _read_zip(path, file, file_bytes)
    elif start.startswith(b"\x80"):
        value, places = _read_legacy(path, file, file_bytes)
    elif start[257:262] == b"ustar":
        raise ValueError(f"a tar archive, PyTorch's oldest format, which is not read here; {_ADVICE}")
    else:
        raise ValueError(f"no file of torch.save: it starts with {start[:8]!r}, neither a zip archive nor a pickle")
    tensors = _find_state_dict(value)
    _check_shared(tensors, places)
    return {name: stored_tensor(tensor, places[tensor.storage.key]) for name, tensor in tensors.items()}


def _read_zip(path: Path, file: io.BufferedReader, file_bytes: int) -> tuple[Any, dict[str, StorageBytes]]:
    entries = read_directory(file, file_bytes, _refuse_script)
    roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1 or "/" in roots[0]:
        raise ValueError(f"a zip archive with {len(roots)} entries NAME/data.pkl, no file of torch.save")
    root = f"{roots[0]}/"
    for name in entries:
        if not name.startswith(root):
            raise ValueError(f"the zip archive has {name[:100]!r} outside of its folder {root[:100]!r}")
    if f"{root}byteorder" in entries:
        order = _content(file, entries[f"{root}byteorder"], f"{root}byteorder")
        if order != b"little":
            raise ValueError(f"values are stored in byte order {order[:20]!r}; allowed is b'little'")
    storages = Storages()
    stream = io.BytesIO(_content(file, entries[f"{root}data.pkl"], f"{root}data.pkl"))
    try:
        value = _load(stream, storages)
        if stream.read(1):
            raise ValueError(f"byte {stream.tell() - 1}: something follows the pickle")
    except ValueError as error:
        raise type(error)(f"{root[:100]}data.pkl, {error}") from error
    places = {}
    for key, storage in storages.found.items():
        name = f"{root}data/{key}"
        if name not in entries:
            raise ValueError(f"storage {key[:100]!r} is missing: there is no entry {name[:200]!r}")
        entry = entries[name]
        if entry.size != storage.bytes:
            raise ValueError(
                f"storage {key[:100]!r} should have {storage.values} values of {storage.dtype} in {storage.bytes} "
                f"bytes, the file has {entry.size}"
            )
        places[key] = StorageBytes(path, key, entry.start, entry.size, entry.checksum)
    return value, places


def _refuse_script(name: str) -> None:
    """Of names in a ZIP archive. TorchScript's have some that are compressed, so this comes before that."""
    if name.split("/")[1:2] in (["constants.pkl"], ["code"]):
        raise ValueError(f"an archive of TorchScript (it has {name[:100]!r}), which is a program; {_ADVICE}")


def _content(file: io.BufferedReader, entry: StoredEntry, name: str) -> bytes:
    if entry.size > safe_pickle.MOST_BYTES:
        raise ValueError(f"{name[:100]!r} has {entry.size} bytes; allowed are {safe_pickle.MOST_BYTES}")
    file.seek(entry.start)
    data = file.read(entry.size)
    checksum = zlib.crc32(data)
    if checksum != entry.checksum:
        raise ValueError(
            f"{name[:100]!r} is damaged: its CRC-32 is {checksum:08x}, the archive says {entry.checksum:08x}"
            + ("" if entry.checksum else ", as if saved without checksums")
        )
    return data


def _read_legacy(path: Path, file: io.BufferedReader, file_bytes: int) -> tuple[Any, dict[str, StorageBytes]]:
    magic = safe_pickle.load(file)
    if type(magic) is not int or magic != _MAGIC_NUMBER:
        raise ValueError(f"a pickle that starts with {describe(magic)}, no file of torch.save")
    protocol = safe_pickle.load(file)
    if type(protocol) is not int or protocol != _LEGACY_PROTOCOL:
        raise ValueError(f"version {describe(protocol)} of the format; allowed is {_LEGACY_PROTOCOL}")
    system = safe_pickle.load(file)
    if type(system) is not dict or system.get("little_endian") is not True:
        raise ValueError("values are not stored in little-endian order")
    storages = Storages()
    value, keys = _load(file, storages), safe_pickle.load(file)
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise ValueError("the keys of the storages are no list of texts")
    if sorted(keys) != sorted(storages.found):
        raise ValueError(f"the {len(keys)} storages listed are not the {len(storages.found)} that the tensors are in")
    places, position = {}, file.tell()
    for key in keys:
        storage = storages.found[key]
        file.seek(position)
        count, start = file.read(8), position + 8
        if len(count) < 8 or start + storage.bytes > file_bytes:
            raise ValueError(
                f"the file ends at byte {file_bytes}, within storage {key[:100]!r}, "
                f"which is to have {storage.bytes} bytes from byte {start}"
            )
        if int.from_bytes(count, "little") != storage.values:
            raise ValueError(
                f"storage {key[:100]!r} should have {storage.values} values, the file says "
                f"{int.from_bytes(count, 'little')} at byte {position}"
            )
        places[key] = StorageBytes(path, key, start, storage.bytes, checksum=None)
        position = start + storage.bytes
    if position != file_bytes:
        raise ValueError(f"{file_bytes - position} bytes follow the last storage, from byte {position}")
    return value, places


def _load(stream: io.BufferedIOBase, storages: Storages) -> Any:
    # PyTorch's state dicts have their layers' versions as an attribute.
    return safe_pickle.load(
        stream, calls=CALLS, constants=CONSTANTS, persistent=storages.persistent, dropped_attributes=("_metadata",)
    )


def _find_state_dict(value: Any) -> dict[str, TorchTensor]:
    if type(value) is not dict:
        raise ValueError(f"the file holds {describe(value)}, no state dict; {_ADVICE}")
    where = next((key for key in _STATE_DICT_KEYS if type(value.get(key)) is dict), None)
    found = value if where is None else value[where]
    place = "the file's dict" if where is None else f"the dict {where!r}"
    if not any(isinstance(item, TorchTensor) for item in found.values()):
        names = ", ".join(describe(name) for name in list(found)[:10])
        raise ValueError(f"{place} has no tensors (its keys: {names or 'none'}), so it is no state dict; {_ADVICE}")
    if len(found) > _MOST_TENSORS:
        raise ValueError(f"{place} has {len(found)} tensors; allowed are {_MOST_TENSORS}")
    for name, item in found.items():
        if type(name) is not str or not isinstance(item, TorchTensor):
            raise ValueError(f"{place} has {describe(name)}, which is {describe(item)}; allowed are tensors by name")
    return found


def _check_shared(tensors: dict[str, TorchTensor], places: dict[str, StorageBytes]) -> None:
    to_read, there = sum(tensor.bytes_to_read for tensor in tensors.values()), sum(p.size for p in places.values())
    if to_read > _MOST_USES * there:
        raise ValueError(
            f"{len(tensors)} tensors are views of {to_read} bytes in all, and the storages have {there}; allowed are "
            f"{_MOST_USES} times as many"
        )
