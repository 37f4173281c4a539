"""The simple noise scale: the batch size at which a gradient's noise is as long as the gradient itself.

McCandlish, Kaplan, Amodei et al. 2018, "An Empirical Model of Large-Batch Training", section 2.2 and appendix A.1.
"""

from collections.abc import Callable, Mapping
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
    loss: Callable[..., Array], *, parts: int, compiler_options: Mapping[str, Any] | None = None
) -> Callable[..., NoiseScale]:
    """Returns the function (large_square, params, batch_stats, images, labels) -> `NoiseScale`.

    The images are the large batch, whose gradient's squared norm is given; parts of them, one after the other, the
    small ones. With batch normalization over the whole batch a part has statistics of its own, as a training batch of
    that size would; with groups all batches have the same, where a part is made of whole groups.

    Args:
      loss: see `make_loss`.
      parts: that the images are cut into, all of one size.
      compiler_options: XLA's.

    Raises:
      ValueError: for parts below 2; when called, for images that do not split into them.
    """
    if parts < 2:
        raise ValueError(f"parts={parts}: must be at least 2")

    def square(part, params, batch_stats, images, labels):
        size = labels.shape[0] // parts
        own = (jax.lax.dynamic_slice_in_dim(array, part * size, size) for array in (images, labels))
        return optax.tree.norm(jax.grad(loss)(params, batch_stats, *own), squared=True)

    of_part = jax.jit(square, compiler_options=dict(compiler_options or {}))

    def estimate(large_square: float, params: Any, batch_stats: Any, images: Array, labels: Array) -> NoiseScale:
        large = labels.shape[0]
        if large % parts:
            raise ValueError(f"{large} images do not split into {parts} parts of one size")
        squares = jax.device_get([of_part(part, params, batch_stats, images, labels) for part in range(parts)])
        return noise_scale(float(sum(squares)) / parts, large_square, small=large // parts, large=large)

    return estimate
