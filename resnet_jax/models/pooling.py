"""The 3x3 maximum at stride 2 of the stem (Table 1)."""

from collections.abc import Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

_SIZE, _STRIDE = 3, 2


def max_pool(x: Float[Array, "n h w c"], padding: Sequence[tuple[int, int]]) -> Float[Array, "n oh ow c"]:
    """The largest value of each window; what is padded never is.

    On a GPU it is the largest of nine strided slices, bit for bit the same in value and gradient: XLA's own has a
    gradient (select-and-scatter) that adds in any order there, and that `--xla_gpu_deterministic_ops` refuses.

    Args:
      x: images.
      padding: pixels above and below, left and right.
    """
    slices = partial(_largest_slice, padding=tuple(padding))
    return jax.lax.platform_dependent(x, cuda=slices, rocm=slices, default=partial(_pool, padding=tuple(padding)))


def _pool(x: Array, *, padding: tuple[tuple[int, int], ...]) -> Array:
    return nn.max_pool(x, (_SIZE, _SIZE), (_STRIDE, _STRIDE), padding)


def _largest_slice(x: Array, *, padding: tuple[tuple[int, int], ...]) -> Array:
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
    ends = [length - _SIZE + 1 for length in x.shape[1:3]]
    windows = [
        x[:, top : top + ends[0] : _STRIDE, left : left + ends[1] : _STRIDE]
        for top in range(_SIZE)
        for left in range(_SIZE)
    ]
    # Of equal ones the first has the gradient, as in XLA's own; and what is not a number stays so.
    return reduce(lambda a, b: jnp.where((a >= b) | jnp.isnan(a), a, b), windows)
