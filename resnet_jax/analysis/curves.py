"""Training curves, drawn as in the paper's Figure 6: error in % against steps."""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnet_jax import records

# What the figure shows of a run: the name in metrics.jsonl, the word for it, and how its line looks.
_LINES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("train/error_top1", "training", {"linestyle": "--", "linewidth": 0.9, "alpha": 0.85, "zorder": 2.0}),
    ("validation/error_top1", "validation", {"linestyle": ":", "linewidth": 1.6, "zorder": 2.1}),
    ("test/error_top1", "test", {"linestyle": "-", "linewidth": 2.2, "zorder": 2.2}),
    # Of detectors: 1 less the average precision.
    ("train/region_error", "training, regions", {"linestyle": "--", "linewidth": 0.9, "alpha": 0.85, "zorder": 2.0}),
    ("validation/error_ap", "validation, 1 - AP", {"linestyle": ":", "linewidth": 1.6, "zorder": 2.1}),
    ("test/error_ap", "test, 1 - AP", {"linestyle": "-", "linewidth": 2.2, "zorder": 2.2}),
    # Of localizers: sampled boxes with an object that have not its class, and images without a right box.
    ("train/object_error", "training, classes", {"linestyle": "--", "linewidth": 0.9, "alpha": 0.85, "zorder": 2.0}),
    ("validation/error_localization", "validation, boxes", {"linestyle": ":", "linewidth": 1.6, "zorder": 2.1}),
    ("test/error_localization", "test, boxes", {"linestyle": "-", "linewidth": 2.2, "zorder": 2.2}),
)
# Every run starts near chance; a scale that holds its first steps would press the rest of the curve flat.
_LEFT_OUT_OF_SCALE = 0.1

Curves = dict[str, tuple[Int[np.ndarray, " _"], Float[np.ndarray, " _"]]]


def plot_curves(
    metrics: str | os.PathLike | Sequence[tuple[str, str | os.PathLike]], output: str | os.PathLike
) -> Path:
    """Plots the errors of one run or several: training dashed and thin, test bold, a colour for each run.

    The error axis starts at 0 and holds everything but the first tenth of the steps, so that the level at
    the end can be read. The legend gives each curve's last error.

    Args:
      metrics: a `metrics.jsonl`, or pairs of a label and such a file.
      output: the picture; its ending chooses the format (.png, .pdf, .svg), its folder is made.

    Returns:
      The path of the picture.

    Raises:
      FileNotFoundError: a metrics file is not there.
      ValueError: a run has no error to plot, or there is no run.
    """
    runs = [("", metrics)] if isinstance(metrics, str | os.PathLike) else list(metrics)
    return plot_panels({"": [(label, error_curves(path)) for label, path in runs]}, output)


def plot_panels(panels: Mapping[str, Sequence[tuple[str, Curves]]], output: str | os.PathLike) -> Path:
    """Plots groups of runs side by side on one error axis, as the paper's Figure 6 does with plain and residual nets.

    Args:
      panels: by title, pairs of a label and what `error_curves` gives.
      output: the picture, as in `plot_curves`.

    Returns:
      The path of the picture.

    Raises:
      ValueError: there is no run.
    """
    everything = [curve for runs in panels.values() for _, by_name in runs for curve in by_name.values()]
    if not everything:
        raise ValueError("there is no run to plot")
    # A Figure of its own canvas: pyplot would keep the figure, and choose a display the machine may not have.
    # A long legend stands below the axes, which keep their height.
    lines = max(sum(len(by_name) for _, by_name in runs) for runs in panels.values())
    size = (7.2 if len(panels) == 1 else 5.6 * len(panels), 5.6 + 0.2 * max(0, lines - 6))
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, runs) in zip(all_axes, panels.items(), strict=True):
        for number, (label, by_name) in enumerate(runs):
            _draw_run(axes, label, by_name, colour=f"C{number}")
        _finish_axes(axes, everything)
        axes.set_title(title)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)
    return output


def error_curves(path: str | os.PathLike) -> Curves:
    """The errors in a `metrics.jsonl` by name, those that this module plots; ValueError if there is none."""
    found = records.read_metrics(path)
    wanted = [name for name, _, _ in _LINES]
    curves = {name: found[name] for name in wanted if name in found and np.isfinite(found[name][1]).any()}
    if not curves:
        raise ValueError(f"{path} holds none of {', '.join(wanted)} to plot, only {sorted(found)}")
    return curves


def mean_curves(runs: Sequence[Curves]) -> Curves:
    """The mean over runs of one config, of the curves and at the steps that all of them have."""
    mean = {}
    for name in set.intersection(*(set(curves) for curves in runs)):
        steps = functools.reduce(np.intersect1d, (curves[name][0] for curves in runs))
        values = [curves[name][1][np.isin(curves[name][0], steps)] for curves in runs]
        mean[name] = (steps, np.mean(values, axis=0))
    return mean


def _draw_run(axes: Axes, label: str, curves: Curves, *, colour: str) -> None:
    for name, word, style in _LINES:
        if name in curves:
            steps, errors = curves[name]
            finite = errors[np.isfinite(errors)]
            text = f"{label} {word}, {100 * finite[-1]:.2f} % at the end".lstrip()
            # One point makes no line.
            marker = "o" if len(steps) == 1 else None
            axes.plot(steps, 100 * errors, color=colour, label=text, marker=marker, **style)


def _finish_axes(axes: Axes, curves: list[tuple[np.ndarray, np.ndarray]]) -> None:
    last = max(steps.max() for steps, _ in curves)
    first = min(steps.min() for steps, _ in curves)
    begin = first + _LEFT_OUT_OF_SCALE * (last - first)
    shown = np.concatenate([errors[(steps >= begin) & np.isfinite(errors)] for steps, errors in curves])
    if shown.size == 0:  # every value after the beginning is NaN
        shown = np.concatenate([errors[np.isfinite(errors)] for _, errors in curves])
    axes.set_ylim(0, float(np.clip(108 * shown.max(), 1, 104)))
    axes.set_xlim(0, float(last) * 1.01 or 1)
    axes.set_xlabel("steps")
    axes.set_ylabel("error (%)")
    axes.label_outer()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    # Many runs leave no room among their curves.
    many = len(axes.lines) > 4
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12)} if many else {}
    axes.legend(frameon=True, framealpha=0.9, edgecolor="0.85", fontsize="small", **place)
