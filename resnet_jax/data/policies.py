"""Automatic augmentation of one image: RandAugment and TrivialAugment, over Pillow's operations.

Not in the paper; the field's stronger recipes use them. Operations and ranges are those of torchvision's `RandAugment`
and `TrivialAugmentWide`: nearest neighbour in the geometric ones, black where they uncover what is outside the image.
Of one amount both make the same pixels. Amounts here are not rounded to single precision first, as they are there,
which changes some pixels by one level, and TrivialAugment's middle translation: 16 pixels, where torchvision has 15.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps

MAX_MAGNITUDE = 30


class Operation(NamedTuple):
    """One operation of a policy.

    Attributes:
      apply: from (image, amount) to image.
      amounts: at magnitude 0 and at `MAX_MAGNITUDE`, linear in between.
      signed: whether half of the draws turn the amount's sign.
    """

    apply: Callable[[Image.Image, float], Image.Image]
    amounts: tuple[float, float]
    signed: bool


def rand_augment(
    image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator, *, operations: int = 2, magnitude: int = 9
) -> UInt8[np.ndarray, "h w c"]:
    """RandAugment (Cubuk et al. 2020): some operations of the same magnitude, each drawn from all of them.

    Args:
      image: RGB or grey.
      rng: draws the operations and their signs.
      operations: how many follow one another; none leaves the image as it is.
      magnitude: 0 to `MAX_MAGNITUDE`.

    Raises:
      ValueError: a magnitude outside that range.
    """
    if not 0 <= magnitude <= MAX_MAGNITUDE:
        raise ValueError(f"magnitude={magnitude}; allowed are 0 to {MAX_MAGNITUDE}")
    names = list(RAND_AUGMENT)
    for _ in range(operations):
        operation = RAND_AUGMENT[names[rng.integers(len(names))]]
        image = apply_operation(image, operation, magnitude, turned=operation.signed and rng.random() < 0.5)
    return image


def trivial_augment(image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w c"]:
    """TrivialAugment, wide (Müller and Hutter 2021): one operation, its magnitude drawn from all of 0 to 30."""
    names = list(TRIVIAL_AUGMENT)
    operation = TRIVIAL_AUGMENT[names[rng.integers(len(names))]]
    magnitude = int(rng.integers(MAX_MAGNITUDE + 1))
    return apply_operation(image, operation, magnitude, turned=operation.signed and rng.random() < 0.5)


def apply_operation(
    image: UInt8[np.ndarray, "h w c"], operation: Operation, magnitude: int, *, turned: bool
) -> UInt8[np.ndarray, "h w c"]:
    """Applies one operation at a magnitude of 0 to `MAX_MAGNITUDE`, with the amount's sign turned or not."""
    low, high = operation.amounts
    amount = low + (high - low) * magnitude / MAX_MAGNITUDE
    # A grey image has two axes in Pillow.
    pillow_image = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    result = operation.apply(pillow_image, -amount if turned else amount)
    return np.asarray(result).reshape(image.shape)


def _affine(image: Image.Image, coefficients: tuple[int | float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.NEAREST)


def _shear_x(image: Image.Image, slope: float) -> Image.Image:
    return _affine(image, (1, slope, 0, 0, 1, 0))


def _shear_y(image: Image.Image, slope: float) -> Image.Image:
    return _affine(image, (1, 0, 0, slope, 1, 0))


def _translate_x(image: Image.Image, pixels: float) -> Image.Image:
    return _affine(image, (1, 0, -int(pixels), 0, 1, 0))


def _translate_y(image: Image.Image, pixels: float) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, -int(pixels)))


def _translate_x_share(image: Image.Image, share: float) -> Image.Image:
    return _translate_x(image, share * image.width)


def _translate_y_share(image: Image.Image, share: float) -> Image.Image:
    return _translate_y(image, share * image.height)


def _rotate(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees)


def _brightness(image: Image.Image, change: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1 + change)


def _color(image: Image.Image, change: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(1 + change)


def _contrast(image: Image.Image, change: float) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(1 + change)


def _sharpness(image: Image.Image, change: float) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(1 + change)


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    return ImageOps.posterize(image, round(bits))


def _solarize(image: Image.Image, threshold: float) -> Image.Image:
    return ImageOps.solarize(image, math.ceil(threshold))


def _auto_contrast(image: Image.Image, _: float) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, _: float) -> Image.Image:
    return ImageOps.equalize(image)


def _identity(image: Image.Image, _: float) -> Image.Image:
    return image


# Shares of the width and height: 150 of 331 pixels, the size at which AutoAugment set the ranges.
RAND_AUGMENT = {
    "Identity": Operation(_identity, (0, 0), False),
    "ShearX": Operation(_shear_x, (0, 0.3), True),
    "ShearY": Operation(_shear_y, (0, 0.3), True),
    "TranslateX": Operation(_translate_x_share, (0, 150 / 331), True),
    "TranslateY": Operation(_translate_y_share, (0, 150 / 331), True),
    "Rotate": Operation(_rotate, (0, 30), True),
    "Brightness": Operation(_brightness, (0, 0.9), True),
    "Color": Operation(_color, (0, 0.9), True),
    "Contrast": Operation(_contrast, (0, 0.9), True),
    "Sharpness": Operation(_sharpness, (0, 0.9), True),
    "Posterize": Operation(_posterize, (8, 4), False),
    "Solarize": Operation(_solarize, (255, 0), False),
    "AutoContrast": Operation(_auto_contrast, (0, 0), False),
    "Equalize": Operation(_equalize, (0, 0), False),
}

TRIVIAL_AUGMENT = {
    "Identity": Operation(_identity, (0, 0), False),
    "ShearX": Operation(_shear_x, (0, 0.99), True),
    "ShearY": Operation(_shear_y, (0, 0.99), True),
    "TranslateX": Operation(_translate_x, (0, 32), True),
    "TranslateY": Operation(_translate_y, (0, 32), True),
    "Rotate": Operation(_rotate, (0, 135), True),
    "Brightness": Operation(_brightness, (0, 0.99), True),
    "Color": Operation(_color, (0, 0.99), True),
    "Contrast": Operation(_contrast, (0, 0.99), True),
    "Sharpness": Operation(_sharpness, (0, 0.99), True),
    "Posterize": Operation(_posterize, (8, 2), False),
    "Solarize": Operation(_solarize, (255, 0), False),
    "AutoContrast": Operation(_auto_contrast, (0, 0), False),
    "Equalize": Operation(_equalize, (0, 0), False),
}
