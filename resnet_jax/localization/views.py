"""What testing makes of an encoded image on the host: the centre crop or the whole image, and how to get back to it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from resnet_jax.data.decode import image_size
from resnet_jax.data.resize import scaled_size
from resnet_jax.data.views import CenterView, ScaledViews, padded_shape
from resnet_jax.localization.settings import SCALES


class HostView(NamedTuple):
    """An image or a part of it at one scale; of several, [n, ...] in each array.

    Attributes:
      image: [h, w, 3].
      size: height and width without padding, in pixels.
      scale: pixels of the view to one of the file, down and across.
      corner: row and column of the view's first pixel in the scaled image, in pixels.
      file_size: height and width of the file's image, in pixels.
    """

    image: UInt8[np.ndarray, "*n h w 3"]
    size: Int32[np.ndarray, "*n 2"]
    scale: Float32[np.ndarray, "*n 2"]
    corner: Float32[np.ndarray, "*n 2"]
    file_size: Int32[np.ndarray, "*n 2"]


def centre_view(encoded: bytes, *, side: int = 224, short_side: int = 256, resize: str = "area") -> HostView:
    """The centre crop, "1-crop": `data.views.CenterView`'s pixels.

    Args:
      encoded: the bytes of the image's file.
      side: height and width of the crop, in pixels.
      short_side: of the scaled image, in pixels; at least `side`.
      resize: see `resize_image`.

    Raises:
      ValueError: as `CenterView` does.
    """
    pixels = CenterView(side, short_side, resize=resize)(encoded)
    file_size = image_size(encoded)
    size = scaled_size(*file_size, short_side)
    # As `CenterView` rounds.
    corner = [round((length - side) / 2) for length in size]
    return _view(pixels, corner, size, file_size)


def whole_views(encoded: bytes, *, short_sides: tuple[int, ...] = SCALES, resize: str = "area") -> list[HostView]:
    """The whole image at several scales, for dense testing: `data.views.ScaledViews`'s pixels.

    Args:
      encoded: the bytes of the image's file.
      short_sides: of the scaled images, in pixels.
      resize: see `resize_image`.

    Raises:
      ValueError: as `ScaledViews` does.
    """
    file_size = image_size(encoded)
    return [
        _view(pixels, [0, 0], pixels.shape[:2], file_size)
        for pixels in ScaledViews(short_sides, resize=resize)(encoded)
    ]


def stacked_views(views: Sequence[HostView], shape: tuple[int, int]) -> HostView:
    """A batch of views, padded with zeros at the bottom and right.

    Args:
      views: one or more.
      shape: (height, width) that holds each, such as their common `shape_of`.

    Raises:
      ValueError: no views, or one that is larger.
    """
    if not views:
        raise ValueError("no views; a batch has one or more")
    images = np.zeros((len(views), *shape, 3), np.uint8)
    for place, view in zip(images, views, strict=True):
        height, width = map(int, view.size)
        if height > shape[0] or width > shape[1]:
            raise ValueError(
                f"a view of {height} x {width} pixels (height, width) in a batch of {shape[0]} x {shape[1]}"
            )
        place[:height, :width] = view.image
    return HostView(images, *(np.stack(arrays) for arrays in list(zip(*views, strict=True))[1:]))


def shape_of(view: HostView, *, stride: int) -> tuple[int, int]:
    """(height, width) that a view is padded to, one of few: each is a program to compile."""
    height, width = map(int, view.size)
    return padded_shape(height, width, short_side=min(height, width), stride=stride)


def _view(pixels: np.ndarray, corner: Sequence[int], size: tuple[int, ...], file_size: tuple[int, int]) -> HostView:
    return HostView(
        image=pixels,
        size=np.array(pixels.shape[:2], np.int32),
        scale=np.array([scaled / length for scaled, length in zip(size, file_size, strict=True)], np.float32),
        corner=np.array(corner, np.float32),
        file_size=np.array(file_size, np.int32),
    )
