"""What a net expects of its input, as timm and Hugging Face describe it."""

import math
from dataclasses import dataclass

import numpy as np

from resnet_jax.data.input_description import InputDescription
from resnet_jax.models.resnet import ResNet

# The interpolation by Pillow's number, which Hugging Face writes.
PILLOW_NUMBERS = {"bilinear": 2, "bicubic": 3}
_INTERPOLATIONS = {"pillow_bilinear": "bilinear", "pillow_bicubic": "bicubic"}
# From here on Hugging Face's `ConvNextImageProcessor` stretches images to a square and crops nothing.
_STRETCHED_SIDE = 384


@dataclass(frozen=True)
class View:
    """The one square view of an image that timm and Hugging Face test a net with.

    Attributes:
      side: of the square, in pixels.
      crop_fraction: the side's share of the shorter side that the image is resized to.
      interpolation: "bilinear" or "bicubic", as Pillow does it.
      mean: of each channel, of pixels from 0 to 1.
      std: likewise.
    """

    side: int
    crop_fraction: float
    interpolation: str
    mean: list[float]
    std: list[float]


def describe_view(input: InputDescription, model: ResNet, *, library: str) -> View:
    """The view that the net's input description asks for.

    Args:
      input: what the net expects.
      model: the net.
      library: "timm" or "Hugging Face".

    Raises:
      ValueError: the description is not the net's, or the library has no word for something in it.
    """
    height, width, channels = input.image_shape
    if height != width or channels != 3:
        raise ValueError(f"{library} describes square images of three channels; found {input.image_shape}")
    if input.mean.ndim != 1:
        raise ValueError(
            f"{library} has no place for a mean image, found one of shape {input.mean.shape}; its mean over the "
            f"pixels, {','.join(f'{value:.6g}' for value in input.channel_mean)}, as --mean changes the scores a little"
        )
    if len(input.class_names) != model.num_classes:
        raise ValueError(f"the input has {len(input.class_names)} class names, the net {model.num_classes} classes")
    # Where images are taken as they are, nothing is interpolated.
    resize = "pillow_bilinear" if input.short_side is None else input.resize
    if resize not in _INTERPOLATIONS:
        raise ValueError(
            f"{library} has no resize={resize!r}; --resize={' or '.join(_INTERPOLATIONS)} is near to it, and changes "
            "the scores a little"
        )
    if library == "Hugging Face" and input.short_side is not None and height >= _STRETCHED_SIDE:
        raise ValueError(
            f"Hugging Face's ConvNextImageProcessor cuts out no squares of {height} pixels: from {_STRETCHED_SIDE} on "
            "it stretches images; describe smaller ones"
        )
    mean, std = ((np.asarray(value, np.float64) / 255).tolist() for value in (input.mean, input.std))
    fraction = crop_fraction(height, input.short_side or height)
    return View(height, fraction, _INTERPOLATIONS[resize], mean, std)


def crop_fraction(side: int, short_side: int) -> float:
    """The crop's share of the resized image's shorter side, such that floor(side / share) is short_side again.

    timm and Hugging Face store the share, and compute the side that they resize to in this way.

    Raises:
      ValueError: the crop is larger than the image.
    """
    if side > short_side:
        raise ValueError(f"a crop of {side} pixels does not fit an image resized to {short_side}")
    share = side / short_side
    # Rounding up the share can make the quotient fall short.
    return share if math.floor(side / share) == short_side else math.nextafter(share, 0.0)
