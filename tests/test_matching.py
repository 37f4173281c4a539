"""Anchors are labelled as torchvision does it, whatever padding holds; what is drawn of them is random and balanced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from detection_ops import draw_boxes, stored

from resnet_jax.detection.boxes import intersection_over_union
from resnet_jax.detection.matching import IGNORED, NEGATIVE, POSITIVE, match, sample

THRESHOLDS = {"positive": 0.7, "negative": 0.3}


def overlaps_of(seed, objects=5, anchors=300):
    return intersection_over_union(draw_boxes(seed, objects), draw_boxes(seed + 100, anchors))


def all_valid(overlaps):
    return jnp.ones(len(overlaps), bool)


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("matrix", ["plain", "tied"])
def test_labels_are_torchvision_s_with_any_padding(matrix, low_quality, padding):
    given = stored("matching")
    overlaps = given[matrix]
    # What padding may be: without overlap, equal to all of it, not a number.
    rows = jnp.stack([jnp.full(overlaps.shape[1], value) for value in (0.0, 1.0, jnp.nan)])[:padding]
    valid = jnp.arange(len(overlaps) + padding) < len(overlaps)
    found = match(jnp.concatenate([overlaps, rows]), valid, low_quality=low_quality, **THRESHOLDS)
    np.testing.assert_array_equal(found.object, given[f"{matrix}_index"])
    np.testing.assert_array_equal(found.label, given[f"{matrix}_label_{low_quality}"])


def test_labels_of_a_small_matrix():
    overlaps = jnp.array([[0.15, 0.45, 0.2, 0.6], [0.3, 0.65, 0.05, 0.1], [0.05, 0.4, 0.25, 0.4]])
    found = match(overlaps, all_valid(overlaps), low_quality=True, **THRESHOLDS)
    assert found.object.tolist() == [1, 1, 2, 0]
    assert found.label.tolist() == [IGNORED, POSITIVE, NEGATIVE, POSITIVE]


def test_the_thresholds_themselves_are_positive_and_ignored():
    overlaps = jnp.array([[0.5, 0.25, 0.24]])
    found = match(overlaps, all_valid(overlaps), positive=0.5, negative=0.25, low_quality=False)
    assert found.label.tolist() == [POSITIVE, IGNORED, NEGATIVE]


@pytest.mark.parametrize("low_quality", [False, True])
def test_without_an_object_all_are_negative(low_quality):
    overlaps = overlaps_of(0)
    found = match(overlaps, jnp.zeros(5, bool), low_quality=low_quality, **THRESHOLDS)
    assert (found.label == NEGATIVE).all()


def test_an_object_that_none_overlaps_makes_none_positive():
    overlaps = jnp.array([[0.0, 0.0, 0.0], [0.1, 0.2, 0.0]])
    found = match(overlaps, all_valid(overlaps), low_quality=True, **THRESHOLDS)
    assert found.label.tolist() == [NEGATIVE, POSITIVE, NEGATIVE]


def test_the_best_are_found_where_overlaps_are_computed_too():
    """In one program, where a maximum may have another rounding than what is compared with it."""

    @jax.jit
    def best(boxes, anchors):
        overlaps = intersection_over_union(boxes, anchors)
        return match(overlaps, all_valid(overlaps), positive=1.1, negative=1.0, low_quality=True).label

    boxes, anchors = draw_boxes(0, 40, 8), draw_boxes(1, 40, 500)
    counts = (jax.vmap(best)(boxes, anchors) == POSITIVE).sum(1)
    alone = [np.asarray(intersection_over_union(*pair)) for pair in zip(boxes, anchors, strict=True)]
    wanted = [len(set(overlaps.argmax(1))) for overlaps in alone]
    np.testing.assert_array_equal(counts, wanted)


def test_the_order_of_objects_changes_nothing():
    overlaps, order = overlaps_of(0), jnp.array([3, 0, 4, 1, 2])
    one = match(overlaps, all_valid(overlaps), low_quality=True, **THRESHOLDS)
    other = match(overlaps[order], all_valid(overlaps), low_quality=True, **THRESHOLDS)
    np.testing.assert_array_equal(one.label, other.label)
    touched = overlaps.max(0) > 0
    np.testing.assert_array_equal(one.object[touched], order[other.object][touched])


def test_images_in_a_batch_are_matched_as_alone():
    overlaps = jnp.stack([overlaps_of(seed) for seed in range(3)])
    valid = jnp.arange(5)[None] < jnp.array([5, 2, 0])[:, None]

    def one(overlaps, valid):
        return match(overlaps, valid, low_quality=True, **THRESHOLDS)

    together = jax.jit(jax.vmap(one))(overlaps, valid)
    for image in range(3):
        alone = one(overlaps[image], valid[image])
        np.testing.assert_array_equal(together.object[image], alone.object)
        np.testing.assert_array_equal(together.label[image], alone.label)


def test_crossing_thresholds_are_refused():
    with pytest.raises(ValueError, match="negative=0.7 above positive=0.3"):
        match(overlaps_of(0), jnp.ones(5, bool), positive=0.3, negative=0.7, low_quality=False)


def masks(positives, negatives, others=10):
    """Which of a row of shuffled anchors may be drawn as what."""
    kinds = np.repeat([1, 0, -1], [positives, negatives, others])
    kinds = np.random.default_rng(0).permutation(kinds)
    return jnp.asarray(kinds == 1), jnp.asarray(kinds == 0)


@pytest.mark.parametrize(
    ("available", "count", "fraction", "wanted"),
    [
        ((30, 500), 64, 0.25, (16, 48)),
        ((5, 500), 64, 0.25, (5, 59)),
        ((30, 20), 64, 0.25, (16, 20)),
        ((300, 500), 256, 0.5, (128, 128)),
        ((3, 2), 256, 0.5, (3, 2)),
        ((0, 50), 16, 0.5, (0, 16)),
        ((50, 0), 16, 0.5, (8, 0)),
        ((0, 0), 16, 0.5, (0, 0)),
        ((6, 5), 4, 0.25, (1, 3)),
    ],
)
def test_as_many_are_drawn_as_there_are(available, count, fraction, wanted):
    positive, negative = masks(*available)
    found = sample(jax.random.key(1), positive, negative, count=count, fraction=fraction)
    number = sum(wanted)
    np.testing.assert_array_equal(found.valid, np.arange(count) < number)
    np.testing.assert_array_equal(found.positive, np.arange(count) < wanted[0])
    assert positive[found.anchor[: wanted[0]]].all()
    assert negative[found.anchor[wanted[0] : number]].all()
    assert len(set(found.anchor[:number].tolist())) == number
    assert not found.anchor[number:].any()


def test_every_anchor_is_drawn_as_often_as_every_other():
    positive, negative = masks(8, 20)
    keys = jax.random.split(jax.random.key(0), 4000)
    found = jax.vmap(lambda key: sample(key, positive, negative, count=12, fraction=0.25))(keys)
    frequency = np.bincount(np.asarray(found.anchor).ravel(), minlength=38) / len(keys)
    # 3 of 8, 9 of 20, none: the standard deviation of a frequency is 0.008.
    np.testing.assert_allclose(frequency, np.where(positive, 3 / 8, np.where(negative, 9 / 20, 0)), atol=0.04)


def test_the_key_alone_decides():
    positive, negative = masks(30, 200)
    draws = [sample(jax.random.key(seed), positive, negative, count=64, fraction=0.25).anchor for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()
