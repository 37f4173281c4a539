"""Boxes: float32 (x1, y1, x2, y2) in pixels, continuous coordinates: a width is x2 - x1, without a pixel more."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

# The height and the width of an image in pixels.
Size = Float[Array, "2"] | Int[Array, "2"]

# No decoded side is longer than 1000/16 of the anchor's: early in training exp() of an offset can be anything.
_LARGEST_LOG = math.log(1000 / 16)


def area(boxes: Float32[Array, "*n 4"]) -> Float32[Array, "*n"]:
    """Square pixels."""
    width, height = _sides(boxes)
    return width * height


def intersection_over_union(a: Float32[Array, "n 4"], b: Float32[Array, "m 4"]) -> Float32[Array, "n m"]:
    """Of every box of `a` with every one of `b`; 0 where both have no area.

    Example:
      >>> boxes = jnp.asarray([[0, 0, 10, 10], [0, 5, 10, 15], [20, 20, 30, 30]], jnp.float32)
      >>> print(intersection_over_union(boxes[:1], boxes).round(3))
      [[1.    0.333 0.   ]]
    """
    a, b = a[:, None], b[None]
    width = jnp.minimum(a[..., 2], b[..., 2]) - jnp.maximum(a[..., 0], b[..., 0])
    height = jnp.minimum(a[..., 3], b[..., 3]) - jnp.maximum(a[..., 1], b[..., 1])
    intersection = jnp.maximum(width, 0) * jnp.maximum(height, 0)
    union = area(a) + area(b) - intersection
    return jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1), 0)


def clip(boxes: Float32[Array, "*n 4"], size: Size) -> Float32[Array, "*n 4"]:
    """What of the boxes lies in an image of this height and width; a box outside it is left without area."""
    limits = jnp.tile(size[::-1], 2).astype(boxes.dtype)
    return jnp.clip(boxes, 0, jnp.broadcast_to(limits, boxes.shape))


def mirror(boxes: Float32[Array, "*n 4"], width: int | float | Array) -> Float32[Array, "*n 4"]:
    """The boxes of the image, `width` pixels wide, with left and right exchanged."""
    x1, y1, x2, y2 = _coordinates(boxes)
    return jnp.stack([width - x2, y1, width - x1, y2], -1)


def at_least(boxes: Float32[Array, "*n 4"], side: int | float) -> Bool[Array, "*n"]:
    """Which boxes have both sides of at least `side` pixels."""
    width, height = _sides(boxes)
    return (width >= side) & (height >= side)


def encode(
    boxes: Float32[Array, "*n 4"], anchors: Float32[Array, "*n 4"], weights: tuple[float, float, float, float]
) -> Float32[Array, "*n 4"]:
    """The offsets (dx, dy, dw, dh) that lead from anchors to boxes (Girshick et al. 2014, appendix C).

    They are not finite where a box or an anchor has no area, as padding has not: choose among them with `jnp.where`,
    since a weight of 0 does not help.

    Args:
      boxes: to be reached.
      anchors: to begin with.
      weights: what each offset is multiplied by; (10, 10, 5, 5) are the usual standard deviations 0.1 and 0.2.
    """
    x, y, width, height = _centres_and_sides(boxes)
    anchor_x, anchor_y, anchor_width, anchor_height = _centres_and_sides(anchors)
    offsets = [
        (x - anchor_x) / anchor_width,
        (y - anchor_y) / anchor_height,
        jnp.log(width / anchor_width),
        jnp.log(height / anchor_height),
    ]
    return jnp.stack([weight * offset for weight, offset in zip(weights, offsets, strict=True)], -1)


def decode(
    offsets: Float32[Array, "... 4"], anchors: Float32[Array, "... 4"], weights: tuple[float, float, float, float]
) -> Float32[Array, "... 4"]:
    """The boxes to which offsets lead from anchors: `encode` backwards; no side grows by more than 1000/16.

    Offsets of several classes, [n c 4], go with anchors [n 1 4].

    Example:
      >>> anchor, box = jnp.asarray([[0, 0, 16, 16]], jnp.float32), jnp.asarray([[4, 0, 12, 32]], jnp.float32)
      >>> offsets = encode(box, anchor, (1.0, 1.0, 1.0, 1.0))
      >>> print(offsets.round(3), decode(offsets, anchor, (1.0, 1.0, 1.0, 1.0)).round().astype(int))
      [[ 0.     0.5   -0.693  0.693]] [[ 4  0 12 32]]
    """
    dx, dy, dw, dh = (offset / weight for offset, weight in zip(_coordinates(offsets), weights, strict=True))
    x, y, width, height = _centres_and_sides(anchors)
    x, y = dx * width + x, dy * height + y
    half_width = 0.5 * width * jnp.exp(jnp.minimum(dw, _LARGEST_LOG))
    half_height = 0.5 * height * jnp.exp(jnp.minimum(dh, _LARGEST_LOG))
    return jnp.stack([x - half_width, y - half_height, x + half_width, y + half_height], -1)


def _coordinates(boxes: Array) -> tuple[Array, Array, Array, Array]:
    return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


def _sides(boxes: Array) -> tuple[Array, Array]:
    x1, y1, x2, y2 = _coordinates(boxes)
    return x2 - x1, y2 - y1


def _centres_and_sides(boxes: Array) -> tuple[Array, Array, Array, Array]:
    x1, y1, _, _ = _coordinates(boxes)
    width, height = _sides(boxes)
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height
