"""Anchors: the boxes of several sizes and shapes at every position of a feature map (Ren et al. 2015, section 3.1)."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32

from resnet_jax.detection.boxes import Size


def anchors(
    height: int, width: int, *, stride: int, sizes: Sequence[int | float], ratios: Sequence[int | float]
) -> Float32[Array, "a 4"]:
    """All anchors of a feature map, [height * width * len(ratios) * len(sizes), 4].

    Positions come row by row, at each position ratios, for each ratio sizes. Coordinates are whole pixels, the first
    position is centred on the corner (0, 0) of the image: both as in torchvision.

    Args:
      height: of the feature map.
      width: of the feature map.
      stride: pixels of the image from one position to the next.
      sizes: pixels of a side of the square of equal area; 128, 256 and 512, and 64 for COCO, in the paper.
      ratios: height to width; 0.5, 1 and 2 in the paper.
    """
    root = np.sqrt(np.asarray(ratios, np.float32))[:, None]
    size = np.asarray(sizes, np.float32)[None]
    heights, widths = (root * size).ravel(), ((1 / root) * size).ravel()
    shapes = jnp.asarray(np.round(np.stack([-widths, -heights, widths, heights], -1) / 2))
    y, x = (stride * grid.ravel() for grid in jnp.mgrid[:height, :width])
    positions = jnp.stack([x, y, x, y], -1).astype(jnp.float32)
    return (positions[:, None] + shapes[None]).reshape(-1, 4)


def inside(anchors: Float32[Array, "*n 4"], size: Size) -> Bool[Array, "*n"]:
    """Which anchors lie in an image of this height and width as a whole; the others are left out of training."""
    height, width = size
    return (anchors[..., :2] >= 0).all(-1) & (anchors[..., 2] <= width) & (anchors[..., 3] <= height)
