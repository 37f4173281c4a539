"""Measures what nets cost to train and to test, and stores it row by row; stopped, it goes on with the next row.

--scale=small: few images at a time, for two cores. full: one accelerator, bfloat16.

--of=EXPERIMENT measures the nets of an experiment's records instead, at their image and batch size, and puts a
costs.json into its folder, from which `resnet-jax report` fills columns beside the errors.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from ml_collections import ConfigDict

from resnet_jax import load_config
from resnet_jax.analysis.costs import FILE, net_of
from resnet_jax.atomic_files import write_text_atomically
from resnet_jax.benchmark.costs import cost_of
from resnet_jax.benchmark.measuring import surroundings
from resnet_jax.config_files import from_json
from resnet_jax.environment import source_digest
from resnet_jax.records import read_record

HERE = Path(__file__).parent
# Batch norm over the whole batch, whatever its size, and a rate that any batch size has.
ANY_BATCH = {"model.bn_group_size": None, "model.shortcut": None, "model.stride_in": None}
IMAGENET = {**ANY_BATCH, "schedule.warmup": "none", "schedule.warmup_start": 0.0, "schedule.warmup_duration": 0}
DEEPEST = {"model.scan": True, "model.remat": True}


def config_of(name: str, shortcut: str | None, batch: int, dtype: str) -> ConfigDict:
    reference, common = ("cifar10", ANY_BATCH) if name.startswith("cifar_") else ("imagenet:goyal90,resnet50", IMAGENET)
    own = {"model.name": name, "model.shortcut": shortcut, "model.dtype": dtype}
    own |= {"train.batch_size": batch, "evaluate.batch_size": batch}
    return load_config(reference, {**common, **own, **(DEEPEST if name == "cifar_resnet1202" else {})})


def wanted(scale: str) -> list[ConfigDict]:
    """The paper's nets with their own shortcuts, and what other options make of some (small) or all (full) of them."""
    small = scale == "small"
    depths, cifar_depths = (18, 34, 50, 101, 152), (20, 32, 44, 56, 110)
    varied = ((18, 50), (20, 56)) if small else (depths, cifar_depths)
    batch, cifar_batch, deepest_batch, dtype = (4, 32, 4, "float32") if small else (64, 128, 32, "bfloat16")
    found = [
        (f"resnet{depth}", option, batch) for depth in depths for option in "BAC" if option == "B" or depth in varied[0]
    ]
    found += [
        (f"cifar_resnet{depth}", option, cifar_batch)
        for depth in cifar_depths
        for option in "ABC"
        if option == "A" or depth in varied[1]
    ]
    plain = [(f"plain{depth}", None, batch) for depth in (18, 34)] + [("cifar_plain20", None, cifar_batch)]
    nets = [*found, *plain, ("cifar_resnet1202", "A", deepest_batch)]
    return [config_of(*net, dtype) for net in nets]


def of_experiment(folder: Path) -> list[ConfigDict]:
    """A config for each net that the experiment's records have."""
    found: dict[str, ConfigDict] = {}
    for path in sorted((folder / "records").glob("*.json")):
        config = read_record(path)["config"]
        found.setdefault(json.dumps(net_of(config), sort_keys=True), from_json(json.dumps(config)))
    return list(found.values())


def missing(configs: Sequence[ConfigDict], rows: Sequence[Mapping[str, Any]]) -> Iterator[ConfigDict]:
    there = [row["net"] for row in rows]
    yield from (config for config in configs if net_of(config.to_dict()) not in there)


def measure_all(configs: Sequence[ConfigDict], output: Path, *, minutes: float, windows: int, seconds: float) -> bool:
    """Adds the rows that the file lacks; False where there was no time for all."""
    begun, longest = time.monotonic(), 0.0
    header = {**surroundings(configs[0].model.dtype), "source": source_digest()}
    record = json.loads(output.read_text()) if output.is_file() else {**header, "rows": []}
    if differing := [name for name in ("source", "devices", "cpu") if record[name] != header[name]]:
        raise ValueError(f"{output} was measured with another {', '.join(differing)}; move it away, and begin anew")
    for number, config in enumerate(missing(configs, list(record["rows"]))):
        now = time.monotonic()
        if number and now + longest > begun + 60 * minutes:
            return False
        print(f"{config.model.name} {config.model.shortcut or ''} ...", flush=True)
        record["rows"].append(cost_of(config, windows=windows, seconds=seconds))
        write_text_atomically(output, json.dumps(record, indent=1, allow_nan=False) + "\n")
        longest = max(longest, time.monotonic() - now)
    return True


