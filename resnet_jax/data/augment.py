"""What training makes of one encoded image on the host: a random crop, its mirror, and perhaps a policy.

Everything random comes from a generator that belongs to the example's position in the stream of training examples, so
the result does not depend on hosts, workers or restarts.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

from resnet_jax.data.decode import Box, check_channels, decode_box, image_size
from resnet_jax.data.policies import MAX_MAGNITUDE, rand_augment, trivial_augment
from resnet_jax.data.resize import check_resize, scaled_size

Range = tuple[int | float, int | float]

CROPS = ("scale", "inception")
POLICIES = ("none", "randaugment", "trivialaugment")
_INCEPTION_TRIES = 10


def example_rng(seed: int, position: int) -> np.random.Generator:
    """The random numbers of one training example.

    The two arguments are the key of a counter-based generator (Philox), so no two pairs share numbers.

    Args:
      seed: 0 to 2^64 - 1.
      position: the example's place in the endless stream of training examples, in the same range.

    Raises:
      ValueError: a seed or position outside that range.
    """
    if not (0 <= seed < 2**64 and 0 <= position < 2**64):
        raise ValueError(f"seed={seed}, position={position}; allowed are 0 to 2^64 - 1")
    return np.random.Generator(np.random.Philox(key=np.array([seed, position], np.uint64)))


def scale_crop_box(
    rng: np.random.Generator, height: int, width: int, *, image_size: int, short_sides: tuple[int, int] = (256, 480)
) -> Box:
    """The paper's scale augmentation (section 3.4), as the box of the source image that the crop shows.

    The shorter side becomes a whole number drawn from `short_sides`, both included, and a square of `image_size` is
    taken from that at a whole offset; all are equally likely. The box is rounded to whole source pixels.

    Args:
      rng: of the example.
      height: of the source image in pixels.
      width: of the source image in pixels.
      image_size: side of the crop; at most the least of `short_sides`.
      short_sides: least and greatest shorter side.

    Returns:
      (top, left, height, width) in source pixels, inside the image and at least one pixel in each axis.
    """
    short_side = int(rng.integers(short_sides[0], short_sides[1] + 1))
    sizes = scaled_size(height, width, short_side)
    offsets = [int(rng.integers(size - image_size + 1)) for size in sizes]
    (top, bottom), (left, right) = (
        _source_pixels(offset, offset + image_size, source / size, source)
        for offset, size, source in zip(offsets, sizes, (height, width), strict=True)
    )
    return top, left, bottom - top, right - left


def inception_crop_box(
    rng: np.random.Generator, height: int, width: int, *, area: Range = (0.08, 1.0), aspect: Range = (3 / 4, 4 / 3)
) -> Box:
    """A box of random area and aspect (Szegedy et al. 2015, section 6), as Goyal et al. 2017 and torchvision draw it.

    The share of the image's area is uniform and the logarithm of width by height is uniform. A box that does not fit
    is drawn again; after ten tries it is the largest one in the centre whose aspect is within the range.

    Args:
      rng: of the example.
      height: of the image in pixels.
      width: of the image in pixels.
      area: least and greatest share of the image's area.
      aspect: least and greatest width by height.

    Returns:
      (top, left, height, width) in pixels, inside the image and at least one pixel in each axis.
    """
    for _ in range(_INCEPTION_TRIES):
        box_area = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        box_width, box_height = round(math.sqrt(box_area * ratio)), round(math.sqrt(box_area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top, left = rng.integers(height - box_height + 1), rng.integers(width - box_width + 1)
            return int(top), int(left), box_height, box_width
    # The aspect of the whole image, where it is within the range, makes these the whole image.
    box_width = max(1, min(width, round(height * aspect[1])))
    box_height = max(1, min(height, round(width / aspect[0])))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


@dataclass(frozen=True)
class TrainView:
    """A random view of an image, for training; calling it decodes, crops, resizes, mirrors and applies the policy.

    Attributes:
      image_size: side of the square result in pixels.
      crop: "scale" (`scale_crop_box`, the paper's) or "inception" (`inception_crop_box`).
      short_sides: of "scale".
      area: of "inception".
      aspect: of "inception".
      flip: whether to mirror left and right with probability one half.
      resize: see `resize_image`.
      policy: "none", "randaugment" or "trivialaugment", applied last.
      policy_operations: of RandAugment.
      policy_magnitude: of RandAugment, 0 to 30.
      channels: 3 for RGB, 1 for grey.

    Raises:
      ValueError: an attribute outside what is allowed.
    """

    image_size: int
    crop: str
    short_sides: tuple[int, int] = (256, 480)
    area: Range = (0.08, 1.0)
    aspect: Range = (3 / 4, 4 / 3)
    flip: bool = True
    resize: str = "area"
    policy: str = "none"
    policy_operations: int = 2
    policy_magnitude: int = 9
    channels: int = 3

    def __post_init__(self):
        checks = {
            "image_size": (self.image_size >= 1, "at least 1"),
            "crop": (self.crop in CROPS, " or ".join(CROPS)),
            "short_sides": (
                self.crop != "scale" or self.image_size <= self.short_sides[0] <= self.short_sides[1],
                f"two in ascending order, from image_size={self.image_size}",
            ),
            "area": (0 < self.area[0] <= self.area[1] <= 1, "two in ascending order, above 0 and up to 1"),
            "aspect": (0 < self.aspect[0] <= self.aspect[1], "two in ascending order, above 0"),
            "policy": (self.policy in POLICIES, " or ".join(POLICIES)),
            "policy_operations": (self.policy_operations >= 0, "at least 0"),
            "policy_magnitude": (0 <= self.policy_magnitude <= MAX_MAGNITUDE, f"0 to {MAX_MAGNITUDE}"),
        }
        for name, (is_allowed, allowed) in checks.items():
            if not is_allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}; allowed: {allowed}")
        check_resize(self.resize)
        check_channels(self.channels)

    def __call__(self, encoded: bytes, rng: np.random.Generator) -> UInt8[np.ndarray, "s s c"]:
        """Makes the view [image_size, image_size, channels] of one encoded image.

        Raises:
          UndecodableImage: see `decode`.
        """
        height, width = image_size(encoded)
        if self.crop == "scale":
            box = scale_crop_box(rng, height, width, image_size=self.image_size, short_sides=self.short_sides)
        else:
            box = inception_crop_box(rng, height, width, area=self.area, aspect=self.aspect)
        size = (self.image_size, self.image_size)
        view = decode_box(encoded, box, size, resize=self.resize, channels=self.channels)
        if self.flip and rng.random() < 0.5:
            view = cv2.flip(view, 1).reshape(view.shape)
        if self.policy == "randaugment":
            return rand_augment(view, rng, operations=self.policy_operations, magnitude=self.policy_magnitude)
        return trivial_augment(view, rng) if self.policy == "trivialaugment" else view


def _source_pixels(start: int, end: int, source_by_resized: float, count: int) -> tuple[int, int]:
    """An interval of the resized axis in whole pixels of the source axis, of at least one of its `count` pixels."""
    first = min(round(start * source_by_resized), count - 1)
    return first, max(first + 1, min(round(end * source_by_resized), count))
