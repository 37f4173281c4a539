"""Writes the two formats of PyTorch's files by hand, also in ways that PyTorch never would."""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
PROTOCOL = b"\x80\x02M\xe9\x03."


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def name(full_name: str) -> bytes:
    module, _, last = full_name.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def row(*items: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(items) + b"t"


def mapping(items: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def call(full_name: str, *arguments: bytes) -> bytes:
    return name(full_name) + row(*arguments) + b"R"


def storage(key: str = "0", values: int = 6, kind: str = "torch.FloatStorage") -> bytes:
    return row(text("storage"), name(kind), text(key), text("cpu"), number(values)) + b"Q"


def tensor(
    key: str = "0",
    values: int = 6,
    shape: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
    offset: int = 0,
    kind: str = "torch.FloatStorage",
) -> bytes:
    sizes, steps = row(*map(number, shape)), row(*map(number, strides))
    hooks = call("collections.OrderedDict")
    return call(
        "torch._utils._rebuild_tensor_v2", storage(key, values, kind), number(offset), sizes, steps, b"\x89", hooks
    )


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def count_up(values: int = 6) -> bytes:
    return np.arange(values, dtype="<f4").tobytes()


def write_zip(
    path: Path, body: bytes, storages: Mapping[str, bytes] | None = None, entries: Mapping[str, bytes] | None = None
) -> Path:
    """A file with the pickle of `body`, and storage "0" of six values unless others are given."""
    storages = {"0": count_up()} if storages is None else storages
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(body))
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        for entry, data in ({"archive/byteorder": b"little"} if entries is None else entries).items():
            archive.writestr(entry, data)
    return path


def legacy_bytes(body: bytes, storages: Mapping[str, bytes] | None = None, keys: list[str] | None = None) -> bytes:
    storages = {"0": count_up()} if storages is None else storages
    listed = b"](" + b"".join(map(text, storages if keys is None else keys)) + b"e"
    system = pickled(mapping({"little_endian": b"\x88"}))
    data = b"".join(struct.pack("<q", len(data) // 4) + data for data in storages.values())
    return MAGIC + PROTOCOL + system + pickled(body) + pickled(listed) + data
