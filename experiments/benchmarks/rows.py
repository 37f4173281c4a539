"""Rows of a record that is made in parts: what may go into one record, and that nobody edits the code meanwhile."""

import hashlib
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from worker import WorkerFailed

from resnet_jax.environment import source_digest

# Its name, and what gives the rest of it.
Row = tuple[str, Callable[[], dict[str, Any]]]
# Its function takes `until`, the end of the time by `time.monotonic`, and `whole`, to fail rather than give less.
TimedRow = tuple[str, Callable[..., dict[str, Any]]]


class SourceChanged(Exception):
    """What is measured is not what was measured before."""


def digest(paths: Iterable[Path]) -> str:
    """SHA-256, in hex, of the library and of these files: all code that is measured or measures."""
    found = hashlib.sha256(source_digest().encode())
    for path in paths:
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def make_record(
    header: Mapping[str, Any], wanted: Iterable[Row], digest: Callable[[], str]
) -> Iterator[dict[str, Any]]:
    """Measures row by row, and gives after each a record that has this row alone.

    A row that fails is left out.

    Args:
      header: the record without its rows; its `source` is what `digest` gives.
      wanted: names of rows and functions that give what is in them.
      digest: of all code that is measured or measures.

    Raises:
      SourceChanged: somebody has edited the code meanwhile.
    """
    for name, measure in wanted:
        print(f"{name} ...", flush=True)
        try:
            found = measure()
        except WorkerFailed as error:
            print(f"{name} is left out: {error}", flush=True)
            continue
        if digest() != header["source"]:
            raise SourceChanged("source files were changed while they were measured; begin anew")
        yield dict(header) | {"rows": [{"row": name, **found}]}


def with_rows(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the rows of another in place of its own, or added.

    Raises:
      ValueError: they were not made of the same code on the same machine at the same scale.
    """
    differing = [name for name in {**old, **new} if name != "rows" and old.get(name) != new.get(name)]
    if differing:
        raise ValueError(f"the record there has another {', '.join(differing)}; give --output another name")
    anew = {entry["row"] for entry in new["rows"]}
    kept = [entry for entry in old["rows"] if entry["row"] not in anew]
    return dict(new) | {"rows": sorted([*kept, *new["rows"]], key=_place)}


def _place(entry: Mapping[str, Any]) -> list[int | str]:
    """Names in order, and numbers in them by size."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", entry["row"])]


def in_time(found: Sequence[TimedRow], deadline: float = math.inf) -> Iterator[Row]:
    """Rows one by one, as long as there is time for another like the longest yet.

    The first is begun whatever the time, and may have fewer rounds than it should, so that the same command again
    always brings something new.
    """
    longest, first = 0.0, True
    for name, measure in found:
        begun = time.monotonic()
        if not first and begun + longest > deadline:
            print(f"there is no time for {name}; the same command goes on with it", flush=True)
            return
        yield name, partial(measure, until=deadline, whole=not first)
        longest, first = max(longest, time.monotonic() - begun), False
