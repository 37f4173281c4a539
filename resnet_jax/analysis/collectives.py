"""What devices send each other: the collectives in the text of a program that XLA has made."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast"
_COLLECTIVE = re.compile(rf"^\s*(?:ROOT )?%?\S+ = (.+?) ({_KINDS})\((.*)$", re.M)
_ARRAY = re.compile(r"\b[a-z]+(\d*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$", re.M)
_ENTRY = re.compile(r"^ENTRY %?([\w.\-]+) ", re.M)
_CALLED = re.compile(r"\b(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
    """One array that devices exchange.

    Attributes:
      kind: "all-reduce", "collective-permute", ... as XLA calls it.
      devices: how many exchange it among each other.
      size: numbers in the array.
      itemsize: bytes of one.
      times: exchanges a step, more than 1 inside a loop.
      call: number of the operation that it is part of; XLA combines several arrays into one.
    """

    kind: str
    devices: int
    size: int
    itemsize: int
    times: int
    call: int


def collectives_of(program: str, devices: int) -> list[Collective]:
    """Reads the text of an optimised program for so many devices.

    Raises:
      RuntimeError: for a collective in a loop of an unknown number of trips.
    """
    times, found = _times_run(program), []
    for call, (computation, match) in enumerate(_calls(program)):
        arrays, kind, rest = match.groups()
        if math.isnan(times[computation]):
            raise RuntimeError(f"{kind} in a loop of an unknown number of trips, {computation}")
        for size, itemsize in _arrays(arrays):
            found.append(Collective(kind, _members(rest, devices), size, itemsize, int(times[computation]), call))
    return found


def narrowed(collectives: Iterable[Collective], divided: str) -> Iterator[Collective]:
    """The collectives as an accelerator has them, which sends bfloat16 as it is.

    Args:
      collectives: of a program that XLA's CPU compiler has optimised, which widens bfloat16 to float32 before.
      divided: text of the same program when it had just been divided among the devices.

    Raises:
      RuntimeError: the two do not have the same arrays.
    """
    narrow: Counter[int] = Counter()
    for _, match in _calls(divided):
        narrow.update(size for size, itemsize in _arrays(match[1]) if itemsize == 2)
    for collective in collectives:
        if narrow[collective.size] > 0 and collective.itemsize == 4:
            narrow[collective.size] -= 1
            collective = collective._replace(itemsize=2)
        yield collective
    if left := +narrow:
        raise RuntimeError(f"bfloat16 arrays of sizes {dict(left)} are exchanged before and not after optimisation")


def _calls(program: str) -> Iterator[tuple[str, re.Match]]:
    """Every collective, with the name of the computation that it is in."""
    starts = [(match.start(), match[1]) for match in _COMPUTATION.finditer(program)]
    position = 0
    for match in _COLLECTIVE.finditer(program):
        while position + 1 < len(starts) and starts[position + 1][0] < match.start():
            position += 1
        yield starts[position][1], match


def _times_run(program: str) -> dict[str, float]:
    """How often each computation runs a step, all trips of the loops around it counted; nan if that is unknown."""
    pieces = _COMPUTATION.split(program)
    bodies = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    entry = _ENTRY.search(program)
    if entry is None:
        raise RuntimeError("the program's text has no ENTRY")
    times: dict[str, float] = defaultdict(float)

    def visit(name: str, count: float) -> None:
        times[name] += count
        for line in bodies[name].splitlines():
            trips, branches = _TRIPS.search(line), _BRANCHES.search(line)
            factor = float(trips[1]) if trips else math.nan if " while(" in line else 1.0
            for inner in _CALLED.findall(line) + (re.findall(r"[\w.\-]+", branches[1]) if branches else []):
                visit(inner, count * factor)

    visit(entry[1], 1.0)
    return times


def _arrays(text: str) -> Iterator[tuple[int, int]]:
    """Size and bytes a number of each array in a type; pred, the one without a width, has one byte."""
    for bits, lengths in _ARRAY.findall(text):
        yield math.prod(int(length) for length in lengths.split(",") if length), int(bits or 8) // 8


def _members(text: str, devices: int) -> int:
    """How many devices exchange among each other, from the operation's attributes in any of XLA's three forms."""
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\S*)? ?\{([^}]*)\}", text):
        lengths = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        # An axis, or a part of it: 'data':(4)2 are two devices, the parts before it being four.
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or lengths[axis]) for axis, part in axes)
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(counted[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(listed[1].split(","))
    if "replica_groups=" in text and "replica_groups={}" not in text:
        raise RuntimeError(f"groups of devices in a form that is not known: {text[:300]}")
    return devices
