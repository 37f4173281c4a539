"""The 3x3 maximum at stride 2 of the stem (Table 1)."""

from collections.abc import Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

Padding = tuple[tuple[int, int], ...]

_SIZE, _STRIDE = 3, 2


def max_pool(x: Float[Array, "n h w c"], padding: Sequence[tuple[int, int]]) -> Float[Array, "n oh ow c"]:
    """The largest value of each window; what is padded never is.

    Differentiated on a GPU or a CPU it is the largest of nine strided slices, bit for bit the same in value and
    gradient. XLA's own gradient (select-and-scatter) adds in any order on a GPU, and `--xla_gpu_deterministic_ops`
    refuses it; a CPU takes four times as long for it (16 images of 112x112x64, forward and back: 499 for 128 ms).

    Args:
      x: images.
      padding: pixels above and below, left and right.
    """
    pads = tuple(padding)
    slices, own = (lambda x: _largest_slice(x, pads)), (lambda x: _pool(x, pads))
    return jax.lax.platform_dependent(x, cpu=slices, cuda=slices, rocm=slices, default=own)


def _pool(x: Array, padding: Padding) -> Array:
    return nn.max_pool(x, (_SIZE, _SIZE), (_STRIDE, _STRIDE), padding)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _largest_slice(x: Array, padding: Padding) -> Array:
    return _pool(x, padding)


def _forward(x, padding):
    """The largest value of each window; and its number among the nine, uint8, with the images for their shape."""
    largest, *others = _windows(x, padding, -jnp.inf)
    number = jnp.zeros(largest.shape, jnp.uint8)
    for index, values in enumerate(others, 1):
        # Of equal ones the first has the gradient, as in XLA's own; and what is not a number stays so.
        stays = (largest >= values) | jnp.isnan(largest)
        largest, number = jnp.where(stays, largest, values), jnp.where(stays, number, index)
    return largest, (number, x)


def _backward(padding, residuals, gradient):
    """From one number a window; JAX's own gradient keeps eight masks (experiments/benchmarks)."""
    number, x = residuals
    # Or a CPU finds the numbers anew for each of the nine.
    number = jax.lax.optimization_barrier(number)

    def chosen(x):
        windows = enumerate(_windows(x, padding, 0.0))
        return reduce(jnp.add, [jnp.where(number == index, values, 0) for index, values in windows])

    return jax.linear_transpose(chosen, x)(gradient)


_largest_slice.defvjp(_forward, _backward)


def _windows(x: Array, padding: Padding, beyond: float) -> list[Array]:
    """The first pixel of every window, the second, ... of nine, with a value beyond the images."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=beyond)
    ends = [length - _SIZE + 1 for length in x.shape[1:3]]
    return [
        x[:, top : top + ends[0] : _STRIDE, left : left + ends[1] : _STRIDE]
        for top in range(_SIZE)
        for left in range(_SIZE)
    ]
