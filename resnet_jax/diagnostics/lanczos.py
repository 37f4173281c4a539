"""The ends of a symmetric map's spectrum without its matrix (Lanczos 1950).

The largest of k Ritz values is never above the largest eigenvalue, but for rounding, and comes near it in far fewer
products than k steps of the power method, which would find the largest magnitude, whatever its sign. No step is made
orthogonal to all earlier ones, which only repeats eigenvalues that are already found; three vectors are in memory.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

# Off the diagonal, as a share of the largest element: below, rounding is all that is left to find.
_NOTHING = 1e-6


class LanczosStep(NamedTuple):
    """Where the method stands.

    Attributes:
      before: the vector of the step before, zeros at the start.
      vector: of this step, of length 1.
      diagonal: the last step's element of the tridiagonal matrix.
      beside: the element beside it, by which `before` and `vector` are coupled; 0 at the start.
    """

    before: Any
    vector: Any
    diagonal: Float[Array, ""]
    beside: Float[Array, ""]


def lanczos_start(vector: Any) -> LanczosStep:
    """Begins with a vector, a tree of arrays of any length but 0."""
    zeros, length = jax.tree.map(jnp.zeros_like, vector), optax.tree.norm(vector)
    nothing = jnp.zeros((), length.dtype)
    return LanczosStep(zeros, optax.tree.scale(1 / length, vector), nothing, nothing)


def lanczos_step(product: Callable[[Any], Any], at: LanczosStep) -> LanczosStep:
    """One product with the map, and what follows from it."""
    rest = jax.tree.map(lambda a, b: a - at.beside * b, product(at.vector), at.before)
    diagonal = optax.tree.vdot(rest, at.vector)
    rest = jax.tree.map(lambda a, b: a - diagonal * b, rest, at.vector)
    beside = optax.tree.norm(rest)
    safe = jnp.where(beside == 0, 1.0, beside)
    return LanczosStep(at.vector, optax.tree.scale(1 / safe, rest), diagonal, beside)


def ritz_values(diagonal: Any, beside: Any) -> Float[np.ndarray, " _"]:
    """The Ritz values, the smallest first.

    Args:
      diagonal: `LanczosStep.diagonal` of each step.
      beside: likewise.

    Returns:
      One value a step; fewer where the vectors came to span a space that the map does not leave. NaN if an element is
      not finite.
    """
    main, off = np.asarray(diagonal, np.float64), np.asarray(beside, np.float64)
    if not (np.isfinite(main).all() and np.isfinite(off).all()):
        return np.full(len(main), np.nan)
    ended = np.flatnonzero(off <= _NOTHING * max(np.abs(main).max(), off.max()))
    steps = int(ended[0]) + 1 if ended.size else len(main)
    main, off = main[:steps], off[: steps - 1]
    return np.linalg.eigvalsh(np.diag(main) + np.diag(off, 1) + np.diag(off, -1))
