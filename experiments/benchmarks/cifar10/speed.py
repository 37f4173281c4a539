"""Measures the speed of the CIFAR nets on the machine at hand, beside PyTorch's, and writes one record.

    python experiments/benchmarks/cifar10/speed.py --scale=full --output=RECORD.json --readme=README.md

Every row is stored as it ends; --parts makes some of them anew.
"""

import argparse
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from measurements import SIZES, Bench, Row, rows, surroundings
from subjects import BATCH, HERE, REFERENCE
from worker import WorkerFailed

from resnet_jax.atomic_files import write_text_atomically
from resnet_jax.environment import source_digest

sys.path.append(str(HERE.parents[1] / "reliability"))
from marked import publish  # noqa: E402

PARTS = ("a", "b", "c", "d")
NETS = {"cpu": ("cifar_resnet20",), "gpu": ("cifar_resnet20", "cifar_resnet56", "cifar_resnet110")}
_GIBIBYTE = 2**30


class SourceChanged(Exception):
    """What is measured is not what was measured before."""


def digest() -> str:
    """SHA-256, in hex, of all code that is measured or measures."""
    found = hashlib.sha256(source_digest().encode())
    for path in [*sorted(HERE.glob("*.py")), REFERENCE / "pytorch_reference.py"]:
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def make_record(bench: Bench, header: Mapping[str, Any], wanted: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Measures row by row, and gives after each a record that has this row alone.

    A row that fails is left out.

    Raises:
      SourceChanged: somebody has edited the code meanwhile.
    """
    for name, measure in wanted:
        print(f"{name} ...", flush=True)
        try:
            found = measure(bench)
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


def table(record: Mapping[str, Any]) -> str:
    """All tables, in Markdown."""
    entries = record["rows"]
    parts = [_machine(record), _rates([entry for entry in entries if "rates" in entry])]
    parts.append(_starts([entry for entry in entries if "starts" in entry]))
    parts += [_plans(entry) for entry in entries if "plans" in entry]
    return "\n\n".join(filter(None, parts))


def _machine(record: Mapping[str, Any]) -> str:
    devices, cpu, versions = record["devices"], record["cpu"], record["versions"]
    device = "" if devices["platform"] == "cpu" else f"{devices['kind']}, "
    named = ", ".join(f"{name} {versions[name]}" for name in ("python", "jax", "torch") if versions[name])
    return f"{device}{cpu['count']} cores of {cpu['model']}; {named}; batches of {record['config']['batch']} images."


def _rates(entries: Sequence[Mapping[str, Any]]) -> str:
    head = ("row", "subject", "ms a batch", "images/s", "times as long as", "ratio, 95 % interval", "pairs", "wanted")
    lines = [head, ("---", "---", "---:", "---:", "---", "---:", "---:", "---")]
    notes = []
    for entry in entries:
        ratios: dict[str, list] = {}
        for found in entry["ratios"]:
            ratios.setdefault(found["above"], []).append(found)
        for name, found in entry["rates"].items():
            spread = found["batch_seconds"]
            ms = f"{_ms(spread['median'])} ({_ms(spread['min'])} to {_ms(spread['max'])})"
            cells = (entry["row"], name, ms, f"{found['images_per_second']:,.0f}")
            lines += [(*cells, *_ratio(found)) for found in ratios.get(name, [])] or [(*cells, "", "", "", "")]
        notes += [f"{entry['row']}: {note}." for note in entry["notes"]]
    return "\n\n".join([_table(lines), *notes]) if entries else ""


def _ratio(found: Mapping[str, Any]) -> tuple[str, ...]:
    interval = found["interval"]
    ends = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "too few pairs for an interval"
    wanted = ""
    if found["wanted"] is not None:
        wanted = f"at most {found['wanted']}: {'met' if found['median'] <= found['wanted'] else 'not met'}"
    return found["below"], f"{found['median']:.3f} ({ends})", str(found["pairs"]), wanted


def _starts(entries: Sequence[Mapping[str, Any]]) -> str:
    head = ("row", "start", "to the first step, s", "of which tracing", "and compiling", "planned memory, GiB")
    lines = [head, ("---", "---", "---:", "---:", "---:", "---:")]
    for entry in entries:
        lines += [
            (entry["row"], start["name"], f"{start['seconds_to_first_step']:.1f}", *_plan(start))
            for start in entry["starts"]
        ]
    return _table(lines) if entries else ""


def _plans(entry: Mapping[str, Any]) -> str:
    head = ("net", "blocks", "remat", "dtype", "tracing, s", "compiling, s", "planned memory, GiB")
    lines = [head, ("---", "---", "---", "---", "---:", "---:", "---:")]
    for plan in entry["plans"]:
        options = plan["overrides"]
        blocks = "scanned" if options["model.scan"] else "unrolled"
        remat, dtype = "yes" if options.get("model.remat") else "no", options.get("model.dtype", "float32")
        lines.append((plan["net"], blocks, remat, dtype, *_plan(plan)))
    guess = entry["extrapolated"]
    return (
        f"{_table(lines)}\n\nThe seconds of unrolled compilation grow as the layers to the power of "
        f"{guess['exponent']:.2f} here. {guess['size']:,} layers were not tried: by extrapolation they would take "
        f"{guess['value'] / 60:,.0f} minutes."
    )


def _plan(plan: Mapping[str, Any]) -> tuple[str, str, str]:
    return (
        f"{plan['trace_seconds']:.1f}",
        f"{plan['compile_seconds']:.1f}",
        f"{plan['planned_bytes'] / _GIBIBYTE:.2f}",
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f}" if seconds < 0.1 else f"{1000 * seconds:,.0f}"


def _table(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    flags = parse_flags(argv)
    machine = surroundings()
    platform = machine["devices"]["platform"]
    nets = flags.nets.split(",") if flags.nets else NETS.get(platform, NETS["gpu"])
    header = {"config": {"scale": flags.scale, "batch": BATCH, "sizes": SIZES[flags.scale]._asdict()}}
    # As JSON has it, to be compared with what is stored.
    header = json.loads(json.dumps({**header, **machine, "source": digest()}))
    record, wanted = {**header, "rows": []}, list(rows(flags.parts.split(","), nets))
    if flags.output.is_file():
        record = with_rows(json.loads(flags.output.read_text(encoding="utf-8")), record)
    with tempfile.TemporaryDirectory(prefix="speed_") as folder:
        bench = Bench(Path(folder), SIZES[flags.scale], machine)
        for new in make_record(bench, header, wanted):
            record = with_rows(record, new)
            write_text_atomically(flags.output, json.dumps(record, indent=1, allow_nan=False) + "\n")
    print(table(record))
    if flags.readme:
        publish(flags.readme, "speed.py", table(record))
    return int(not {name for name, _ in wanted} <= {entry["row"] for entry in record["rows"]})


def parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--parts", default=",".join(PARTS), help="some of %(default)s")
    parser.add_argument("--nets", help="of part a; the first is that of b and c (by device)")
    parser.add_argument("--scale", choices=tuple(SIZES), default="small", help="how much is measured (%(default)s)")
    help = "the record's file; rows of the same code, machine and scale in it stay, or are made anew"
    parser.add_argument("--output", type=Path, required=True, help=help)
    parser.add_argument("--readme", type=Path, help="whose tables are made anew")
    flags = parser.parse_args(argv)
    if unknown := set(flags.parts.split(",")) - set(PARTS):
        parser.error(f"--parts: no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return flags


if __name__ == "__main__":
    raise SystemExit(main())
