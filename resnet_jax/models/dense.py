"""Fully convolutional testing (section 3.4): images of several sizes in one padded batch, scores at every position.

Images that differ in size stand at the top left of a batch of one shape, and what lies beyond them must not change
their scores. Alone, an image is surrounded by the zeros that every convolution pads with and by the -inf of the
maximum; so these are put back, layer by layer, wherever a window could look over an image's edge. Every layer of
stride 2 turns a length l into ceil(l / 2) and starts at pixel 0: after a total stride s, ceil(size / s) rows and
columns belong to the image.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

Sizes = Int[Array | np.ndarray, "n 2"]
Fill = Callable[..., Array]


def valid_positions(
    sizes: Sizes, padded_shape: tuple[int, ...], *, total_stride: int, pool_window: int
) -> Bool[Array, "n h w"]:
    """Which positions of a net's map of scores, made with `sizes` and `pool_window`, see nothing but their image.

    Args:
      sizes: height and width of each image, in pixels; below (pool_window - 1) * total_stride + 1 of either, an
        image has no valid position at all.
      padded_shape: height and width of the batch, in pixels.
      total_stride: pixels from one position to the next, `ResNet.total_stride`.
      pool_window: the net's.

    Returns:
      True in the first ceil(size / total_stride) - pool_window + 1 rows and columns.

    Raises:
      ValueError: as the net's call does.
    """
    check_padding(sizes, (len(sizes), *padded_shape), total_stride)
    map_shape = padded_shape[0] // total_stride, padded_shape[1] // total_stride
    _check_window(pool_window, map_shape)
    # A window is inside when its last row and column are.
    return _inside(sizes, padded_shape, map_shape)[:, pool_window - 1 :, pool_window - 1 :]


def check_padding(sizes: Sizes, batch_shape: tuple[int, ...], total_stride: int) -> None:
    """Raises ValueError where sizes are not those of a batch [n, h, w], or its shape is not that of whole strides."""
    count, height, width = batch_shape
    if sizes.shape != (count, 2):
        raise ValueError(f"sizes must be height and width of each image, shape {(count, 2)}, found {sizes.shape}")
    if height % total_stride or width % total_stride:
        raise ValueError(
            f"with sizes, images must be padded to multiples of the total stride of {total_stride} pixels, "
            f"found {height}x{width}"
        )


def keep(x: Array, value: float = 0.0) -> Array:
    """The `fill` of whole images, which have nothing beyond them: x as it is."""
    del value
    return x


def padding_filler(sizes: Sizes, padded_shape: tuple[int, ...]) -> Fill:
    """Returns fill(x, value=0.0): x [n, h, w, c] of any layer, with `value` beyond each image.

    Selects rather than multiplies, so that not even NaN and inf get through.
    """

    def fill(x: Array, value: float = 0.0) -> Array:
        return jnp.where(_inside(sizes, padded_shape, x.shape[1:3])[..., None], x, value)

    return fill


def filled_norm(norm: Callable[..., nn.Module], fill: Fill) -> Callable[..., Callable[[Array], Array]]:
    """The same constructor of normalization layers, whose outputs `fill` makes zero beyond each image.

    Then every convolution of more than one pixel sees zeros there: ReLU and the sum with an identity shortcut keep
    them, and the sums of pre-activation blocks, which are not filled, reach a convolution only through a normalization.
    """

    def make(**options: Any) -> Callable[[Array], Array]:
        layer = norm(**options)
        return lambda x: fill(layer(x))

    return make


def average(
    x: Float[Array, "n h w c"], *, pool_window: int | None, sizes: Sizes | None, padded_shape: tuple[int, ...]
) -> Float[Array, "n c"] | Float[Array, "n oh ow c"]:
    """The last pooling: over each image's own part of x, zero beyond it, or over every window at stride 1.

    Raises:
      ValueError: if a window does not fit into the map.
    """
    if pool_window is not None:
        _check_window(pool_window, x.shape[1:3])
        return nn.avg_pool(x, (pool_window, pool_window))
    if sizes is None:
        return x.mean((1, 2))
    positions = _inside(sizes, padded_shape, x.shape[1:3]).sum((1, 2))
    return x.sum((1, 2)) / positions[:, None]


def _inside(sizes: Sizes, padded_shape: tuple[int, ...], map_shape: tuple[int, ...]) -> Bool[Array, "n h w"]:
    """The positions of a layer's map that belong to each image."""
    strides = [pixels // length for pixels, length in zip(padded_shape, map_shape, strict=True)]
    rows, columns = (
        jnp.arange(length)[None] * stride < sizes[:, axis, None]
        for axis, (length, stride) in enumerate(zip(map_shape, strides, strict=True))
    )
    return rows[:, :, None] & columns[:, None, :]


def _check_window(pool_window: int, map_shape: tuple[int, ...]) -> None:
    if not 1 <= pool_window <= min(map_shape):
        height, width = map_shape
        raise ValueError(
            f"pool_window={pool_window} does not fit the last stage's map of {height}x{width} positions; "
            f"choose 1 to {min(map_shape)}, or pad the images to a larger shape"
        )
