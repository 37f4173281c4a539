"""What testing makes of one encoded image: the centre crop, ten crops, or the whole image at several scales.

The image is decoded at its full size and resized as a whole, and crops are cut out of that: no shortcut of training,
where boxes are rounded to whole pixels, touches a published error.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from resnet_jax.data.decode import MAX_PIXELS, UndecodableImage, check_channels, decode
from resnet_jax.data.resize import check_resize, resize_image, scaled_size


@dataclass(frozen=True)
class _CropView:
    image_size: int
    short_side: int
    resize: str = "area"
    channels: int = 3

    def __post_init__(self):
        if not 1 <= self.image_size <= self.short_side:
            raise ValueError(f"image_size={self.image_size}; allowed: 1 to short_side={self.short_side}")
        check_resize(self.resize)
        check_channels(self.channels)

    def _crop(self, image: np.ndarray, top: int, left: int) -> np.ndarray:
        return image[top : top + self.image_size, left : left + self.image_size]

    def _centre(self, image: np.ndarray) -> np.ndarray:
        # Half pixels go to the even offset, as in torchvision's centre crop.
        top, left = (round((side - self.image_size) / 2) for side in image.shape[:2])
        return self._crop(image, top, left)


class CenterView(_CropView):
    """The centre crop of the scaled image, the field's usual single view.

    Attributes:
      image_size: side of the crop in pixels.
      short_side: of the scaled image, at least `image_size`; the longer side is short_side * long / short rounded down.
      resize: see `resize_image`.
      channels: 3 for RGB, 1 for grey.

    Raises:
      ValueError: an attribute outside what is allowed.
    """

    def __call__(self, encoded: bytes) -> UInt8[np.ndarray, "s s c"]:
        """Makes the view [image_size, image_size, channels] of one encoded image.

        Raises:
          UndecodableImage: see `decode`; or the scaled image has more than `MAX_PIXELS`.
        """
        image = _scaled(decode(encoded, channels=self.channels), self.short_side, self.resize)
        return np.ascontiguousarray(self._centre(image))


class TenCropView(_CropView):
    """Five crops of the scaled image, which with their mirror images are the standard ten (section 3.4).

    Attributes:
      image_size: side of the crops in pixels.
      short_side: of the scaled image, at least `image_size`; the longer side is short_side * long / short rounded down.
      resize: see `resize_image`.
      channels: 3 for RGB, 1 for grey.

    Raises:
      ValueError: an attribute outside what is allowed.
    """

    def __call__(self, encoded: bytes) -> UInt8[np.ndarray, "5 s s c"]:
        """Makes [5, image_size, image_size, channels]: top left, top right, bottom left, bottom right, centre.

        The mirror images are left to the device.

        Raises:
          UndecodableImage: see `decode`; or the scaled image has more than `MAX_PIXELS`.
        """
        image = _scaled(decode(encoded, channels=self.channels), self.short_side, self.resize)
        bottom, right = (side - self.image_size for side in image.shape[:2])
        corners = [self._crop(image, top, left) for top in (0, bottom) for left in (0, right)]
        return np.stack([*corners, self._centre(image)])


@dataclass(frozen=True)
class ScaledViews:
    """The whole image at several scales, for fully convolutional testing (section 3.4); it is decoded once.

    Attributes:
      short_sides: of the scaled images in pixels; each longer side is short_side * long / short, rounded down, without
        a limit to the aspect.
      resize: see `resize_image`.
      channels: 3 for RGB, 1 for grey.

    Raises:
      ValueError: an attribute outside what is allowed.
    """

    short_sides: tuple[int, ...]
    resize: str = "area"
    channels: int = 3

    def __post_init__(self):
        if not self.short_sides or min(self.short_sides) < 1:
            raise ValueError(f"short_sides={self.short_sides}; allowed: one or more, each at least 1")
        check_resize(self.resize)
        check_channels(self.channels)

    def __call__(self, encoded: bytes) -> list[UInt8[np.ndarray, "_ _ c"]]:
        """Makes a view [height, width, channels] of one encoded image for each of `short_sides`.

        Raises:
          UndecodableImage: see `decode`; or a scaled image has more than `MAX_PIXELS`.
        """
        image = decode(encoded, channels=self.channels)
        return [_scaled(image, short_side, self.resize) for short_side in self.short_sides]


def padded_shape(height: int, width: int, *, short_side: int, stride: int = 32) -> tuple[int, int]:
    """The (height, width) to which a scaled image is padded: one of few, since each is a program to compile.

    The shorter axis is `short_side`, the longer the first of 3/2, 2, 4, 8, ... times `short_side` that fits, both
    rounded up to whole strides. A square image counts as landscape. So images up to an aspect of 4 have at most six
    shapes, three of landscape and three of portrait, and twice the aspect adds one of each.

    Args:
      height: of the image in pixels, before or after scaling.
      width: of the image in pixels.
      short_side: of the scaled image, as in `ScaledViews`.
      stride: of the net's last stage.
    """
    longer = max(scaled_size(height, width, short_side))
    rungs = (1.5, *(2**k for k in range(1, longer.bit_length() + 1)))
    padded = (math.ceil(short_side * rung / stride) * stride for rung in rungs)
    sides = math.ceil(short_side / stride) * stride, next(side for side in padded if side >= longer)
    return sides if height <= width else sides[::-1]


def _scaled(image: np.ndarray, short_side: int, resize: str) -> np.ndarray:
    size = scaled_size(image.shape[0], image.shape[1], short_side)
    if math.prod(size) > MAX_PIXELS:
        raise UndecodableImage(f"{size[0]} x {size[1]} pixels when scaled; allowed are {MAX_PIXELS} pixels")
    return resize_image(image, size, resize=resize)
