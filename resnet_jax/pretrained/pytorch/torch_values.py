"""Where PyTorch's files have the values of tensors, and the arrays of them."""

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from resnet_jax.pretrained.pytorch.torch_objects import TorchTensor
from resnet_jax.pretrained.stored_tensor import StoredTensor

_CHUNK_BYTES = 2**20


@dataclass
class StorageBytes:
    """Where a file has the bytes of a storage.

    Attributes:
      path: the file.
      key: the storage's.
      start: its first byte in the file.
      size: its bytes.
      checksum: CRC-32 of its bytes, None where the file has none.
    """

    path: Path
    key: str
    start: int
    size: int
    checksum: int | None
    _checked: bool = field(default=False, init=False)

    def read(self, first: int, count: int) -> np.ndarray:
        """So many bytes of it, from the first one; ValueError if the checksum, or the file by now, is another."""
        data = bytearray(count)
        with self.path.open("rb", buffering=0) as file:
            if self.checksum is not None and not self._checked and count < self.size:
                self._check(self._checksum_of_all(file))
            file.seek(self.start + first)
            self._fill(file, memoryview(data))
        if self.checksum is not None and count == self.size:
            self._check(zlib.crc32(data))
        return np.frombuffer(data, np.uint8)

    def _checksum_of_all(self, file: Any) -> int:
        file.seek(self.start)
        checksum, left, chunk = 0, self.size, memoryview(bytearray(_CHUNK_BYTES))
        while left:
            part = chunk[: min(left, _CHUNK_BYTES)]
            self._fill(file, part)
            checksum = zlib.crc32(part, checksum)
            left -= len(part)
        return checksum

    def _fill(self, file: Any, view: memoryview) -> None:
        while view:
            count = file.readinto(view)
            if not count:
                raise ValueError(f"{self.path}: the file ends within storage {self.key[:100]!r}")
            view = view[count:]

    def _check(self, checksum: int) -> None:
        if checksum != self.checksum:
            raise ValueError(
                f"{self.path}: storage {self.key[:100]!r} is damaged: its CRC-32 is {checksum:08x}, the archive says "
                f"{self.checksum:08x}" + ("" if self.checksum else ", as if saved without checksums")
            )
        self._checked = True


def stored_tensor(tensor: TorchTensor, place: StorageBytes) -> StoredTensor:
    """The tensor, whose values are read from the storage's place when they are asked for."""
    dtype = jnp.dtype(tensor.storage.dtype)
    # A size of 1 may have any stride, also one too large for numpy.
    steps = [s * dtype.itemsize if n > 1 else 0 for n, s in zip(tensor.shape, tensor.strides, strict=True)]

    def read() -> np.ndarray:
        if tensor.span == 0:
            return np.empty(tensor.shape, dtype)
        data = place.read(tensor.offset * dtype.itemsize, tensor.span * dtype.itemsize)
        if dtype == np.bool_ and data.max() > 1:
            raise ValueError(f"{place.path}: storage {place.key[:100]!r} has a byte that is neither true nor false")
        values = np.lib.stride_tricks.as_strided(data.view(dtype), tensor.shape, steps)
        return values if values.flags.c_contiguous else values.copy()

    return StoredTensor(tensor.shape, dtype.name, read)
