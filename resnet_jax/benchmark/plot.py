"""Throughput against the batch, and every measurement under the device's roofline (Williams et al. 2009)."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from resnet_jax.benchmark.table import bound, shares

# As a name, and what it is in operations a second.
_UNIT, _OPERATIONS = "GFLOP/s", 1e9
# Of the line's ends, beyond the measurements on both sides.
_MARGIN = 2.0
_SMALLEST, _LARGEST = 20.0, 120.0


def plot_record(record: Mapping[str, Any], output: str | os.PathLike) -> Path:
    """Draws a record's rates: on the left images/s against the batch, a line for each model, and dashed what the
    roofline allows it; on the right arithmetic against its intensity, larger dots for larger batches.

    Args:
      record: of `benchmark`, with rates.
      output: the picture; its ending chooses the format (.png, .pdf, .svg), its folder is made.

    Returns:
      The path of the picture.

    Raises:
      ValueError: the record has no rate.
    """
    rows = [row for row in record["rows"] if "images_per_second" in row]
    if not rows:
        raise ValueError(f"there is no rate to plot among {len(record['rows'])} rows")
    lines: dict[str, list[Mapping[str, Any]]] = {}
    several = len({row["subject"] for row in rows}) > 1
    for row in sorted(rows, key=lambda row: row["batch"]):
        lines.setdefault(f"{row['model']}, {row['subject']}" if several else row["model"], []).append(row)
    figure = Figure(figsize=(11.2, 5.0), dpi=160, layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (label, points) in enumerate(lines.items()):
        _draw_rates(left, label, points, record["ceilings"], number=number)
    left.set(xscale="log", yscale="log", xlabel="batch (images)", ylabel="images/s; dashed: what the roofline allows")
    sizes = sorted({row["batch"] for row in rows})
    left.set_xticks(sizes, [f"{size:,}" for size in sizes])
    _finish(left, left.yaxis)
    _draw_roofline(right, lines, record["ceilings"])
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)
    return output


def _draw_rates(axes: Axes, label: str, rows: Sequence[Mapping[str, Any]], ceilings: Any, *, number: int) -> None:
    batches, colour = [row["batch"] for row in rows], f"C{number}"
    axes.plot(batches, [row["images_per_second"] for row in rows], "o-", color=colour, label=label)
    allowed = [(batch, limit) for batch, row in zip(batches, rows, strict=True) if (limit := bound(row, ceilings))]
    if allowed:
        axes.plot(*zip(*allowed, strict=True), "_--", color=colour, linewidth=0.9, alpha=0.8, markersize=12)


def _draw_roofline(axes: Axes, lines: Mapping[str, Sequence[Mapping[str, Any]]], ceilings: Any) -> None:
    peak, bandwidth = ceilings["flop_per_second"], ceilings["bytes_per_second"]
    largest = max(row["batch"] for rows in lines.values() for row in rows)
    intensities = [peak / bandwidth]
    for number, (label, rows) in enumerate(lines.items()):
        known = [row for row in rows if bound(row, ceilings)]
        if not known:
            continue
        x = [row["flop_per_image"] / row["bytes_per_image"] for row in known]
        y = [(shares(row, ceilings)["flop_per_second"] or 0) / _OPERATIONS for row in known]
        sizes = [_SMALLEST + (_LARGEST - _SMALLEST) * row["batch"] / largest for row in known]
        axes.scatter(x, y, s=sizes, color=f"C{number}", label=label, zorder=3)
        intensities += x
    ends = [min(intensities) / _MARGIN, max(intensities) * _MARGIN]
    xs = [ends[0], peak / bandwidth, ends[1]]
    axes.plot(xs, [min(peak, bandwidth * x) / _OPERATIONS for x in xs], color="0.3", linewidth=1.2, zorder=1)
    axes.annotate(f"{peak / _OPERATIONS:,.3g} {_UNIT}", (ends[1], peak / _OPERATIONS), ha="right", va="bottom")
    beside: dict[str, Any] = {"ha": "left", "va": "bottom", "textcoords": "offset points"}
    axes.annotate(f"{bandwidth / 1e9:,.3g} GB/s", (ends[0], bandwidth * ends[0] / _OPERATIONS), (12, 2), **beside)
    axes.set(xscale="log", yscale="log", xlabel="FLOP a byte moved", ylabel=_UNIT)
    _finish(axes, axes.xaxis, axes.yaxis)


def _finish(axes: Axes, *numbered: Axis) -> None:
    for axis in numbered:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.grid(True, alpha=0.25)
    axes.legend()
