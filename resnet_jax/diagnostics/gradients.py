"""How long a net's gradients are, and how their elements spread, by layer and by stage."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from resnet_jax.diagnostics.stages import by_layer, by_stage, norm

QUANTILES = (0.1, 0.5, 0.9)


class Spread(NamedTuple):
    """Of the elements of some gradients.

    Attributes:
      norm: the Euclidean one, of all elements together.
      quantiles: of the absolute values, at `QUANTILES`.
      zeros: share of the elements that are exactly 0.
    """

    norm: Float[Array, ""]
    quantiles: Float[Array, " q"]
    zeros: Float[Array, ""]


def spread_by_stage(gradients: Mapping[str, Any]) -> dict[str, Spread]:
    """The spread of each stage's gradients, parameters of convolutions and normalizations together.

    Args:
      gradients: of the form of a net's parameters.
    """
    return {stage: _spread(arrays) for stage, arrays in by_stage(gradients).items()}


def norm_by_layer(gradients: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
    """The Euclidean norm of each layer's gradients, such as "stage1_block2/conv1"."""
    return {layer: norm(arrays) for layer, arrays in by_layer(gradients).items()}


def _spread(arrays: list[Array]) -> Spread:
    values = jnp.concatenate([jnp.abs(array).ravel() for array in arrays])
    return Spread(norm(arrays), jnp.quantile(values, jnp.asarray(QUANTILES)), jnp.mean(values == 0))
