"""Resizing on the host: by OpenCV, the quickest there is for 8-bit images, or to the bit as Pillow does it."""

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

_PILLOW = {"pillow_bilinear": Image.Resampling.BILINEAR, "pillow_bicubic": Image.Resampling.BICUBIC}
RESIZES = ("area", "bilinear", *_PILLOW)


def resize_image(
    image: UInt8[np.ndarray, "h w c"], size: tuple[int, int], *, resize: str
) -> UInt8[np.ndarray, "{size[0]} {size[1]} c"]:
    """Resizes to (height, width); pixel centres stand at half-integers, as in TensorFlow 2, PyTorch and Pillow.

    "bilinear" reads the four nearest pixels, so it aliases where it shrinks (TensorFlow's default). "area" takes the
    mean over what each new pixel covers along an axis that shrinks, and is bilinear along one that grows.
    "pillow_bilinear" and "pillow_bicubic" are antialiased and Pillow's own, with which torchvision, timm and Hugging
    Face test their nets.

    Raises:
      ValueError: `resize` or `size` is none of those allowed.
    """
    check_resize(resize)
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"size={size}; allowed are heights and widths from 1")
    channels = image.shape[2]
    if resize in _PILLOW:
        return _resize_by_pillow(image, size, _PILLOW[resize])
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


def _resize_by_pillow(image: np.ndarray, size: tuple[int, int], resampling: Image.Resampling) -> np.ndarray:
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    return np.asarray(picture.resize(size[::-1], resampling)).reshape(*size, image.shape[2])
