"""An image with its boxes at one of two shapes, so that a net is compiled twice and pads little.

Images of up to 600 x 1000 pixels would need squares of 1000; one shape for those that are wider than high and one for
the others has 0.6 of the pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from resnet_jax.data.decode import decode
from resnet_jax.data.resize import check_resize, resize_image
from resnet_jax.detection.annotations import Annotated, BoxSource


class BoxExample(NamedTuple):
    """An image and its objects, padded to shapes that all have; of several, [n, ...] in each array.

    Attributes:
      image: [H, W, 3], padded at the right and the bottom.
      boxes: [m, 4], (x1, y1, x2, y2) in pixels of `image`; zeros beyond the objects.
      labels: [m], class numbers; 0 beyond the objects.
      valid: [m], whether there is an object.
      ignored: [m], whether it is no target, see `Annotated`.
      size: (height, width) of the image without its padding, in pixels.
      scale: (height, width) of the image without its padding, by those of its file.
      image_index: of the image in its source.
    """

    image: UInt8[np.ndarray, "*n h w 3"]
    boxes: Float32[np.ndarray, "*n m 4"]
    labels: Int32[np.ndarray, "*n m"]
    valid: Bool[np.ndarray, "*n m"]
    ignored: Bool[np.ndarray, "*n m"]
    size: Int32[np.ndarray, "*n 2"]
    scale: Float32[np.ndarray, "*n 2"]
    image_index: Int32[np.ndarray, "*n"]


@dataclass(frozen=True)
class Framing:
    """How images are scaled and padded. The paper's sides are 600 and 1000 (appendix A and Ren et al. 2015).

    Attributes:
      short_side: of the scaled image, in pixels, unless the longer side would exceed `long_side`.
      long_side: of the scaled image at most, in pixels; at least `short_side`.
      stride: of which both sides of the padded image are multiples, in pixels.
      max_boxes: objects that an image can have; COCO's have up to 93, VOC's fewer.
      fill: colour of the padding, 0 to 255: what becomes 0 when the image is normalised.
      resize: see `resize_image`.
      short_sides: one of them is drawn for each training image, none above `short_side`, whose padding they share;
        empty: all have `short_side`.

    Raises:
      ValueError: a value outside what is allowed.
    """

    short_side: int = 600
    long_side: int = 1000
    stride: int = 32
    max_boxes: int = 100
    fill: tuple[int, int, int] = (0, 0, 0)
    resize: str = "bilinear"
    short_sides: tuple[int, ...] = ()

    def __post_init__(self):
        if not 1 <= self.short_side <= self.long_side:
            raise ValueError(f"short_side={self.short_side}; allowed: 1 to long_side={self.long_side}")
        for name in ("stride", "max_boxes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; allowed: from 1")
        if not all(0 <= value <= 255 for value in self.fill):
            raise ValueError(f"fill={self.fill}; allowed: three numbers from 0 to 255")
        if not all(1 <= side <= self.short_side for side in self.short_sides):
            raise ValueError(f"short_sides={self.short_sides}; allowed: 1 to short_side={self.short_side}")
        check_resize(self.resize)

    def at(self, short_side: int) -> "Framing":
        """The same for another shorter side, the longer one in proportion."""
        return replace(
            self, short_side=short_side, long_side=round(self.long_side * short_side / self.short_side), short_sides=()
        )

    def scaled_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of an image of that size after scaling, each rounded to the nearest pixel, half up."""
        factor = min(self.short_side / min(size), self.long_side / max(size))
        height, width = (max(1, math.floor(side * factor + 0.5)) for side in size)
        return height, width

    def bucket_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) to which an image of that size is padded, one of two; a square lies in landscape."""
        sides = [math.ceil(side / self.stride) * self.stride for side in (self.short_side, self.long_side)]
        return (sides[0], sides[1]) if size[0] <= size[1] else (sides[1], sides[0])

    def buckets(self, source: BoxSource) -> list[tuple[int, int]]:
        """(height, width) to which each image of a source is padded."""
        return [self.bucket_of(size) for size in source.sizes()]

    def example(self, example: Annotated, index: int, rng: np.random.Generator, *, flip: bool) -> BoxExample:
        """The whole image, of a drawn size, and with `flip` half of the time its mirror image; see `framed`."""
        mirror = flip and bool(rng.random() < 0.5)
        side = int(rng.choice(self.short_sides)) if self.short_sides else None
        return framed(example, index, self, mirror=mirror, short_side=side)


def framed(
    example: Annotated, index: int, framing: Framing, *, mirror: bool = False, short_side: int | None = None
) -> BoxExample:
    """Decodes, scales and pads an image, and scales its boxes by the same.

    Args:
      example: from a source.
      index: its place there.
      framing: how.
      mirror: whether left and right are exchanged.
      short_side: at most the framing's, for an image that is scaled to less than it is padded for.

    Raises:
      UndecodableImage: see `decode`; the message does not name the image.
      ValueError: more than `framing.max_boxes` objects.
    """
    scaling = framing if short_side is None else replace(framing, short_side=short_side, short_sides=())
    return _framed(decode(example.image), example, index, framing, scaling, mirror=mirror)


def framed_at(example: Annotated, index: int, framings: Sequence[Framing]) -> tuple[BoxExample, ...]:
    """As `framed`, at several sizes, for which the image is decoded once."""
    pixels = decode(example.image)
    return tuple(_framed(pixels, example, index, framing, framing, mirror=False) for framing in framings)


def _framed(
    pixels: UInt8[np.ndarray, "h w 3"],
    example: Annotated,
    index: int,
    framing: Framing,
    scaling: Framing,
    *,
    mirror: bool,
) -> BoxExample:
    if len(example.labels) > framing.max_boxes:
        raise ValueError(f"example {index} ({example.name}): {too_many(len(example.labels), framing.max_boxes)}")
    original = pixels.shape[:2]
    height, width = scaling.scaled_size(original)
    pixels = resize_image(pixels, (height, width), resize=framing.resize)
    # By the sides' own quotients, which rounding makes different.
    scale = np.array([height / original[0], width / original[1]], np.float32)
    boxes = example.boxes * scale[[1, 0, 1, 0]]
    if mirror:
        pixels, boxes = (
            pixels[:, ::-1],
            np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1),
        )
    image = np.empty((*framing.bucket_of(original), 3), np.uint8)
    image[:] = framing.fill
    image[:height, :width] = pixels
    return BoxExample(
        image=image,
        boxes=padded(boxes.astype(np.float32), framing.max_boxes),
        labels=padded(example.labels, framing.max_boxes),
        valid=np.arange(framing.max_boxes) < len(boxes),
        ignored=padded(example.ignored, framing.max_boxes),
        size=np.array([height, width], np.int32),
        scale=scale,
        image_index=np.array(index, np.int32),
    )


def nothing_framed(bucket: tuple[int, int], framing: Any) -> BoxExample:
    """No image, of a bucket's shape: what fills a batch up."""
    most = framing.max_boxes
    return BoxExample(
        image=np.broadcast_to(np.array(framing.fill, np.uint8), (*bucket, 3)),
        boxes=np.zeros((most, 4), np.float32),
        labels=np.zeros(most, np.int32),
        valid=np.zeros(most, bool),
        ignored=np.zeros(most, bool),
        size=np.array(bucket, np.int32),
        scale=np.ones(2, np.float32),
        image_index=np.array(-1, np.int32),
    )


