"""Reading of safetensors files, which may be from anywhere, by the format's own library."""

import json
import math
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from resnet_jax.pretrained.stored_tensor import StoredTensor

# 6,000 tensors, those of 1202 layers one by one, take 0.7 MB, and the longest description of a net 4 MB.
_LARGEST_HEADER_BYTES = 16 * 2**20
_DTYPES = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"{kind}{bits}": f"{name}{bits}" for kind, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)},
    "BF16": "bfloat16",
    "BOOL": "bool",
}


def is_safetensors(path: str | os.PathLike) -> bool:
    """Whether a file begins as one of the format does: the length of a JSON object, then the object."""
    with Path(path).open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= Path(path).stat().st_size


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Reads what a file holds, but no tensor's values yet.

    Returns:
      The tensors by name, and the metadata.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is none of the format, is damaged, or holds values of an unusual dtype; the path is not named.
    """
    path = Path(path)
    data_start = 8 + _header_length(path)
    try:
        with safe_open(path, framework="np") as file:
            metadata, names = file.metadata() or {}, file.keys()
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    # What the library has checked; it does not give the offsets away. Values are read at them, since the pages of its
    # memory map would count as this process's memory, as much again as the tensors take.
    with path.open("rb") as file:
        file.seek(8)
        header = json.loads(file.read(data_start - 8))
    return {name: _tensor(path, name, header[name], data_start) for name in names}, metadata


def _tensor(path: Path, name: str, entry: dict[str, Any], data_start: int) -> StoredTensor:
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise ValueError(f"tensor {name!r} is of dtype {entry['dtype']}; allowed: {', '.join(_DTYPES)}")
    shape, offset = tuple(entry["shape"]), data_start + entry["data_offsets"][0]

    def read() -> np.ndarray:
        values = np.fromfile(path, jnp.dtype(dtype).newbyteorder("<"), count=math.prod(shape), offset=offset)
        if values.size != math.prod(shape):
            raise ValueError(f"tensor {name!r} is cut off: the file was changed while it was read")
        return values.reshape(shape)

    return StoredTensor(shape, dtype, read)


def _header_length(path: Path) -> int:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError(f"the file has {size} bytes, its header claims {length}: it is cut off or of another kind")
    if length > _LARGEST_HEADER_BYTES:
        raise ValueError(f"the header has {length} bytes; allowed are {_LARGEST_HEADER_BYTES}")
    return length
