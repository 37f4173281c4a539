"""What a compiled program costs, known before it runs: kernels, the bytes that they move, the memory that it plans."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from jax.stages import Compiled

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "s64": 8, "u64": 8, "f64": 8}
# What becomes a kernel or a call of a library's; the rest names, groups or bounds what others made.
_KERNELS = ("fusion", "custom-call", "copy", "reduce", "sort", "transpose", "scatter", "gather", "convolution", "dot")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(?:,|$)")
# By the names that XLA's GPU compiler gives, a fusion's after what it ends in; the first that fits.
_KINDS = {
    "convolutions": re.compile(r"conv(?!ert)"),
    "copies": re.compile(r"copy|transpose"),
    "reductions": re.compile(r"reduce"),
    "others": re.compile(""),
}


@dataclass(frozen=True)
class Kernels:
    """Of the entry computation, without the bodies of loops.

    Attributes:
      kinds: how many are convolutions, copies (transposes, too), reductions and others.
      bytes: of all operands and results, which is what memory moves if no cache ever helps.
    """

    kinds: dict[str, int]
    bytes: int

    @property
    def count(self) -> int:
        """Of all kinds."""
        return sum(self.kinds.values())


def kernels(text: str) -> Kernels:
    """Counts the kernels of an optimised program in text form; ValueError if it has no entry computation."""
    sizes: dict[str, int] = {}
    found: Counter[str] = Counter()
    total = 0
    for name, shape, operation, operands in _instructions(text):
        sizes[name] = bytes_of(shape)
        if operation in _KERNELS:
            found[next(kind for kind, pattern in _KINDS.items() if pattern.search(name))] += 1
            total += sizes[name] + sum(sizes.get(operand, 0) for operand in re.findall(r"%([\w.-]+)", operands))
    return Kernels({kind: found[kind] for kind in _KINDS}, total)


def bytes_of(shape: str) -> int:
    """Of an array or a tuple of arrays, such as "(f32[2,3]{1,0}, s8[16])"."""
    arrays = re.findall(rf"\b({'|'.join(_BYTES)})\[([\d,]*)\]", shape)
    return sum(_BYTES[dtype] * math.prod(map(int, filter(None, sides.split(",")))) for dtype, sides in arrays)


def planned_bytes(compiled: Compiled) -> int:
    """Memory of one device while the program runs: arguments, results that take none of theirs, temporary buffers."""
    plan = compiled.memory_analysis()
    assert plan is not None
    in_and_out = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return in_and_out + plan.temp_size_in_bytes


def step_bytes(compiled: Compiled) -> float:
    """Bytes that its kernels read and write, as if no cache held anything; of a loop, of one turn."""
    # Not every compiler counts them.
    costs = compiled.cost_analysis()
    return costs["bytes accessed"] if costs else float(kernels(compiled.as_text() or "").bytes)


def _instructions(text: str) -> Iterator[tuple[str, str, str, str]]:
    """Name, shape, operation and operands of each instruction of the entry computation."""
    _, found, entry = text.partition("\nENTRY ")
    if not found:
        raise ValueError("the text has no entry computation")
    for line in entry.splitlines():
        if match := _INSTRUCTION.match(line):
            name, shape, operation, operands = match.groups()
            yield name, shape, operation, operands
