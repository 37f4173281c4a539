"""Measures the speed of the CIFAR nets on the machine at hand, beside PyTorch's, and writes one record.

    python experiments/benchmarks/cifar10/speed.py --scale=full --output=RECORD.json --readme=README.md --minutes=9

Every row is stored as it ends; rows that are there already are skipped, so that the same command again goes on.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measurements import SCRIPT, SIZES, Bench, rows
from subjects import BATCH, HERE, REFERENCE

from resnet_jax.atomic_files import write_text_atomically
from resnet_jax.training.start_times import START_PARTS

sys.path += [str(HERE.parent), str(HERE.parents[1] / "reliability")]
import rate_tables  # noqa: E402
from marked import publish  # noqa: E402
from rows import digest, in_time, make_record, with_rows  # noqa: E402
from worker import surroundings  # noqa: E402

PARTS = ("a", "b", "c", "d")
NETS = {"cpu": ("cifar_resnet20",), "gpu": ("cifar_resnet20", "cifar_resnet56", "cifar_resnet110")}
_GIBIBYTE = 2**30


def code_digest() -> str:
    """Of all code that is measured or measures."""
    own = [path for folder in (HERE, HERE.parent) for path in sorted(folder.glob("*.py"))]
    return digest([*own, REFERENCE / "pytorch_reference.py"])


def table(record: Mapping[str, Any]) -> str:
    """All tables, in Markdown."""
    entries = record["rows"]
    machine = f"{rate_tables.machine(record)}; batches of {record['config']['batch']} images."
    parts = [machine, rate_tables.rates([entry for entry in entries if "rates" in entry])]
    parts.append(_starts([entry for entry in entries if "starts" in entry]))
    parts += [_plans(entry) for entry in entries if "plans" in entry]
    return "\n\n".join(filter(None, parts))


def _starts(entries: Sequence[Mapping[str, Any]]) -> str:
    head = ("row", "start", "to the first steps, s", *(f"{part.replace('_', ' ')}, s" for part in START_PARTS))
    lines = [head, ("---", "---", *("---:" for _ in head[2:]))]
    for entry in entries:
        for start in entry["starts"]:
            seconds = start["seconds"]
            each = (f"{seconds[part]:.1f}" for part in START_PARTS)
            lines.append((entry["row"], start["name"], f"{sum(seconds.values()):.1f}", *each))
    return rate_tables.markdown(lines) if entries else ""


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
        f"{rate_tables.markdown(lines)}\n\nThe seconds of unrolled compilation grow as the layers to the power of "
        f"{guess['exponent']:.2f} here. {guess['size']:,} layers were not tried: by extrapolation they would take "
        f"{guess['value'] / 60:,.0f} minutes."
    )


def _plan(plan: Mapping[str, Any]) -> tuple[str, str, str]:
    return (
        f"{plan['trace_seconds']:.1f}",
        f"{plan['compile_seconds']:.1f}",
        f"{plan['planned_bytes'] / _GIBIBYTE:.2f}",
    )


def main(argv: Sequence[str] | None = None) -> int:
    begun = time.monotonic()
    flags = parse_flags(argv)
    machine = surroundings(SCRIPT)
    platform = machine["devices"]["platform"]
    nets = flags.nets.split(",") if flags.nets else NETS.get(platform, NETS["gpu"])
    header = {"config": {"scale": flags.scale, "batch": BATCH, "sizes": SIZES[flags.scale]._asdict()}}
    # As JSON has it, to be compared with what is stored.
    header = json.loads(json.dumps({**header, **machine, "source": code_digest()}))
    record = {**header, "rows": []}
    if flags.output.is_file():
        record = with_rows(json.loads(flags.output.read_text(encoding="utf-8")), record)
    with tempfile.TemporaryDirectory(prefix="speed_") as folder:
        bench = Bench(Path(folder), SIZES[flags.scale], machine)
        wanted = rows(bench, flags.parts.split(","), nets)
        missing = [row for row in wanted if row[0] not in {entry["row"] for entry in record["rows"]}]
        for new in make_record(header, in_time(missing, begun + 60 * flags.minutes), code_digest):
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
    help = "the record's file; rows in it are skipped, and must be of the same code, machine and scale"
    parser.add_argument("--output", type=Path, required=True, help=help)
    parser.add_argument("--readme", type=Path, help="whose tables are made anew")
    help = "begin no row that would take longer than these; the same command again goes on (no limit)"
    parser.add_argument("--minutes", type=float, default=math.inf, help=help)
    flags = parser.parse_args(argv)
    if unknown := set(flags.parts.split(",")) - set(PARTS):
        parser.error(f"--parts: no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return flags


if __name__ == "__main__":
    raise SystemExit(main())
