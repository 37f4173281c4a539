"""R-CNN at test: the proposals of a class get new scores and boxes, and the best one is the answer (appendix C)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from resnet_jax.detection.boxes import clip, decode
from resnet_jax.detection.rpn import Proposals
from resnet_jax.detection.settings import REGION_WEIGHTS
from resnet_jax.localization.region_net import RegionNet
from resnet_jax.localization.testing import BestBoxes, View, log_mean
from resnet_jax.localization.warping import warp

# Bounds the memory: at 224 pixels of ResNet-101, 64 regions are a batch of 64 images.
_REGIONS_AT_ONCE = 64


class RegionMember(NamedTuple):
    """A net of regions with its variables; several are an ensemble."""

    net: RegionNet
    variables: dict


def update(members: Sequence[RegionMember], view: View, proposals: Proposals, labels: Int[Array, "n k"]) -> Proposals:
    """The proposals with the nets' scores and boxes in place of their own.

    Args:
      members: one or more; probabilities and boxes of each region are averaged over them.
      view: the images from which regions are cut: whole ones, of any one scale.
      proposals: of each image and class, arrays [n, k, r, ...], in pixels of the file; as `class_proposals` gives.
      labels: the classes.

    Returns:
      The same proposals in the same order, their boxes within the image; what is not valid is as it was.

    Raises:
      ValueError: no member.
    """
    if not members:
        raise ValueError("no members; one net of regions or more is required")
    cut = view.in_view_pixels(proposals.boxes)
    classes = jnp.broadcast_to(labels[..., None], proposals.scores.shape)
    scores, offsets = _seen(members, view, cut, classes)
    moved = [decode(each, proposals.boxes, REGION_WEIGHTS) for each in offsets]
    boxes = jax.vmap(clip)(jnp.stack(moved).mean(0), view.file_sizes)
    valid = proposals.valid
    return Proposals(
        jnp.where(valid[..., None], boxes, proposals.boxes), jnp.where(valid, log_mean(scores), -jnp.inf), valid
    )


def best_of(proposals: Proposals) -> BestBoxes:
    """Of each image and class the proposal with the best score."""
    best = proposals.scores.argmax(-1)[..., None]
    return BestBoxes(
        jnp.take_along_axis(proposals.boxes, best[..., None], axis=2)[:, :, 0],
        jnp.take_along_axis(proposals.scores, best, axis=2)[..., 0],
    )


def _seen(members: Sequence[RegionMember], view: View, boxes: Array, classes: Array) -> tuple[list[Array], list[Array]]:
    """Of each member the log-probabilities [n k r] and the offsets [n k r 4] of each region's class."""

    def of_image(image: Array, size: Array, boxes: Array, classes: Array):
        def of_region(box_and_class: tuple[Array, Array]):
            box, label = box_and_class
            found = []
            for net, variables in members:
                region = warp(image[None], box[None, None], size[None], size=net.region_size)[0]
                outputs: Any = net.apply(variables, region, train=False)
                logits, offsets = outputs
                found.append((jax.nn.log_sigmoid(logits[0, label]), offsets[0, label]))
            return tuple(zip(*found, strict=True))

        return jax.lax.map(of_region, (boxes, classes), batch_size=_REGIONS_AT_ONCE)

    flat = boxes.reshape(len(boxes), -1, 4), classes.reshape(len(classes), -1)
    scores, offsets = jax.lax.map(lambda own: of_image(*own), (view.images, view.sizes, *flat))
    return [each.reshape(classes.shape) for each in scores], [each.reshape(boxes.shape) for each in offsets]
