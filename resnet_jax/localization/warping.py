"""Regions cut out of images and warped to squares of one size (R-CNN, Girshick et al. 2014, without its context)."""

from functools import partial

import jax
from jaxtyping import Array, Float, Float32

from resnet_jax.detection.roi import roi_align
from resnet_jax.models.dense import Sizes


def warp(
    images: Float[Array, "n h w c"], boxes: Float32[Array, "n r 4"], sizes: Sizes, *, size: int = 224
) -> Float[Array, "n r {size} {size} c"]:
    """Bilinear samples of the images themselves, one for each pixel of each region.

    The whole image is resized as `resize_image` does with "bilinear" and as `jax.image.resize` without antialiasing.
    What a region's samples ask of beyond the image is its border.

    Args:
      images: padded at the bottom and right; the padding has no influence.
      boxes: the regions of each image, in its pixels.
      sizes: height and width of each image without its padding, in pixels.
      size: of the warped regions, in pixels.
    """
    # One sample in the middle of each bin.
    cut = partial(roi_align, size=size, scale=1.0, sampling=1)
    return jax.vmap(lambda image, own, extent: cut(image, own, extent=extent))(images, boxes, jax.numpy.asarray(sizes))
