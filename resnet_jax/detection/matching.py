"""Which anchors or proposals stand for which object, and the random few of them that a step trains on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


class Match(NamedTuple):
    """What each anchor stands for.

    Attributes:
      object: the one that the anchor overlaps most, the first of equal ones; of no use where it is negative.
      label: POSITIVE, NEGATIVE or IGNORED.
    """

    object: Int32[Array, " a"]
    label: Int32[Array, " a"]


class Sample(NamedTuple):
    """The anchors that were drawn, the positive ones first.

    Attributes:
      anchor: its number, 0 where none is left to be drawn.
      positive: whether it was drawn from the positive ones.
      valid: whether one was drawn.
    """

    anchor: Int32[Array, " count"]
    positive: Bool[Array, " count"]
    valid: Bool[Array, " count"]


def match(
    overlaps: Float32[Array, "g a"], valid: Bool[Array, " g"], *, positive: float, negative: float, low_quality: bool
) -> Match:
    """Labels anchors by how much they overlap the objects of an image (Ren et al. 2015, section 3.1.2).

    Without any object all anchors are negative.

    Args:
      overlaps: intersection over union of each object with each anchor.
      valid: which objects are none of padding.
      positive: the least overlap of a positive anchor.
      negative: an anchor is negative that overlaps every object by less; those between the two are ignored.
      low_quality: whether an object's best anchors, all that have its largest overlap, are positive whatever that is.
        The object that they stand for may be another one, if they overlap it more.

    Raises:
      ValueError: negative is above positive.
    """
    if negative > positive:
        raise ValueError(f"the thresholds must not cross, found negative={negative} above positive={positive}")
    # Or a compiler may compute an overlap twice, and round it in two ways: then no anchor has the largest one.
    overlaps = jax.lax.optimization_barrier(jnp.where(valid[:, None], overlaps, -1))
    largest = overlaps.max(0)
    label = jnp.where(largest >= positive, POSITIVE, jnp.where(largest < negative, NEGATIVE, IGNORED))
    if low_quality:
        best = overlaps.max(1, keepdims=True)
        # Padding's largest overlap is that of all anchors, and so is that of an object that none overlaps.
        label = jnp.where(((overlaps == best) & (best > 0)).any(0), POSITIVE, label)
    return Match(overlaps.argmax(0).astype(jnp.int32), label.astype(jnp.int32))


def sample(
    key: Array, positive: Bool[Array, " a"], negative: Bool[Array, " a"], *, count: int, fraction: float
) -> Sample:
    """Draws positive anchors at random, count * fraction at most, and fills up with random negative ones.

    Args:
      key: of the draw; every image needs its own.
      positive: what may be drawn as positive.
      negative: what may be drawn as negative; none is both.
      count: 256 anchors, and 64 proposals, of an image in the paper.
      fraction: of positives; 0.5 of anchors, and 0.25 of proposals, in the paper.
    """
    order = jax.random.permutation(key, len(positive)).astype(jnp.int32)
    positives, negatives = jnp.cumsum(positive[order]), jnp.cumsum(negative[order])
    taken = jnp.minimum(positives[-1], int(count * fraction))
    number = jnp.arange(1, count + 1)
    is_positive = number <= taken
    # Where the running count first reaches a number lies the anchor that has it, or the end where there are fewer.
    place = jnp.where(
        is_positive, jnp.searchsorted(positives, number), jnp.searchsorted(negatives, jnp.maximum(number - taken, 1))
    )
    valid = place < len(positive)
    return Sample(jnp.where(valid, order[place], 0), is_positive, valid)
