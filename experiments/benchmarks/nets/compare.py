"""Times this library's training steps, inference and compilation beside what one would use instead, into one record.

    python experiments/benchmarks/nets/compare.py --scale=full --output=RECORD.json --readme=README.md --minutes=9

Every row is stored as it ends; rows that are there already are skipped, so that the same command again goes on.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flax_trainer import NETS as FLAX_NETS
from measurements import HERE, MODES, SCRIPT, SIZES, WHATS, Bench, Setting

from resnet_jax.atomic_files import write_text_atomically

REFERENCE = HERE.parents[1] / "cifar10" / "pytorch_reference.py"
sys.path += [str(HERE.parent), str(HERE.parents[1] / "reliability")]
import rate_tables  # noqa: E402
from marked import publish  # noqa: E402
from rows import digest, in_time, make_record, with_rows  # noqa: E402
from worker import surroundings  # noqa: E402

_MODES_OF_CPU = ("eager", "torch.compile")
# Of an ImageNet net on a CPU, on other devices, and of one for CIFAR.
_CPU_BATCHES, _CPU_BATCH, _BATCH, _CIFAR_BATCH = {"resnet18": 32}, 16, 256, 128


def code_digest() -> str:
    """Of all code that is measured or measures."""
    return digest([*(path for folder in (HERE, HERE.parent) for path in sorted(folder.glob("*.py"))), REFERENCE])


def settings_of(flags: argparse.Namespace, platform: str) -> list[Setting]:
    """What the flags ask for, or what fits the devices."""
    dtype = flags.dtype or ("float32" if platform == "cpu" else "bfloat16")
    nets, found = flags.nets.split(","), []
    sizes = [int(size) for size in flags.batch_sizes.split(",")] if flags.batch_sizes else [None] * len(nets)
    batches = dict(zip(nets, sizes, strict=True))
    for what in flags.what.split(","):
        for net in flags.compiled.split(",") if what == "compile" else nets:
            batch = batches.get(net) or default_batch(net, platform)
            side = 32 if net.startswith("cifar_") else flags.image_size
            found.append(Setting(what, net, batch, side, dtype))
    return found


def default_batch(net: str, platform: str) -> int:
    """Images of a step."""
    if net.startswith("cifar_"):
        return _CIFAR_BATCH
    return _CPU_BATCHES.get(net, _CPU_BATCH) if platform == "cpu" else _BATCH


def table(record: Mapping[str, Any]) -> str:
    """All tables, in Markdown."""
    entries = record["rows"]
    timed = [entry for entry in entries if "rates" in entry]
    compiled = [entry for entry in entries if "compilations" in entry]
    parts = [f"{rate_tables.machine(record)}.", rate_tables.rates(timed), _compilations(compiled), _settings(entries)]
    return "\n\n".join(filter(None, parts))


def _compilations(entries: Sequence[Mapping[str, Any]]) -> str:
    head = ("row", "trainer", "tracing, s", "compiling, s", "compiling, ratio", "both, ratio", "processes", "wanted")
    lines = [head, ("---", "---", "---:", "---:", "---:", "---:", "---:", "---")]
    for entry in entries:
        for name, found in entry["compilations"].items():
            seconds = [_spread([one[key] for one in found]) for key in ("trace_seconds", "compile_seconds")]
            ratios = [rate_tables.ratio(each) for each in entry["ratios"] if each["above"] == name]
            compared = (ratios[0][1], ratios[1][1]) if ratios else ("", "")
            lines.append((entry["row"], name, *seconds, *compared, str(len(found)), ratios[0][-1] if ratios else ""))
    return rate_tables.markdown(lines) if entries else ""


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"


def _settings(entries: Sequence[Mapping[str, Any]]) -> str:
    """Of the comparators, a line each."""
    lines = {}
    for entry in entries:
        said = [*entry.get("rates", {}).items()]
        said += [(name, one) for name, found in entry.get("compilations", {}).items() for one in found]
        for name, found in said:
            if settings := found.get("settings"):
                lines[f"{name}: {', '.join(f'{key} {value}' for key, value in settings.items())}."] = None
    return "\n".join(f"- {line}" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    begun = time.monotonic()
    flags = parse_flags(argv)
    machine = surroundings(SCRIPT)
    platform = machine["devices"]["platform"]
    modes = (
        flags.modes.split(",")
        if flags.modes
        else [mode for mode in MODES if platform != "cpu" or mode in _MODES_OF_CPU]
    )
    size = SIZES[flags.scale]
    config = {"scale": flags.scale, "size": size._asdict(), "modes": modes}
    # As JSON has it, to be compared with what is stored.
    header = json.loads(json.dumps({"config": config, **machine, "source": code_digest()}))
    record = {**header, "rows": []}
    if flags.output.is_file():
        record = with_rows(json.loads(flags.output.read_text(encoding="utf-8")), record)
    found = Bench(size, modes, platform).rows(settings_of(flags, platform))
    missing = [row for row in found if row[0] not in {entry["row"] for entry in record["rows"]}]
    for new in make_record(header, in_time(missing, begun + 60 * flags.minutes), code_digest):
        record = with_rows(record, new)
        write_text_atomically(flags.output, json.dumps(record, indent=1, allow_nan=False) + "\n")
    print(table(record))
    if flags.readme:
        publish(flags.readme, "compare.py", table(record))
    return int(not {name for name, _ in found} <= {entry["row"] for entry in record["rows"]})


def parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    help = "that are trained and tested: torchvision's resnet18 to resnet152, or nets for CIFAR (%(default)s)"
    parser.add_argument("--nets", default="resnet18,resnet50", help=help)
    parser.add_argument("--compiled", default="resnet152", help="nets whose training step is compiled (%(default)s)")
    parser.add_argument("--batch_sizes", help="images of a step, one for each of --nets (by net and device)")
    parser.add_argument("--image_size", type=int, default=224, help="pixels, but 32 for CIFAR (%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="(float32 on a CPU, else bfloat16)")
    parser.add_argument("--what", default=",".join(WHATS), help="some of %(default)s")
    help = f"of PyTorch, some of {', '.join(MODES)} (on a CPU without CUDA graphs)"
    parser.add_argument("--modes", help=help)
    parser.add_argument("--scale", choices=tuple(SIZES), default="small", help="how much is measured (%(default)s)")
    help = "the record's file; rows in it are skipped, and must be of the same code, machine, scale and modes"
    parser.add_argument("--output", type=Path, required=True, help=help)
    parser.add_argument("--readme", type=Path, help="whose tables are made anew")
    help = "begin no row that would take longer than these; the same command again goes on (no limit)"
    parser.add_argument("--minutes", type=float, default=math.inf, help=help)
    flags = parser.parse_args(argv)
    for name, known in (("what", WHATS), ("modes", MODES), ("compiled", FLAX_NETS)):
        if unknown := set((getattr(flags, name) or "").split(",")) - {*known, ""}:
            parser.error(f"--{name}: no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if flags.batch_sizes and flags.batch_sizes.count(",") != flags.nets.count(","):
        parser.error(f"--batch_sizes={flags.batch_sizes}: give one for each of --nets={flags.nets}")
    return flags


if __name__ == "__main__":
    raise SystemExit(main())
