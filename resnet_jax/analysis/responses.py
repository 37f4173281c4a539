"""The paper's analysis of layer responses: how far each 3x3 layer's outputs spread (section 4.2, Figure 7)."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnet_jax.analysis.block_by_block import parts_of
from resnet_jax.models.arrangements import NORMALIZING, ORDERS
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.stacking import unstack_blocks


class Response(NamedTuple):
    """How far a layer's responses spread.

    Attributes:
      layer: path of its convolution in the parameters of an unrolled net, e.g. "stage1_block2/conv1".
      std: standard deviation of its responses over all images, positions and channels.
    """

    layer: str
    std: float


def layer_responses(
    model: ResNet, variables: dict, images: Float[Array | np.ndarray, "n h w c"], *, batch_size: int = 500
) -> list[Response]:
    """Measures the standard deviation of the responses of every 3x3 layer, as in the paper's Figure 7.

    A response is what comes out of a layer's batch normalization, before the ReLU or the addition. The running
    statistics normalise. The 7x7 layer, the 1x1 layers of bottlenecks and projections do not count, so that a CIFAR
    net of 6n + 2 layers gives 6n + 1 values. The images go through the net a batch and a block at a time, so that
    memory holds the outputs of one block and as few blocks are compiled as differ.

    Args:
      model: a net with batch normalization (or frozen), unrolled or with scan=True, plain or residual, whose
        activation_order normalises after every convolution: "post", "relu_before_addition" or "relu_only_pre".
      variables: its {"params", "batch_stats"}.
      images: normalised images, all of which count equally.
      batch_size: images in memory at a time; the result depends on it by no more than rounding.

    Returns:
      The layers in forward order, with the names and values of the unrolled net if the model has scan=True.

    Raises:
      ValueError: there is no image, batch_size is below 1, a layer's responses are not finite, the images are none
        that the net takes, or the net is another: with activation_order="pre" or "norm_after_addition" nothing
        normalises between a block's last convolution and the addition, with norm="none" and its like nothing at all.
    """
    _check_normalizes(model)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    if images.shape[0] == 0:
        raise ValueError(f"images of shape {images.shape} hold no image to measure responses on")
    # Computes nothing: the whole net checks images and variables, as its parts below do not.
    jax.eval_shape(partial(model.apply, train=False), variables, images[:1])
    variables, parts = unstack_blocks(variables), parts_of(model)
    moments: dict[str, _Moments] = {}
    for x, new in _batches(images, batch_size):
        for name, run in parts:
            part_variables = {collection: variables[collection][name] for collection in ("params", "batch_stats")}
            x, found = run(part_variables, x)
            for layer, (mean, variance) in found.items():
                layer, mean, variance = f"{name}/{layer}", np.asarray(mean)[new:], np.asarray(variance)[new:]
                if not np.isfinite(variance).all():
                    raise ValueError(f"{layer}: its responses are not finite; the net diverged, or the images hold NaN")
                moments[layer] = moments.get(layer, _Moments()).with_more(mean, variance)
    return [Response(layer, float(np.sqrt(total.squares / total.number))) for layer, total in moments.items()]


def plot_responses(series: Mapping[str, Sequence[float]], output: str | os.PathLike) -> Path:
    """Plots nets' layer responses as the paper's Figure 7: above in the layers' order, below sorted, largest first.

    A net with "plain" in its label is dashed, any other solid. Nets whose labels are the same but for "plain",
    "ResNet" or "residual" share a colour, e.g. plain-20 and ResNet-20.

    Args:
      series: by label, a net's standard deviations in forward order.
      output: the picture; its ending chooses the format (.png, .pdf, .svg), its folder is made.

    Returns:
      The path of the picture.

    Raises:
      ValueError: there is no net, a net has no layer, or a value is negative or not finite.
    """
    if not series:
        raise ValueError("there is no net to plot responses of")
    for label, values in series.items():
        if len(values) == 0 or not all(np.isfinite(value) and value >= 0 for value in values):
            raise ValueError(f"{label}: {list(values)} must be standard deviations, finite and at least 0, one or more")
    # A Figure of its own canvas: pyplot would keep the figure, and choose a display the machine may not have.
    figure = Figure(figsize=(9.2, 6.4), dpi=160, layout="constrained")
    in_order, in_size = figure.subplots(2, 1, sharex=True, sharey=True)
    colours: dict[str, str] = {}
    for label, values in series.items():
        twin = re.sub("plain|resnet|residual", "", label.lower())
        style: dict[str, Any] = {
            "color": colours.setdefault(twin, f"C{len(colours)}"),
            "linestyle": "--" if "plain" in label.lower() else "-",
            # One point makes no line.
            "marker": "o" if len(values) == 1 else None,
            "label": label,
        }
        for axes, heights in ((in_order, list(values)), (in_size, sorted(values, reverse=True))):
            axes.plot(np.arange(1, len(heights) + 1), heights, linewidth=1.4, **style)
    _finish_axes(in_order, "layer index (original)", series)
    _finish_axes(in_size, "layer index (sorted by magnitude)", series)
    # Outside: the curves leave no corner of the upper panel free.
    figure.legend(handles=in_order.get_lines(), loc="outside right upper", frameon=False, fontsize="small")
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)
    return output


class _Moments(NamedTuple):
    """Number, mean and summed squared deviations of a layer's responses, kept in float64.

    The unit of the number is one channel of one image: all of them have equally many positions.
    """

    number: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def with_more(self, mean: Float[np.ndarray, "n c"], variance: Float[np.ndarray, "n c"]) -> "_Moments":
        """Merges the mean and variance of each channel of each new image (Chan, Golub and LeVeque 1979)."""
        mean, variance = mean.astype(np.float64), variance.astype(np.float64)
        number, new_mean = self.number + mean.size, float(mean.mean())
        new_squares = float(variance.sum() + np.square(mean - new_mean).sum())
        shift = new_mean - self.mean
        return _Moments(
            number,
            self.mean + shift * mean.size / number,
            self.squares + new_squares + shift**2 * self.number * mean.size / number,
        )


def _check_normalizes(model: ResNet) -> None:
    if model.norm not in NORMALIZING:
        raise ValueError(
            f"norm={model.norm!r} has no batch normalization, after which the paper measures responses; take a net "
            f"with norm={' or '.join(map(repr, NORMALIZING))}"
        )
    if not model.arrangement.last:
        allowed = " or ".join(f"activation_order={name!r}" for name, order in ORDERS.items() if order.last)
        raise ValueError(
            f"activation_order={model.activation_order!r} has no batch normalization between a block's last "
            "convolution and the addition, so these layers have no responses in the paper's sense; take a net with "
            f"{allowed}"
        )


def _batches(images: Array | np.ndarray, batch_size: int) -> Iterator[tuple[Array | np.ndarray, int]]:
    """Batches of one size, and where in each the images begin that were in none before.

    The last one reaches back, because a batch of another size would be compiled anew.
    """
    size = min(batch_size, len(images))
    for begin in range(0, len(images), size):
        start = min(begin, len(images) - size)
        yield images[start : start + size], begin - start


def _finish_axes(axes: Axes, label: str, series: Mapping[str, Sequence[float]]) -> None:
    axes.set_xlim(0, 1.01 * max(len(values) for values in series.values()) + 0.5)
    axes.set_ylim(0, 1.06 * max(max(values) for values in series.values()) or 1.0)
    axes.set_xlabel(label)
    axes.set_ylabel("std of responses")
    axes.tick_params(labelbottom=True)
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
