"""Makes the README's tables and the figure from the stored record and nothing else."""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from pipelines import CROPS, PIPELINES

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- tables: made by report.py -->", "<!-- end of tables -->"
# What a table of rates shows, and its heading: median and ends of the repeats.
RATES = (
    ("images_per_cpu_second", "images per second of processor time (per core), by workers"),
    ("images_per_second", "images/s in total, by workers"),
)
COLOURS = {"ours": "C0", "bare": "0.6", "tf_data": "C1", "torch_loader": "C3"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, default=HERE / "record.json")
    parser.add_argument("--folder", type=Path, default=HERE, help="of README.md and throughput.png (this one)")
    flags = parser.parse_args()
    record = json.loads(flags.record.read_text(encoding="utf-8"))
    print(write_report(record, flags.folder))


def write_report(record: dict[str, Any], folder: Path) -> str:
    """Draws `throughput.png` and replaces what stands between the marks of README.md, if it is there; returns that."""
    tables = [_target_table(record), *(_rate_table(record, *which) for which in RATES), _memory_table(record)]
    text = "\n\n".join([_machine(record), *tables])
    readme = folder / "README.md"
    if readme.is_file():
        before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        if not (begin and end):
            raise ValueError(f"{readme} lacks the marks {BEGIN} and {END}")
        readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    _plot(record, folder / "throughput.png")
    return text


def _machine(record: dict[str, Any]) -> str:
    config, cpu, images = record["config"], record["cpu"], record["images"]
    sizes = "; ".join(
        f"{name}: {found['count']} images, {found['megabytes']:,.1f} MB" for name, found in images.items()
    )
    skipped = "".join(f" Skipped: {module} ({reason})." for module, reason in record["skipped"].items())
    return (
        f"{cpu['count']} cores of {cpu['model']}; {config['repeats']} repeats of at least {config['seconds']:g} s of "
        f"processor time; batches of {config['batch_size']}. {sizes}.{skipped}"
    )


def _rate_table(record: dict[str, Any], key: str, title: str) -> str:
    workers = sorted({rate["workers"] for rate in record["rates"]})
    rates = {(rate["pipeline"], rate["crop"], rate["workers"]): rate[key] for rate in record["rates"]}
    rows = [("crops", title, *map(str, workers)), ("---", "---", *["---:"] * len(workers))]
    for crop in CROPS:
        for name, pipeline in PIPELINES.items():
            found = [rates.get((name, crop, count)) for count in workers]
            if any(found):
                rows.append((crop, pipeline.label, *map(_spread, found)))
    return _table(rows)


def _target_table(record: dict[str, Any]) -> str:
    rows = [("per core, median of the repeats", "ratio", "wanted", "met"), ("---", "---:", "---", "---")]
    for target in record["targets"]:
        ends = f" ({target['min']:.2f} to {target['max']:.2f})" if "min" in target else ""
        met = "yes" if target["met"] else "no"
        rows.append((target["name"], f"{target['value']:.2f}{ends}", target["wanted"], met))
    return _table(rows)


def _memory_table(record: dict[str, Any]) -> str:
    memory = record["memory"]
    by_epoch = memory["mebibytes_by_epoch"]
    step = max(1, len(by_epoch) // 10)
    epochs = [1, *range(step, len(by_epoch) + 1, step)] if step > 1 else list(range(1, len(by_epoch) + 1))
    return _table(
        [
            ("epoch", *map(str, epochs)),
            ("---", *["---:"] * len(epochs)),
            (f"MiB, {memory['workers']} workers", *(f"{by_epoch[epoch - 1]:,.0f}" for epoch in epochs)),
        ]
    )


def _table(rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _spread(rate: dict[str, float] | None) -> str:
    return "" if rate is None else f"{rate['median']:,.0f} ({rate['min']:,.0f} to {rate['max']:,.0f})"


def _plot(record: dict[str, Any], output: Path) -> None:
    # A Figure of its own canvas, which needs no display.
    figure = Figure(figsize=(11, 4.4), dpi=160, layout="constrained")
    all_axes = figure.subplots(1, len(CROPS), sharex=True, sharey=True, squeeze=False)[0]
    one_worker = {(rate["pipeline"], rate["crop"]): rate for rate in record["rates"] if rate["workers"] == 1}
    names = [name for name in PIPELINES if any((name, crop) in one_worker for crop in CROPS)]
    for axes, crop in zip(all_axes, CROPS, strict=True):
        for place, name in enumerate(names):
            if (name, crop) not in one_worker:
                continue
            rate = one_worker[name, crop]["images_per_cpu_second"]
            ends = [[rate["median"] - rate["min"]], [rate["max"] - rate["median"]]]
            colour = COLOURS[PIPELINES[name].module]
            axes.barh(place, rate["median"], xerr=ends, color=colour, ecolor="0.15", capsize=3, height=0.7)
            axes.annotate(
                f"{rate['median']:,.0f}", (rate["max"], place), xytext=(6, 0), textcoords="offset points", va="center"
            )
        axes.set_yticks(range(len(names)), [PIPELINES[name].label for name in names])
        axes.set_title(f"{crop} crops")
        axes.set_xlabel("images per second of processor time, one worker")
        axes.margins(x=0.14)
        axes.grid(True, axis="x", color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].invert_yaxis()
    figure.savefig(output)


if __name__ == "__main__":
    main()
