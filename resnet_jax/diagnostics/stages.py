"""The layers and the stages of a net's parameters, and of whatever has their form: gradients, updates."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resnet_jax.models.stacking import unstack_blocks


def by_layer(tree: Mapping[str, Any]) -> dict[str, list[Array]]:
    """The arrays of each layer, such as "stage1_block2/conv1" or "stage1_block2/norm1".

    Args:
      tree: of the form of a net's parameters, of scanned blocks or not; the names are those of the unrolled net.

    Returns:
      In the tree's order, which sorts names as texts where the tree comes from a jitted function.
    """
    return _grouped(tree, lambda path: "/".join(path[:-1]))


def by_stage(tree: Mapping[str, Any]) -> dict[str, list[Array]]:
    """As `by_layer`, the arrays of "stem", "stage1", "stage2", ..., "classifier"."""
    return _grouped(tree, lambda path: stage_of(path[0]))


def stage_of(name: str) -> str:
    """The stage of a layer or a block by its name: "stage1" of "stage1_block2/conv1", "stem" of "stem/conv"."""
    return name.partition("/")[0].partition("_block")[0]


def norm(arrays: list[Array]) -> Float[Array, ""]:
    """The Euclidean norm of all elements together."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(array)) for array in arrays))


def means_by_stage(values: Mapping[str, float]) -> dict[str, float]:
    """The mean over each stage's layers or blocks, by the stage's name."""
    return {stage: math.fsum(own) / len(own) for stage, own in _of_stages(values).items()}


def largest_by_stage(values: Mapping[str, float]) -> dict[str, float]:
    """The largest of each stage's layers, by the stage's name."""
    return {stage: max(own) for stage, own in _of_stages(values).items()}


def _of_stages(values: Mapping[str, float]) -> dict[str, list[float]]:
    stages: dict[str, list[float]] = {}
    for name, value in values.items():
        stages.setdefault(stage_of(name), []).append(value)
    return stages


def _grouped(tree: Mapping[str, Any], name_of: Any) -> dict[str, list[Array]]:
    groups: dict[str, list[Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(unstack_blocks({"params": dict(tree)})["params"]):
        groups.setdefault(name_of([part.key for part in path]), []).append(leaf)
    return groups