def name_of(net: Mapping[str, Any]) -> str:
    return " ".join(filter(None, (net["name"], net["shortcut"])))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    energy = any("joules_per_image" in row["train"] for row in rows)
    columns = [
        ("parameters, M", lambda row: f"{row['parameters'] / 1e6:.2f}"),
        ("multiply-adds, G", lambda row: f"{row['multiply_adds'] / 1e9:.3f}"),
        ("activations, MB", lambda row: f"{row['activation_bytes'] / 1e6:.2f}"),
        ("batch", lambda row: f"{row['train']['batch']}"),
        ("training, ms an image", lambda row: milliseconds(row["train"])),
        ("test, ms an image", lambda row: milliseconds(row["test"])),
        ("planned in training, MB", lambda row: f"{row['train']['planned_bytes'] / 1e6:,.0f}"),
        ("peak of the process, MB", lambda row: f"{row['train']['peak_bytes'] / 1e6:,.0f}"),
        ("compiling, s", lambda row: f"{row['train']['trace_seconds'] + row['train']['compile_seconds']:.1f}"),
    ]
    if energy:
        columns.append(("training, J an image", lambda row: f"{row['train'].get('joules_per_image', math.nan):.2f}"))
    return lines(
        ["net", *(name for name, _ in columns)],
        [[name_of(row["net"]), *(cell(row) for _, cell in columns)] for row in rows],
    )


def milliseconds(measured: Mapping[str, Any]) -> str:
    return f"{1e3 / measured['images_per_second']:.2f}"


def share_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Each net with projections beside the same net with option A: how many times as much."""
    base = {row["net"]["name"]: row for row in rows if row["net"]["shortcut"] == "A"}
    of = {
        "parameters": lambda row: row["parameters"],
        "multiply-adds": lambda row: row["multiply_adds"],
        "planned in training": lambda row: row["train"]["planned_bytes"],
        "training time": lambda row: 1 / row["train"]["images_per_second"],
        "test time": lambda row: 1 / row["test"]["images_per_second"],
    }
    found = [
        [name_of(row["net"]), *(f"{value(row) / value(base[row['net']['name']]):.3f}" for value in of.values())]
        for row in rows
        if row["net"]["shortcut"] in ("B", "C") and row["net"]["name"] in base
    ]
    return lines(["times option A's", *of], found)


def lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    every = [header, ["---", *(["---:"] * (len(header) - 1))], *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in every)


def plot(rows: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Time of training and testing an image against its multiply-adds."""
    figure = Figure(figsize=(9.2, 6.0), dpi=150, layout="constrained")
    axes = figure.subplots()
    for what, marker, colour in (("train", "o", "C0"), ("test", "s", "C1")):
        points = [(row["multiply_adds"] / 1e9, 1e3 / row[what]["images_per_second"]) for row in rows]
        axes.loglog(*zip(*points, strict=True), marker, color=colour, label={"train": "training", "test": "test"}[what])
    for row in rows:
        if row["net"]["shortcut"] != "C":
            place = row["multiply_adds"] / 1e9, 1e3 / row["train"]["images_per_second"]
            text = name_of(row["net"]).replace("cifar_", "")
            axes.annotate(text, place, xytext=(4, -9), textcoords="offset points", fontsize=6)
    axes.set_xlabel("multiply-adds of the forward pass of an image, G")
    axes.set_ylabel("ms an image")
    axes.grid(True, which="both", color="0.92")
    axes.legend()
    figure.savefig(output)


def write_readme(rows: Sequence[Mapping[str, Any]]) -> None:
    """Puts both tables into the README, between their marks."""
    readme = HERE / "README.md"
    text = readme.read_text()
    for mark, own in (("costs", table(rows)), ("shares", share_table(rows))):
        begin, end = f"<!-- {mark}: made by cost.py -->\n", f"<!-- end of {mark} -->"
        before, _, rest = text.partition(begin)
        text = before + begin + own + "\n" + end + rest.partition(end)[2]
    readme.write_text(text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--scale", choices=("small", "full"), default="small", help="(%(default)s)")
    what.add_argument("--of", type=Path, metavar="EXPERIMENT", help="measure the nets of its records")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="begin nothing that would take longer (no limit)"
    )
    parser.add_argument("--windows", type=int, default=3, help="of each measurement (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each window (%(default)s)")
    flags = parser.parse_args(argv)
    folder = flags.of or (HERE if flags.scale == "small" else HERE / flags.scale)
    folder.mkdir(exist_ok=True)
    configs = of_experiment(folder) if flags.of else wanted(flags.scale)
    timing = {name: getattr(flags, name) for name in ("minutes", "windows", "seconds")}
    complete = measure_all(configs, folder / FILE, **timing)
    rows = json.loads((folder / FILE).read_text())["rows"]
    if not flags.of:
        plot(rows, folder / "costs.png")
        if flags.scale == "small":
            write_readme(rows)
        else:
            print(f"{table(rows)}\n\n{share_table(rows)}")
    return int(not complete)


if __name__ == "__main__":
    raise SystemExit(main())
