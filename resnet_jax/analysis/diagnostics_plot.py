"""What the diagnoses of an experiment's runs found over the steps: plain nets dashed, residual ones solid."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resnet_jax import records
from resnet_jax.analysis.curves import Curves, mean_curves

_PREFIX = "diagnostics/"
# Of each stage: the name in metrics.jsonl, the axis's label, and its scale.
_OF_STAGES = (
    ("gradient_norm", "gradient norm", "log"),
    ("update_ratio", "update / weights", "log"),
    ("response_std", "std of responses", "linear"),
    ("activation_zeros", "share of zeros", "linear"),
    ("singular_value", "largest singular value", "linear"),
)
_OF_NETS = (
    ("loss", "loss", "linear"),
    ("hessian_largest", "largest Hessian eigenvalue", "linear"),
    # The mean over seeds of numerator and denominator, each without bias, and then their ratio.
    ("noise_scale", "noise scale, examples", "log"),
)
_NOISE = ("noise_trace", "noise_square")


def plot_diagnostics(groups: Sequence[Sequence[tuple[Path, Mapping[str, Any]]]], output: Path) -> Path | None:
    """Draws a panel for each quantity and stage, and one for each quantity of the whole net.

    Nets of one depth have one colour. A line is the mean over a group's runs, at the steps that all of them have.

    Args:
      groups: of each config, the paths of the records of its seeds, beside which `NAME.metrics.jsonl` lies, and the
        records.
      output: the picture.

    Returns:
      The path of the picture; None, and nothing is drawn, where no run was diagnosed.
    """
    nets = [
        (group[0][1]["model"], means)
        for group in groups
        if (means := _means([path.with_suffix(".metrics.jsonl") for path, _ in group]))
    ]
    if not nets:
        return None
    found = {name for _, means in nets for name in means}
    stages = sorted({name.partition("/")[2] for name in found if "/stage" in name})
    rows = [
        [(f"{name}/{stage}", f"{label}, {stage}", scale) for stage in stages]
        for name, label, scale in _OF_STAGES
        if any(other.startswith(f"{name}/") for other in found)
    ]
    whole = [panel for panel in _OF_NETS if panel[0] in found]
    columns = max(len(stages), len(whole))
    figure = Figure(figsize=(3.9 * columns, 2.5 * (len(rows) + 1)), dpi=110, layout="constrained")
    all_axes = figure.subplots(len(rows) + 1, columns, squeeze=False, sharex=True)
    for row, panels in zip(all_axes, [*rows, whole], strict=True):
        for axes, panel in zip(row, panels, strict=False):
            _draw(axes, nets, *panel)
        for axes in row[len(panels) :]:
            axes.set_axis_off()
    for axes in all_axes[-1]:
        axes.set_xlabel("steps")
    handles = [Line2D([], [], label=model, **style) for model, style in _styles([model for model, _ in nets]).items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)
    return output


def _means(paths: Sequence[Path]) -> Curves:
    runs = [
        {
            name.removeprefix(_PREFIX): curve
            for name, curve in records.read_metrics(path).items()
            if name.startswith(_PREFIX)
        }
        for path in paths
        if path.is_file()
    ]
    means = mean_curves(runs) if runs else {}
    if set(_NOISE) <= set(means):
        (steps, trace), (_, square) = (means[name] for name in _NOISE)
        means["noise_scale"] = steps, np.divide(trace, square, out=np.full(len(steps), np.nan), where=square != 0)
    return means


def _styles(models: Sequence[str]) -> dict[str, dict[str, Any]]:
    colours: dict[str, str] = {}
    return {
        model: {
            "color": colours.setdefault(re.sub("plain|resnet", "", model), f"C{len(colours)}"),
            "linestyle": "--" if "plain" in model else "-",
        }
        for model in models
    }


def _draw(axes: Axes, nets: Sequence[tuple[str, Curves]], name: str, label: str, scale: str) -> None:
    styles = _styles([model for model, _ in nets])
    for model, means in nets:
        if name in means:
            # One point makes no line.
            marker = "o" if len(means[name][0]) == 1 else None
            axes.plot(*means[name], linewidth=1.4, marker=marker, **styles[model])
    # What is not positive, as a noise scale may be where noise is all there is, is a gap.
    axes.set_yscale(scale, **({"nonpositive": "mask"} if scale == "log" else {}))
    axes.set_title(label, fontsize="medium")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.tick_params(labelbottom=True)
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
