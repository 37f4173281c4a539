"""How far an update moves the weights, as a share of their size."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float

from resnet_jax.diagnostics.stages import by_layer, by_stage, norm


def ratio_by_stage(params: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
    """Norm of the update / norm of the weights, of each stage.

    Args:
      params: of a net.
      update: what is taken from them, of their form: the learning rate times the optimizer's direction.
    """
    return _ratios(by_stage(params), by_stage(update))


def ratio_by_layer(params: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
    """As `ratio_by_stage`, of each layer; not finite where all weights of a layer are 0."""
    return _ratios(by_layer(params), by_layer(update))


def _ratios(weights: dict[str, list[Array]], updates: dict[str, list[Array]]) -> dict[str, Float[Array, ""]]:
    return {name: norm(updates[name]) / norm(own) for name, own in weights.items()}
