"""Precision against recall of each class, drawn in one panel with the classes' names beside the lines' ends."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnet_jax.detection.drawing import class_colour
from resnet_jax.detection.voc_ap import PrecisionRecall

# Inches; of the figure, and of a name, for which many classes make the figure higher.
_WIDTH, _HEIGHT, _NAME_HEIGHT = 7.6, 5.6, 0.2
# Of the axes: where names begin, and the least distance between two of them.
_NAMES_FROM, _APART = 1.07, 0.042


def plot_precision_recall(curves: Mapping[str, PrecisionRecall], output: str | os.PathLike, *, metric: str) -> Path:
    """Plots the curve of each class in its colour of `class_colour`, with its name and average precision at its end.

    The names stand to the right of the axes in the order of the curves' ends, as near to these as there is room. A
    class without detections has a name and no line; one without objects, which has no curve, is left out.

    Args:
      curves: of all classes by name in the order of their labels, see `precision_recall`.
      output: the picture; its ending chooses the format (.png, .pdf, .svg), its folder is made.
      metric: of the average precision, as in `voc_ap`.

    Returns:
      The path of the picture.

    Raises:
      ValueError: an unknown metric, or no class has objects.
    """
    shown = {name: (label, curve) for label, (name, curve) in enumerate(curves.items()) if curve.objects}
    if not shown:
        raise ValueError(f"none of {len(curves)} classes has an object that counts, so there is no curve to plot")
    height = max(_HEIGHT, _NAME_HEIGHT * len(shown) + 1)
    # A Figure of its own canvas: pyplot would keep the figure, and choose a display the machine may not have.
    figure = Figure(figsize=(_WIDTH, height), dpi=160, layout="constrained")
    axes = figure.subplots()
    _finish_axes(axes)
    ends = np.array([_draw_curve(axes, curve, _hexadecimal(label)) for label, curve in shown.values()])
    for (name, (label, curve)), end, place in zip(shown.items(), ends, _spread(ends[:, 1]), strict=True):
        colour = _hexadecimal(label)
        axes.annotate(
            f"{name} {curve.average(metric):.3f}",
            xy=tuple(end),
            xytext=(_NAMES_FROM, place),
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6, "relpos": (0, 0.5)},
        )
    mean = np.mean([curve.average(metric) for _, curve in shown.values()])
    axes.set_title(f"mean average precision {mean:.3f}, {len(shown)} classes")
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)
    return output


def _hexadecimal(label: int) -> str:
    return "#" + bytes(class_colour(label)).hex()


def _draw_curve(axes: Axes, curve: PrecisionRecall, colour: str) -> tuple[float, float]:
    """Draws a line; returns (recall, precision) at its end."""
    if not len(curve.right):
        return 0.0, 0.0
    # One point makes no line.
    marker = "o" if len(curve.right) == 1 else None
    # Not cut in half along the edge of the axes.
    axes.plot(curve.recall, curve.precision, color=colour, linewidth=1.8, marker=marker, clip_on=False)
    return float(curve.recall[-1]), float(curve.precision[-1])


def _spread(ends: np.ndarray) -> np.ndarray:
    """Heights from 0 to 1 in the order of the ends and near to them, no two closer than there is room for."""
    gap = min(_APART, 1 / max(1, len(ends) - 1))
    order = np.argsort(-ends, kind="stable")
    places, highest = np.empty(len(ends)), 1.0
    for rank, number in enumerate(order):
        # Room stays for all names below.
        places[number] = max(min(ends[number], highest), gap * (len(ends) - 1 - rank))
        highest = places[number] - gap
    return places


def _finish_axes(axes: Axes) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