def stacked(examples: Sequence[BoxExample]) -> BoxExample:
    """A batch of examples of one bucket: [n, ...] in each array.

    Raises:
      ValueError: no examples, or of both buckets.
    """
    shapes = {example.image.shape[:2] for example in examples}
    if len(shapes) != 1:
        raise ValueError(f"images of {sorted(shapes)} pixels (height, width); a batch has images of one bucket")
    return BoxExample(*(np.stack(arrays) for arrays in zip(*examples, strict=True)))


def in_file_pixels(boxes: Float32[np.ndarray, "n 4"], scale: Float32[np.ndarray, "2"]) -> Float32[np.ndarray, "n 4"]:
    """Boxes in pixels of a `BoxExample` (not mirrored) as boxes in pixels of its file."""
    return boxes / scale[[1, 0, 1, 0]]


def check_max_boxes(source: BoxSource, max_boxes: int) -> None:
    """Raises a ValueError unless no image of a source has more objects.

    Of folders and COCO files it takes no time; of TFDS sets every record is read, 13 GB of COCO 2014.
    """
    largest = max(range(len(source)), key=source.count)
    if source.count(largest) > max_boxes:
        raise ValueError(f"{source.where(largest)}: {too_many(source.count(largest), max_boxes)}")


def too_many(count: int, max_boxes: int) -> str:
    """Says that an image has more objects than are allowed."""
    return f"it has {count} objects; max_boxes={max_boxes} allows fewer: set it to {count} or more"


def padded(array: np.ndarray, length: int) -> np.ndarray:
    """The array with zeros after it, `length` long."""
    return np.concatenate([array, np.zeros((length - len(array), *array.shape[1:]), array.dtype)])
