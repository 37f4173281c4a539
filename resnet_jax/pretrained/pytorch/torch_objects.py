"""What the names in PyTorch's files mean: storages of values of one dtype, and tensors that are views of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from resnet_jax.pretrained.pytorch.safe_pickle import describe, set_item

# Storage types, as `torch.save` names them whatever device they were on.
DTYPES = {
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.DoubleStorage": "float64",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}

_MOST_DIMENSIONS = 8
_LARGEST = 2**63 - 1


@dataclass(frozen=True)
class StorageType:
    """What a name such as "torch.FloatStorage" stands for."""

    dtype: str


@dataclass(frozen=True)
class Storage:
    """Values of one dtype in a row, which several tensors may view; the file has them under the key."""

    key: str
    dtype: str
    values: int

    @property
    def bytes(self) -> int:
        """All values'."""
        return self.values * jnp.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class TorchTensor:
    """A view of a storage; offset and strides count values. It has been checked to lie in the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def values(self) -> int:
        """How many it has."""
        return math.prod(self.shape)

    @property
    def span(self) -> int:
        """How many of the storage's values there are from its first to its last."""
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)) if self.values else 0

    @property
    def bytes_to_read(self) -> int:
        """What making the array takes: its own bytes, or the storage's from its first to its last value if more."""
        return max(self.values, self.span) * jnp.dtype(self.storage.dtype).itemsize


def make_dict(arguments: tuple) -> dict:
    """`collections.OrderedDict`: without arguments, or, by Python 2, with a list of pairs."""
    if len(arguments) > 1 or (arguments and type(arguments[0]) is not list):
        raise ValueError("allowed are no arguments or one list of pairs")
    made: dict = {}
    pairs = arguments[0] if arguments else []
    items = pairs.copy()
    # It is used up, since a pickle could ask in a few bytes for many copies of one long list.
    pairs.clear()
    for pair in items:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError(f"an item is {describe(pair)}, no pair of key and value")
        set_item(made, *pair)
    return made


def make_size(arguments: tuple) -> tuple:
    """`torch.Size`."""
    if len(arguments) != 1 or type(arguments[0]) is not tuple:
        raise ValueError("allowed is one tuple")
    return arguments[0]


def make_tensor(arguments: tuple) -> TorchTensor:
    """`torch._utils._rebuild_tensor` and, with two more arguments that are about training, `_rebuild_tensor_v2`."""
    if len(arguments) not in (4, 6):
        raise ValueError(f"{len(arguments)} arguments; allowed are 4 or 6")
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, Storage):
        raise ValueError(f"the storage is {describe(storage)}")
    if type(shape) is not tuple or type(strides) is not tuple or not len(shape) == len(strides) <= _MOST_DIMENSIONS:
        raise ValueError(f"size and strides must be two tuples of the same length, at most {_MOST_DIMENSIONS}")
    for what, numbers in (("offset", (offset,)), ("size", shape), ("stride", strides)):
        for number in numbers:
            if type(number) is not int or not 0 <= number <= _LARGEST:
                raise ValueError(f"the {what} {describe(number)} must be a whole number from 0 to {_LARGEST}")
    tensor = TorchTensor(storage, offset, shape, strides)
    if tensor.values == 0 and math.prod(max(n, 1) for n in shape) > 2**31:
        raise ValueError(f"a tensor of shape {shape} is empty, and its other sizes are too large")
    if tensor.values and max(offset + tensor.span, tensor.values) > storage.values:
        raise ValueError(
            f"a tensor of shape {shape}, offset {offset} and strides {strides} has {tensor.values} values, the last of "
            f"them number {offset + tensor.span - 1}; storage {storage.key[:100]!r} has {storage.values}"
        )
    return tensor


def make_parameter(arguments: tuple) -> TorchTensor:
    """`torch._utils._rebuild_parameter`."""
    if len(arguments) != 3 or not isinstance(arguments[0], TorchTensor):
        raise ValueError("allowed are three arguments, the first of them a tensor")
    return arguments[0]


CALLS: dict[str, Callable[[tuple], Any]] = {
    "collections.OrderedDict": make_dict,
    "torch.Size": make_size,
    "torch._utils._rebuild_tensor": make_tensor,
    "torch._utils._rebuild_tensor_v2": make_tensor,
    "torch._utils._rebuild_parameter": make_parameter,
}
CONSTANTS = {name: StorageType(dtype) for name, dtype in DTYPES.items()}


class Storages:
    """All storages that a pickle speaks of, by key."""

    def __init__(self) -> None:
        self.found: dict[str, Storage] = {}

    def persistent(self, value: Any) -> Storage:
        """The storage that a persistent id names: ("storage", type, key, device, values), in old files with None."""
        if type(value) is not tuple or len(value) not in (5, 6) or type(value[0]) is not str or value[0] != "storage":
            raise ValueError(f"a persistent id is {describe(value)}; allowed is ('storage', type, key, device, values)")
        _, kind, key, _, values = value[:5]
        if len(value) == 6 and value[5] is not None:
            raise ValueError("a storage is a view of another one, which is not read here")
        if not isinstance(kind, StorageType):
            raise ValueError(f"a storage's type is {describe(kind)}; allowed: {', '.join(DTYPES)}")
        if type(key) is not str or type(values) is not int or not 0 <= values <= _LARGEST:
            raise ValueError(f"a storage has the key {describe(key)} and {describe(values)} values")
        storage = Storage(key, kind.dtype, values)
        if self.found.setdefault(key, storage) != storage:
            raise ValueError(
                f"storage {key[:100]!r} is {self.found[key].dtype} with {self.found[key].values} values and "
                f"also {kind.dtype} with {values}"
            )
        return storage
