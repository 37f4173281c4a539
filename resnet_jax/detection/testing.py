"""Detections of a batch of images, with the paper's improvements (appendix B), each of which can be left out."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resnet_jax.detection.boxes import clip, decode, mirror
from resnet_jax.detection.faster_rcnn import FasterRcnn, Level
from resnet_jax.detection.nms import Detections, suppress_by_class, vote
from resnet_jax.detection.objective import propose_from
from resnet_jax.detection.rpn import Proposals
from resnet_jax.detection.settings import REGION_WEIGHTS, Detecting, Proposing
from resnet_jax.models.dense import Sizes


class DetectionProtocol(NamedTuple):
    """How images are tested.

    Attributes:
      proposing: of the proposals.
      detecting: of the detections.
      refinement: classify the regressed boxes, too, and take both.
      voting: least overlap of the boxes whose mean, weighted by their scores, replaces a detection's; None: no voting.
      flip: classify the regions on the images with left and right exchanged, too, and average; the paper's detectors
        are tested without.
    """

    proposing: Proposing = Proposing()
    detecting: Detecting = Detecting()
    refinement: bool = False
    voting: float | None = None
    flip: bool = False


class Member(NamedTuple):
    """A detector with its variables; several are an ensemble."""

    detector: FasterRcnn
    variables: dict


class Scaled(NamedTuple):
    """The images of a batch at another scale, and their heights and widths there."""

    images: Array
    sizes: Array


class _View(NamedTuple):
    """A member with what it looks at: each image at one scale or several, as it is or mirrored."""

    member: Member
    levels: list[Level]
    mirrored: bool


class Regions(NamedTuple):
    """Classified regions of each image.

    Attributes:
      boxes: [n, r, c, 4], for each class, in pixels.
      scores: [n, r, c], probabilities of the classes.
      valid: [n, r].
    """

    boxes: Array
    scores: Array
    valid: Array


def detect(
    members: Sequence[Member],
    images: Float[Array, "n h w c"],
    sizes: Sizes,
    protocol: DetectionProtocol,
    *,
    pyramid: Sequence[Scaled] = (),
) -> Detections:
    """The detections of each image, best first.

    Of an ensemble all members propose, and each classifies all proposals: probabilities and boxes are averaged. So are
    those on images and on mirrored images; all proposals come from the former.

    Args:
      members: one or more, with the same classes.
      images: normalised, padded at the bottom and right.
      sizes: height and width of each without its padding, in pixels.
      protocol: how.
      pyramid: the same images at other scales, by rising scale, at which regions are classified instead (appendix B:
        200, 400, 600, 800 and 1000 pixels); proposals come from `images`.

    Returns:
      Arrays [n, count, ...], in pixels of these images.
    """
    sizes = jnp.asarray(sizes)
    features = _shared(members, images, sizes)
    boxes, _, valid = _proposed(members, features, sizes, protocol.proposing)
    levels = [[Level(own, sizes)] for own in features]
    if pyramid:
        levels = [[_level(member, scaled) for scaled in pyramid] for member in members]
    views = [_View(member, own, False) for member, own in zip(members, levels, strict=True)]
    if protocol.flip:
        mirrored = [_mirrored(scaled) for scaled in pyramid or [Scaled(images, sizes)]]
        views += [_View(member, [_level(member, scaled) for scaled in mirrored], True) for member in members]
    regions = _classified(views, boxes, valid, sizes)
    if protocol.refinement:
        refined = _classified(views, _best_boxes(regions), valid, sizes)
        regions = Regions(*(jnp.concatenate(both, axis=1) for both in zip(regions, refined, strict=True)))
    return jax.vmap(lambda *own: _choose(Regions(*own), protocol))(*regions)


def proposed(
    members: Sequence[Member],
    images: Float[Array, "n h w c"],
    sizes: Sizes,
    protocol: DetectionProtocol,
    *,
    pyramid: Sequence[Scaled] = (),
) -> Detections:
    """The proposals of each image, of one class, each member's best first; arguments as `detect`'s.

    Scores are logits, and between members not comparable.
    """
    del pyramid
    sizes = jnp.asarray(sizes)
    found = _proposed(members, _shared(members, images, sizes), sizes, protocol.proposing)
    scores, labels = jnp.where(found.valid, found.scores, 0.0), jnp.zeros(found.valid.shape, jnp.int32)
    return Detections(found.boxes, scores, labels, found.valid)


def _shared(members: Sequence[Member], images: Array, sizes: Array) -> list[Any]:
    """Each member's features of the images."""
    return [net.apply(variables, images, sizes, method="features") for net, variables in members]


def _proposed(members, features, sizes, settings: Proposing) -> Proposals:
    """Of all members, arrays [n, r, ...]."""
    found = [
        propose_from(net, variables, own, sizes, settings)
        for (net, variables), own in zip(members, features, strict=True)
    ]
    return Proposals(*(jnp.concatenate(each, axis=1) for each in zip(*found, strict=True)))


def _level(member: Member, scaled: Scaled) -> Level:
    features: Any = member.detector.apply(member.variables, scaled.images, scaled.sizes, method="features")
    return Level(features, jnp.asarray(scaled.sizes))


def _mirrored(scaled: Scaled) -> Scaled:
    """The images with left and right exchanged within their own widths; the padding stays at the right."""
    images, sizes = jnp.asarray(scaled.images), jnp.asarray(scaled.sizes)
    column, width = jnp.arange(images.shape[2])[None], sizes[:, 1:]
    source = jnp.where(column < width, width - 1 - column, column)
    return Scaled(jnp.take_along_axis(images, source[:, None, :, None], axis=2), sizes)


def _classified(views: Sequence[_View], boxes: Array, valid: Array, sizes: Array) -> Regions:
    """Means of the views' probabilities and boxes."""
    mirror_all = jax.vmap(mirror)
    found = []
    for (net, variables), levels, mirrored in views:
        own = mirror_all(boxes, sizes[:, 1]) if mirrored else boxes
        outputs: Any = net.apply(variables, levels, own, sizes, method="classify")
        logits, offsets = outputs
        moved = jax.vmap(clip)(decode(offsets, own[:, :, None], REGION_WEIGHTS), sizes)
        moved = mirror_all(moved, sizes[:, 1]) if mirrored else moved
        found.append((moved, jax.nn.softmax(logits)[..., 1:]))
    moved, scores = (sum(each) / len(views) for each in zip(*found, strict=True))
    return Regions(moved, scores, valid)


def _best_boxes(regions: Regions) -> Array:
    """Of each region the box of its most probable class, [n, r, 4]."""
    best = regions.scores.argmax(-1)[..., None, None]
    return jnp.take_along_axis(regions.boxes, best, axis=2)[:, :, 0]


def _choose(regions: Regions, protocol: DetectionProtocol) -> Detections:
    """The detections of one image."""
    settings = protocol.detecting
    valid = regions.valid[:, None] & (regions.scores > settings.score)
    found = suppress_by_class(regions.boxes, regions.scores, valid, threshold=settings.threshold, count=settings.most)
    if protocol.voting is None:
        return found
    threshold = protocol.voting

    def voted(box, label):
        own = regions.boxes[:, label], regions.scores[:, label], valid[:, label]
        return vote(box[None], *own, threshold=threshold)[0]

    boxes = jax.vmap(voted)(found.boxes, found.labels)
    return found._replace(boxes=jnp.where(found.valid[:, None], boxes, found.boxes))
