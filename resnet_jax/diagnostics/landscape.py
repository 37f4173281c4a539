"""The loss along a line and on a plane through a solution, in directions that are made to compare nets.

Li, Xu, Taylor, Studer and Goldstein 2018, "Visualizing the Loss Landscape of Neural Nets": a net with batch
normalization computes the same when a filter is scaled, so a random direction is scaled filter by filter to the length
of the weights; else nets with large weights would look flat.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def filter_normalized_direction(key: Array, params: Any) -> Any:
    """A Gaussian direction in which each filter is as long as the filter of the weights (Li et al., section 4).

    A filter is what makes one output channel of a convolution, or one class of the classifier. Biases, gammas and betas
    do not move.

    Args:
      key: of the draw.
      params: a tree of arrays; kernels have their output channels on the last axis, and all others are vectors.
    """
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [_direction(*pair) for pair in zip(keys, leaves, strict=True)])


def _direction(key: Array, weights: Array) -> Array:
    if weights.ndim < 2:
        return jnp.zeros_like(weights)
    drawn = jax.random.normal(key, weights.shape, weights.dtype)
    axes = tuple(range(weights.ndim - 1))
    lengths = [jnp.sqrt(jnp.sum(jnp.square(array), axes, keepdims=True)) for array in (weights, drawn)]
    return drawn * (lengths[0] / lengths[1])


def between(start: Any, end: Any) -> Any:
    """The direction from one tree of parameters to another, which is at position 1 of the line from `start`."""
    return jax.tree.map(lambda a, b: b - a, start, end)


def make_landscape(
    loss: Callable[..., Array], *, compiler_options: dict[str, Any] | None = None
) -> Callable[..., Float[np.ndarray, "rows columns"]]:
    """Returns the function (params, directions, positions, *batch) -> losses [rows, columns].

    At row i and column j the parameters are moved by positions[0][i] times directions[0] and positions[1][j] times
    directions[1]. A line is one direction and its positions, and gives [rows, 1].

    Args:
      loss: of parameters and a batch, see `make_loss`, by whose batch statistics the net goes with its parameters.
      compiler_options: XLA's.

    Raises (when called):
      ValueError: not one or two directions, or not as many sequences of positions.
    """

    @partial(jax.jit, compiler_options=compiler_options)
    def at(params, first, second, x, y, *batch):
        return loss(jax.tree.map(lambda p, a, b: p + x * a + y * b, params, first, second), *batch)

    def losses(params: Any, directions: Sequence[Any], positions: Sequence[Sequence[float]], *batch: Any):
        if len(directions) not in (1, 2) or len(positions) != len(directions):
            raise ValueError(
                f"{len(directions)} directions and {len(positions)} sequences of positions: must be one of each, for a "
                "line, or two, for a plane"
            )
        # On a line the second direction does nothing.
        first, second = directions[0], directions[-1]
        rows, columns = positions[0], positions[1] if len(positions) == 2 else [0.0]
        found = [[at(params, first, second, float(x), float(y), *batch) for y in columns] for x in rows]
        return np.asarray(jax.device_get(found), np.float64)

    return losses
