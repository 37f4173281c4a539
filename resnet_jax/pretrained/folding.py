"""Batch normalization folded into the convolutions before it, for inference."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from resnet_jax.models.normalization import BatchNorm
from resnet_jax.models.resnet import ResNet

# A variance that makes 1 / sqrt(var + epsilon) exactly 1, in float32 too.
_NEUTRAL_VARIANCE = np.float32(1) - np.float32(BatchNorm.epsilon)


def fold_batch_norm(model: ResNet, variables: Mapping[str, Any]) -> dict:
    """Moves what batch normalization multiplies by into the kernels of the convolutions before it.

    With running statistics a normalization is y = s (x - mean) + bias with s = scale / sqrt(var + epsilon), and the
    convolution in front of it is linear: its kernel times s, each output channel by its own, and then the addition of
    bias - s mean, are the same net but for rounding. That is 1e-5 of the logits in float32; a bfloat16 net rounds other
    kernels, so its logits agree to bfloat16's three digits. For `train=False` only: batch statistics would undo it.

    The variables keep their form, and the net takes them as before: the normalizations stay, with mean 0, scale 1 and
    a variance that makes them divide by 1. A compiler that knows the variables, as of `export_inference`, drops both
    and keeps the addition.

    Folded is each normalization right after a convolution of its own block: in most nets all, the stem's, the blocks',
    the projections'. Of pre-activation nets it is "norm2" and "norm3"; each block's "norm1" and "final_norm" come after
    a sum that the shortcut needs as it is, and stay as they are, and so does "sum_norm" of norm_after_addition.

    Args:
      model: the net, of any settings.
      variables: its {"params", "batch_stats"}, which stay as they are.

    Returns:
      Variables of the same form; new arrays are numpy's.
    """
    folded = flatten_dict(dict(variables))
    layers: dict[tuple, dict[str, tuple]] = defaultdict(dict)
    for place in folded:
        # A frozen normalization has its scale and bias among the statistics, any other among the parameters.
        layers[place[1:-1]][place[-1]] = place
    for (*block, name), tensors in layers.items():
        norm = layers.get((*block, _norm_after(name, model.activation_order)))
        # In place of a normalization may stand a bias alone.
        if norm is not None and "var" in norm:
            places = [tensors["kernel"], *(norm[key] for key in ("scale", "bias", "mean", "var"))]
            folded.update(zip(places, _fold(*(folded[place] for place in places)), strict=True))
    return unflatten_dict(folded)


def _norm_after(name: str, activation_order: str) -> str | None:
    """The name that a normalization right after this layer has in the blocks of models/blocks.py."""
    match = re.fullmatch(r"conv(\d*)", name)
    if match is None:
        return None
    if activation_order != "pre":
        return f"norm{match[1]}"
    return f"norm{int(match[1]) + 1}" if match[1] else None


def _fold(kernel: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> tuple[np.ndarray, ...]:
    """The five new arrays; kernel [..., kh, kw, c, f], vectors [..., f], with or without an axis of stacked blocks."""
    scale, bias, mean, variance = (np.asarray(vector, np.float64) for vector in (scale, bias, mean, variance))
    multiplier = scale / np.sqrt(variance + BatchNorm.epsilon)
    new_kernel = np.asarray(kernel) * np.expand_dims(multiplier, (-4, -3, -2))
    new_bias = (bias - multiplier * mean).astype(np.float32)
    ones = np.ones_like(new_bias)
    return new_kernel.astype(np.float32), ones, new_bias, np.zeros_like(new_bias), ones * _NEUTRAL_VARIANCE
