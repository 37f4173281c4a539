"""The per-class network's boxes of a class in a batch of images: of one view or several, of one member or several."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from resnet_jax.data.device_augment import normalize
from resnet_jax.detection.boxes import at_least, clip, decode
from resnet_jax.detection.nms import non_maximum_suppression
from resnet_jax.detection.objective import BoxBatch
from resnet_jax.detection.rpn import Proposals
from resnet_jax.detection.settings import ANCHOR_WEIGHTS, Proposing
from resnet_jax.localization.per_class_rpn import PerClassRpn
from resnet_jax.localization.settings import BEST_CLASSES, CLASS_PROPOSING
from resnet_jax.localization.views import HostView
from resnet_jax.models.dense import valid_positions


class View(NamedTuple):
    """A batch of images or parts of them at one scale, padded at the bottom and right; see `HostView`.

    Attributes:
      images: [n, h, w, c], normalised.
      sizes: [n, 2], height and width without padding, in pixels.
      scales: [n, 2], pixels of the view to one of the file, down and across.
      corners: [n, 2], row and column of the view's first pixel in the scaled image, in pixels.
      file_sizes: [n, 2], height and width of the file's image, in pixels.
    """

    images: Array
    sizes: Array
    scales: Array
    corners: Array
    file_sizes: Array

    def in_file_pixels(self, boxes: Float[Array, "n *k 4"]) -> Float[Array, "n *k 4"]:
        """Boxes in pixels of the view as boxes in pixels of the file."""
        scales, corners = (_of_corners(each, boxes) for each in (self.scales, self.corners))
        return (boxes + corners) / scales

    def in_view_pixels(self, boxes: Float[Array, "n *k 4"]) -> Float[Array, "n *k 4"]:
        """Boxes in pixels of the file as boxes in pixels of the view."""
        scales, corners = (_of_corners(each, boxes) for each in (self.scales, self.corners))
        return boxes * scales - corners


class RpnMember(NamedTuple):
    """A network with its variables; several are an ensemble."""

    rpn: PerClassRpn
    variables: dict


class BestBoxes(NamedTuple):
    """One box for each class asked for.

    Attributes:
      boxes: [n, k, 4], in pixels of the file, within the image.
      scores: [n, k], logarithms of probabilities.
    """

    boxes: Array
    scores: Array


def view_of(host: HostView, mean: np.ndarray, std: np.ndarray) -> View:
    """A batch of host views on the devices.

    Args:
      host: from `stacked_views`.
      mean: of each channel, in pixel values.
      std: likewise.
    """
    rest = (jnp.asarray(each) for each in (host.size, host.scale, host.corner, host.file_size))
    return View(normalize(jnp.asarray(host.image), mean, std), *rest)


def best_classes(scores: Float[Array, "n classes"], most: int = BEST_CLASSES) -> Int[Array, "n {most}"]:
    """The classes with a classifier's best scores, best first; of equal ones the first."""
    return jax.lax.top_k(scores, most)[1]


def best_boxes(members: Sequence[RpnMember], views: Sequence[View], labels: Int[Array, "n k"]) -> BestBoxes:
    """Of each image and class the box with the highest logit, whatever its position and view.

    Args:
      members: one or more; probabilities and boxes of each anchor are averaged over them.
      views: of the same images: the centre crops alone ("1-crop"), or the whole images at one scale or more ("dense").
      labels: the classes: the true one, or those of `best_classes`.

    Raises:
      ValueError: members with different anchors or strides, or none; no view; or as `ResNet` does.
    """
    boxes, scores = _candidates(members, views, labels)
    best = scores.argmax(-1)[..., None]
    return BestBoxes(
        jnp.take_along_axis(boxes, best[..., None], axis=2)[:, :, 0], jnp.take_along_axis(scores, best, axis=2)[..., 0]
    )


