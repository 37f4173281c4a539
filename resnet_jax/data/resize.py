"""Resizing on the host, by OpenCV: the quickest there is for 8-bit images, and antialiased where asked for."""

import cv2
import numpy as np
from jaxtyping import UInt8

RESIZES = ("area", "bilinear")


def resize_image(
    image: UInt8[np.ndarray, "h w c"], size: tuple[int, int], *, resize: str
) -> UInt8[np.ndarray, "{size[0]} {size[1]} c"]:
    """Resizes to (height, width); pixel centres stand at half-integers, as in TensorFlow 2, PyTorch and Pillow.

    "bilinear" reads the four nearest pixels, so it aliases where it shrinks (TensorFlow's default). "area" takes the
    mean over what each new pixel covers along an axis that shrinks, and is bilinear along one that grows.

    Raises:
      ValueError: `resize` or `size` is none of those allowed.
    """
    check_resize(resize)
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"size={size}; allowed are heights and widths from 1")
    channels = image.shape[2]
    if resize == "area":
        # OpenCV's INTER_AREA is close to the nearest pixel as soon as one axis grows, so it gets those that shrink.
        shrunk = (min(height, image.shape[0]), min(width, image.shape[1]))
        image = _resize(image, shrunk, cv2.INTER_AREA)
    return _resize(image, size, cv2.INTER_LINEAR).reshape(height, width, channels)


def scaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) of an image whose shorter side becomes `short_side`; the longer is rounded down."""
    if height <= width:
        return short_side, short_side * width // height
    return short_side * height // width, short_side


def check_resize(resize: str) -> None:
    """Raises a ValueError unless `resize` is one of the allowed."""
    if resize not in RESIZES:
        raise ValueError(f"resize={resize!r}; allowed: {', '.join(RESIZES)}")


def _resize(image: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    return image if image.shape[:2] == size else cv2.resize(image, size[::-1], interpolation=interpolation)
