"""The figures of errors, drawn as in the paper: training dashed and thin, test bold, a colour for each depth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnet_jax.analysis.curves import Curves

TRAIN, TEST = "train/error_top1", "test/error_top1"
STYLES: dict[str, dict[str, Any]] = {
    TRAIN: {"linestyle": (0, (4, 1.6)), "linewidth": 1.0, "zorder": 2.1},
    TEST: {"linestyle": "-", "linewidth": 2.2, "zorder": 2.2},
}
COLOURS = ("#d9a400", "#17a0b4", "#3b9b3b", "#d3302f", "#262626", "#8a3fa8")
# The axis reaches so far above the highest error at the end; what begins near chance comes into view from above.
HEADROOM = 1.6


class Net(NamedTuple):
    """A net's curves: its depth in layers, and of every seed the errors by name."""

    depth: int
    seeds: Sequence[Curves]


class Panel(NamedTuple):
    """Part of a figure: title, the axis's words, which curves it has, and of which nets."""

    title: str
    error: str
    kinds: tuple[str, ...]
    nets: Sequence[Net]


def draw_errors(panels: Sequence[Panel], depths: Sequence[int], note: str, output: Path) -> None:
    """Draws panels side by side on one scale: means over the seeds, and about the bold ones the range.

    Args:
      panels: those without a net stay empty.
      depths: all that there are, so that a depth has its colour in every figure; at most as many as `COLOURS`.
      note: below the figure: the data.
      output: the picture.
    """
    colours = dict(zip(depths, COLOURS, strict=False))
    top = ceiling([net for panel in panels for net in panel.nets])
    figure = Figure(figsize=(4.6 * len(panels), 4.4), dpi=160, layout="constrained")
    for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        last = max(
            (curves[kind][0][-1] for net in panel.nets for curves in net.seeds for kind in panel.kinds), default=1
        )
        finish_axes(axes, panel, top=top, last=last)
        ends = [draw_net(axes, net, panel.kinds, colours[net.depth]) for net in panel.nets]
        write_depths(axes, panel.nets, ends, colours, top=top, last=last)
    figure.supxlabel(note, fontsize="small", color="0.35")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)


def mean_curve(seeds: Sequence[Curves], kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps that all seeds have; mean, lowest and highest error there, in %."""
    steps = seeds[0][kind][0]
    for curves in seeds[1:]:
        steps = np.intersect1d(steps, curves[kind][0])
    errors = np.stack([100 * curves[kind][1][np.isin(curves[kind][0], steps)] for curves in seeds])
    return steps, errors.mean(0), errors.min(0), errors.max(0)


def ceiling(nets: Sequence[Net]) -> float:
    """Where the error axis ends, in %."""
    highest = max((mean_curve(net.seeds, TEST)[1][-1] for net in nets), default=100.0)
    return float(min(100.0, 5 * np.ceil(HEADROOM * highest / 5)))


def draw_net(axes: Axes, net: Net, kinds: tuple[str, ...], colour: str) -> float:
    """Draws a net's curves; returns the last one's error at the end."""
    mean = np.array([np.nan])
    for kind in kinds:
        steps, mean, low, high = mean_curve(net.seeds, kind)
        bold = kind == TEST or len(kinds) == 1
        if bold and len(net.seeds) > 1:
            axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(steps, mean, color=colour, **STYLES[TEST if bold else TRAIN])
    return float(mean[-1])


def write_depths(
    axes: Axes, nets: Sequence[Net], ends: Sequence[float], colours: dict[int, str], *, top: float, last: float
) -> None:
    """Names the nets to the right of their curves' ends."""
    for net, height in zip(nets, apart(ends, 0.05 * top), strict=True):
        text, place = f"{net.depth}-layer", (1.02 * last, height)
        axes.annotate(text, place, color=colours[net.depth], va="center", annotation_clip=False)


def apart(heights: Sequence[float], gap: float) -> np.ndarray:
    """The heights, moved as little as need be for no two to be closer than a gap (nearly)."""
    moved = np.array(heights, float)
    order = np.argsort(moved)
    for _ in range(100):
        for lower, upper in zip(order, order[1:], strict=False):
            missing = max(0.0, gap - (moved[upper] - moved[lower])) / 2
            moved[[lower, upper]] += -missing, missing
    return moved


def finish_axes(axes: Axes, panel: Panel, *, top: float, last: float) -> None:
    axes.set_title(panel.title)
    axes.set_ylim(0, top)
    axes.set_xlim(0, last)
    axes.set_ylabel(panel.error)
    thousands = last >= 10_000
    axes.set_xlabel("steps (1e4)" if thousands else "steps")
    if thousands:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e4:g}")
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(panel.kinds) > 1:
        for kind, word in ((TRAIN, "training"), (TEST, "test")):
            axes.plot([], [], color="0.35", label=word, **STYLES[kind])
        # Every curve comes down from above.
        axes.legend(loc="lower left", frameon=True, framealpha=0.9, edgecolor="0.85", fontsize="small")
