"""The simple noise scale: the batch size at which a gradient's noise is as long as the gradient itself.

McCandlish, Kaplan, Amodei et al. 2018, "An Empirical Model of Large-Batch Training", section 2.2 and appendix A.1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array


class NoiseScale(NamedTuple):
    """Estimates without bias of two quantities, and their ratio; over several, average the two before the ratio.

    Attributes:
      scale: trace / square, in examples. Negative or huge where the true gradient is lost in the noise.
      trace: of the covariance of one example's gradient.
      square: squared norm of the true gradient.
    """

    scale: float
    trace: float
    square: float


def noise_scale(small_square: float, large_square: float, *, small: int, large: int) -> NoiseScale:
    """From the squared norms of gradients of two batch sizes (appendix A.1).

    Args:
      small_square: mean squared norm of the gradients of small batches.
      large_square: squared norm of a large batch's gradient.
      small: examples of a small batch.
      large: examples of the large one.

    Raises:
      ValueError: the sizes are not 1 <= small < large.
    """
    if not 1 <= small < large:
        raise ValueError(f"small={small} and large={large} examples: must be 1 <= small < large")
    square = (large * large_square - small * small_square) / (large - small)
    trace = (small_square - large_square) / (1 / small - 1 / large)
    return NoiseScale(trace / square if square else float("nan"), trace, square)


def make_noise_scale(
    loss: Callable[..., Array],
    *,
    parts: int,
    sharding: jax.sharding.Sharding | None = None,
    compiler_options: dict[str, Any] | None = None,
) -> Callable[..., NoiseScale]:
    """Returns the function (params, batch_stats, images, labels) -> `NoiseScale`.

    Parts of the images, one after the other, are the small batches, and the mean of their gradients is that of the
    large one. So with batch normalization all gradients are of statistics of groups of one size, a part's or
    `bn_group_size`; else those of large and small batches would be of different functions, whose difference is no
    noise.

    Args:
      loss: see `make_loss`.
      parts: that the images are cut into, all of one size.
      sharding: of the parameters on several devices, each of which has all of them.
      compiler_options: XLA's.

    Raises:
      ValueError: for parts below 2; when called, for images that do not split into them.
    """
    if parts < 2:
        raise ValueError(f"parts={parts}: must be at least 2")

    def add(part, total, params, batch_stats, images, labels):
        size = labels.shape[0] // parts
        own = (jax.lax.dynamic_slice_in_dim(array, part * size, size) for array in (images, labels))
        gradients = jax.grad(loss)(params, batch_stats, *own)
        total = optax.tree.add(total, gradients)
        return total, optax.tree.norm(gradients, squared=True), optax.tree.norm(total, squared=True)

    add_part = jax.jit(add, out_shardings=sharding, compiler_options=compiler_options)
    zeros = jax.jit(optax.tree.zeros_like, out_shardings=sharding)

    def estimate(params: Any, batch_stats: Any, images: Array, labels: Array) -> NoiseScale:
        large = labels.shape[0]
        if large % parts:
            raise ValueError(f"{large} images do not split into {parts} parts of one size")
        total, squares, of_total = zeros(params), [], None
        for part in range(parts):
            total, square, of_total = add_part(part, total, params, batch_stats, images, labels)
            squares.append(square)
        *squares, of_total = map(float, jax.device_get([*squares, of_total]))
        return noise_scale(sum(squares) / parts, of_total / parts**2, small=large // parts, large=large)

    return estimate
