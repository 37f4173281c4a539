"""What anchors and regions are trained towards: which of them, which class, which offsets. All of one image."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from resnet_jax.detection.anchors import inside
from resnet_jax.detection.boxes import encode, intersection_over_union
from resnet_jax.detection.matching import match, sample
from resnet_jax.detection.rpn import Proposals
from resnet_jax.detection.settings import ANCHOR_WEIGHTS, REGION_WEIGHTS, AnchorSampling, RegionSampling


class Truth(NamedTuple):
    """The objects of an image, padded to a number that all images share.

    Attributes:
      boxes: [g, 4], in pixels.
      labels: [g], class numbers from 0.
      valid: [g], whether there is one.
      ignored: [g], neither a target nor background: difficult ones of VOC, crowds of COCO.
    """

    boxes: Float[Array, "g 4"]
    labels: Int[Array, " g"]
    valid: Bool[Array, " g"]
    ignored: Bool[Array, " g"]


class AnchorTargets(NamedTuple):
    """Of the sampled anchors.

    Attributes:
      anchor: [k], its number.
      positive: [k], whether there is an object.
      offsets: [k, 4], of the object, where there is one.
      valid: [k], whether the anchor counts.
    """

    anchor: Array
    positive: Array
    offsets: Array
    valid: Array


class RegionTargets(NamedTuple):
    """Of the sampled regions.

    Attributes:
      boxes: [k, 4], the regions, in pixels.
      classes: [k], 0 for background, else the class number + 1.
      offsets: [k, 4], of the object, where there is one.
      valid: [k], whether the region counts.
    """

    boxes: Array
    classes: Array
    offsets: Array
    valid: Array


def anchor_targets(
    key: Array, anchors: Float[Array, "a 4"], truth: Truth, size: Array, settings: AnchorSampling
) -> AnchorTargets:
    """Samples anchors of both kinds.

    Args:
      key: of the choice.
      anchors: in pixels.
      truth: the image's objects.
      size: height and width of the image without its padding, in pixels.
      settings: counts and thresholds.
    """
    overlaps = intersection_over_union(truth.boxes, anchors)
    found = match(overlaps, truth.valid, positive=settings.positive, negative=settings.negative, low_quality=True)
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2
    counts = (centre < size[None, ::-1]).all(1) if settings.cross_boundary else inside(anchors, size)
    label = jnp.where(counts & ~_near_ignored(found, truth), found.label, -1)
    chosen = sample(key, label == 1, label == 0, count=settings.most, fraction=settings.fraction)
    of_objects = truth.boxes[found.object[chosen.anchor]]
    offsets = encode(of_objects, anchors[chosen.anchor], ANCHOR_WEIGHTS)
    return AnchorTargets(
        chosen.anchor, chosen.positive, jnp.where(chosen.positive[:, None], offsets, 0.0), chosen.valid
    )


def region_targets(key: Array, proposals: Proposals, truth: Truth, settings: RegionSampling) -> RegionTargets:
    """Samples regions with and without an object, from the proposals and the objects themselves.

    Args:
      key: of the choice.
      proposals: of the image.
      truth: the image's objects.
      settings: counts and thresholds.
    """
    boxes = jnp.concatenate([proposals.boxes, truth.boxes])
    valid = jnp.concatenate([proposals.valid, truth.valid & ~truth.ignored])
    overlaps = jnp.where(truth.valid[:, None], intersection_over_union(truth.boxes, boxes), 0.0)
    found = match(overlaps, truth.valid, positive=settings.positive, negative=settings.positive, low_quality=False)
    positive = valid & (found.label == 1) & ~_near_ignored(found, truth)
    background = valid & (found.label == 0) & (overlaps.max(0) >= settings.background)
    chosen = sample(key, positive, background, count=settings.most, fraction=settings.fraction)
    regions, objects = boxes[chosen.anchor], found.object[chosen.anchor]
    offsets = encode(truth.boxes[objects], regions, REGION_WEIGHTS)
    return RegionTargets(
        boxes=regions,
        classes=jnp.where(chosen.positive, truth.labels[objects] + 1, 0),
        offsets=jnp.where(chosen.positive[:, None], offsets, 0.0),
        valid=chosen.valid,
    )


def _near_ignored(found, truth: Truth) -> Array:
    return truth.ignored[found.object] & (found.label != 0)
