"""Of boxes that overlap the best alone (non-maximum suppression), or their mean (box voting)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from resnet_jax.detection.boxes import intersection_over_union


class Detections(NamedTuple):
    """What was found in an image, by falling score; all zeros where it is not valid.

    Attributes:
      boxes: pixels.
      scores: of the label.
      labels: the number of the class.
      valid: which are none of padding.
    """

    boxes: Float32[Array, "count 4"]
    scores: Float32[Array, " count"]
    labels: Int32[Array, " count"]
    valid: Bool[Array, " count"]


def non_maximum_suppression(
    boxes: Float32[Array, "n 4"],
    scores: Float32[Array, " n"],
    valid: Bool[Array, " n"],
    *,
    threshold: float,
    count: int,
) -> tuple[Int32[Array, " count"], Bool[Array, " count"]]:
    """Keeps the best box, leaves out all that overlap it by more than the threshold, and so on with those left.

    Exactly that, at every threshold, though not one by one: with the boxes in order, a box is kept if no kept one
    before it overlaps it. From any guess the first box is right after one look at all of them, and each look makes at
    least one more right, so that what a look no longer changes is the answer; three to eight looks are usual.
    The memory is n * n bytes.

    Args:
      boxes: pixels.
      scores: the better the higher; of equal ones the first is the better.
      valid: the boxes that take part.
      threshold: intersection over union; 0.7 of proposals, and 0.3 of detections, in the paper.
      count: how many of those kept are wanted; it may be more than n.

    Returns:
      The numbers of the boxes kept, by falling score, and which of these are meant; the others are 0.

    Example:
      >>> boxes = jnp.asarray([[0, 0, 10, 10], [0, 1, 10, 11], [20, 20, 30, 30]], jnp.float32)
      >>> scores, valid = jnp.asarray([0.7, 0.9, 0.8]), jnp.ones(3, bool)
      >>> numbers, kept = non_maximum_suppression(boxes, scores, valid, threshold=0.5, count=3)
      >>> print(numbers, kept)
      [1 2 0] [ True  True False]
    """
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    boxes, valid = boxes[order], valid[order]
    rank = jnp.arange(len(order))
    overlaps = intersection_over_union(boxes, boxes) > threshold
    rivals = overlaps & (rank[None, :] < rank[:, None])

    def look(state):
        kept, _ = state
        now = valid & ~(rivals & kept[None, :]).any(1)
        return now, (now != kept).any()

    kept, _ = jax.lax.while_loop(lambda state: state[1], look, (valid, valid.any()))
    # Where the running count first reaches a number lies the box that has it, or the end where there are fewer.
    place = jnp.searchsorted(jnp.cumsum(kept), jnp.arange(1, count + 1))
    found = place < len(order)
    return jnp.where(found, order[place], 0).astype(jnp.int32), found


def suppress_by_class(
    boxes: Float32[Array, "n c 4"],
    scores: Float32[Array, "n c"],
    valid: Bool[Array, "n c"],
    *,
    threshold: float,
    count: int,
) -> Detections:
    """Non-maximum suppression within each class; of all classes together the best `count` are kept.

    Args:
      boxes: of each region, one for each class (without the background).
      scores: of each region for each class; of equal ones the lower class, then the lower region is the better.
      valid: what takes part, such as scores above 0.05.
      threshold: see `non_maximum_suppression`.
      count: the most detections of an image.
    """

    def one_class(boxes, scores, valid):
        index, kept = non_maximum_suppression(boxes, scores, valid, threshold=threshold, count=count)
        return boxes[index], jnp.where(kept, scores[index], -jnp.inf), kept

    found = jax.vmap(one_class, in_axes=1)(boxes, scores, valid)
    boxes, scores, valid = (value.reshape(-1, *value.shape[2:]) for value in found)
    scores, index = jax.lax.top_k(scores, count)
    labels, valid = (index // count).astype(jnp.int32), valid[index]
    return Detections(
        jnp.where(valid[:, None], boxes[index], 0), jnp.where(valid, scores, 0), jnp.where(valid, labels, 0), valid
    )


def vote(
    kept_boxes: Float32[Array, "k 4"],
    boxes: Float32[Array, "n 4"],
    scores: Float32[Array, " n"],
    valid: Bool[Array, " n"],
    *,
    threshold: float,
) -> Float32[Array, "k 4"]:
    """Moves each kept box to the mean, weighted by score, of all boxes around it (Gidaris and Komodakis 2015).

    Args:
      kept_boxes: what non-maximum suppression left of one class.
      boxes: all boxes of the class.
      scores: 0 or more.
      valid: the boxes that take part.
      threshold: the least intersection over union with a kept box; one that no box reaches stays where it is.
    """
    near = (intersection_over_union(kept_boxes, boxes) >= threshold) & valid[None, :]
    weights = jnp.where(near, jnp.broadcast_to(scores, near.shape), 0)
    total = weights.sum(1, keepdims=True)
    # The mean of the differences: a box alone stays bit for bit where it is.
    moves = (weights[..., None] * (boxes[None] - kept_boxes[:, None])).sum(1)
    return kept_boxes + moves / jnp.where(total > 0, total, 1)