def class_proposals(
    members: Sequence[RpnMember],
    views: Sequence[View],
    labels: Int[Array, "n k"],
    settings: Proposing = CLASS_PROPOSING,
) -> Proposals:
    """Of each image and class the best boxes that do not overlap too much: arrays [n, k, settings.after, ...].

    Args:
      members: see `best_boxes`.
      views: likewise.
      labels: likewise.
      settings: of the choice; sides are in pixels of the file.

    Raises:
      ValueError: as `best_boxes` does.
    """
    choose = jax.vmap(jax.vmap(partial(_chosen, settings=settings)))
    return choose(*_candidates(members, views, labels))


def with_proposals(members: Sequence[RpnMember], batch: BoxBatch, settings: Proposing = CLASS_PROPOSING) -> BoxBatch:
    """A batch for training regions, with the proposals of each image's class in its pixels."""
    count = len(batch.image)
    view = View(batch.image, batch.sizes, jnp.ones((count, 2)), jnp.zeros((count, 2)), batch.sizes)
    found = class_proposals(members, [view], batch.truth.labels[:, :1], settings)
    return batch.replace(proposals=jax.tree.map(lambda each: jax.lax.stop_gradient(each[:, 0]), found))


def _candidates(members: Sequence[RpnMember], views: Sequence[View], labels: Array) -> tuple[Array, Array]:
    """Boxes [n k a 4] in pixels of the file, within it, and log-probabilities [n k a] of all views' anchors.

    Anchors centred beyond an image have -inf.
    """
    if not members or not views:
        raise ValueError(f"{len(members)} members and {len(views)} views; one of each or more are required")
    kinds = {(rpn.anchors, rpn.stride) for rpn, _ in members}
    if len(kinds) > 1:
        raise ValueError(f"members with different anchors and strides cannot be averaged: {sorted(map(str, kinds))}")
    found = [_of_view(members, view, labels) for view in views]
    boxes, scores = (jnp.concatenate(each, axis=2) for each in zip(*found, strict=True))
    return boxes, scores


def _of_view(members: Sequence[RpnMember], view: View, labels: Array) -> tuple[Array, Array]:
    rpn = members[0].rpn
    boxes, scores = [], []
    for net, variables in members:
        features: Any = net.apply(variables, view.images, train=False, sizes=view.sizes, method="features")
        outputs: Any = net.apply(variables, features, labels, method="of_classes")
        logits, offsets = outputs
        boxes.append(decode(offsets, net.all_anchors(features)[None, None], ANCHOR_WEIGHTS))
        scores.append(jax.nn.log_sigmoid(logits))
    inside = valid_positions(view.sizes, view.images.shape[1:3], total_stride=rpn.stride, pool_window=1)
    valid = jnp.repeat(inside.reshape(len(inside), -1), rpn.anchors.per_position, axis=1)
    mean = view.in_file_pixels(jnp.stack(boxes).mean(0))
    return jax.vmap(clip)(mean, view.file_sizes), jnp.where(valid[:, None], log_mean(scores), -jnp.inf)


def log_mean(log_probabilities: Sequence[Array]) -> Array:
    """The logarithm of the mean of probabilities; where all are next to 1, the highest stays the highest."""
    return jax.nn.logsumexp(jnp.stack(log_probabilities), axis=0) - np.log(len(log_probabilities))


def _chosen(boxes: Float[Array, "a 4"], scores: Float[Array, " a"], settings: Proposing) -> Proposals:
    """The proposals of one image and class."""
    scores, places = jax.lax.top_k(scores, min(settings.before, len(scores)))
    boxes = boxes[places]
    valid = (scores > -jnp.inf) & at_least(boxes, settings.min_side)
    chosen, kept = non_maximum_suppression(boxes, scores, valid, threshold=settings.threshold, count=settings.after)
    return Proposals(
        boxes=jnp.where(kept[:, None], boxes[chosen], 0.0),
        scores=jnp.where(kept, scores[chosen], -jnp.inf),
        valid=kept,
    )


def _of_corners(each: Array, boxes: Array) -> Array:
    """(row, column) of each image [n 2] as what applies to boxes [n ... 4], (x1, y1, x2, y2)."""
    return jnp.tile(each[:, ::-1], (1, 2)).reshape(len(each), *(1,) * (boxes.ndim - 2), 4)
