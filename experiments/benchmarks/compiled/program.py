"""What a compiled program's text says: its kernels, and the bytes that they read and write."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "s64": 8, "u64": 8, "f64": 8}
# What becomes a kernel or a call of a library's; the rest names, groups or bounds what others made.
_KERNELS = ("fusion", "custom-call", "copy", "reduce", "sort", "transpose", "scatter", "gather", "convolution", "dot")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(?:,|$)")


class Kernels(NamedTuple):
    """Of the entry computation, without the bodies of loops: how many, and bytes of all their operands and results."""

    count: int
    bytes: int


def kernels(text: str) -> Kernels:
    """Counts the kernels of an optimised program in text form; bytes are those of memory if no cache ever helps."""
    sizes: dict[str, int] = {}
    count = total = 0
    for name, shape, operation, operands in _instructions(text):
        sizes[name] = bytes_of(shape)
        if operation in _KERNELS:
            count += 1
            total += sizes[name] + sum(sizes.get(operand, 0) for operand in re.findall(r"%([\w.-]+)", operands))
    return Kernels(count, total)


def bytes_of(shape: str) -> int:
    """Of an array or a tuple of arrays, such as "(f32[2,3]{1,0}, s8[16])"."""
    arrays = re.findall(rf"\b({'|'.join(_BYTES)})\[([\d,]*)\]", shape)
    return sum(_BYTES[dtype] * math.prod(map(int, filter(None, sides.split(",")))) for dtype, sides in arrays)


def _instructions(text: str) -> Iterator[tuple[str, str, str, str]]:
    """Name, shape, operation and operands of each instruction of the entry computation."""
    _, found, entry = text.partition("\nENTRY ")
    if not found:
        raise ValueError("the text has no entry computation")
    for line in entry.splitlines():
        if match := _INSTRUCTION.match(line):
            name, shape, operation, operands = match.groups()
            yield name, shape, operation, operands
