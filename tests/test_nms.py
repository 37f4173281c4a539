"""Non-maximum suppression is the greedy one at every threshold; voting moves boxes to those around them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from detection_ops import draw_boxes, stored

from resnet_jax.detection.boxes import intersection_over_union
from resnet_jax.detection.nms import non_maximum_suppression, suppress_by_class, vote

THRESHOLDS = [0.2, 0.3, 0.5, 0.7, 0.8]


def kept_of(boxes, scores, *, threshold, count, valid=None):
    """The numbers of the boxes kept, as a list."""
    valid = jnp.ones(len(boxes), bool) if valid is None else valid
    index, kept = non_maximum_suppression(boxes, scores, valid, threshold=threshold, count=count)
    assert index.shape == kept.shape == (count,)
    # Those kept come first; beyond them is nothing.
    number = int(kept.sum())
    assert kept[:number].all() and not index[number:].any()
    return index[:number].tolist()


def greedy(boxes, scores, threshold):
    """One box after the other."""
    overlaps = np.asarray(intersection_over_union(boxes, boxes))
    kept = []
    for box in np.argsort(-np.asarray(scores), kind="stable"):
        if not (overlaps[box, kept] > np.float32(threshold)).any():
            kept.append(int(box))
    return kept


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_the_boxes_kept_are_torchvision_s(threshold):
    given = stored("nms")
    assert len(set(given["scores"].tolist())) < 101, "equal scores are part of the case"
    kept = given[str(threshold)].tolist()
    for count in (7, len(kept), 400, 500):
        assert kept_of(given["boxes"], given["scores"], threshold=threshold, count=count) == kept[:count]


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.4, 0.6, 0.9, 1.0])
def test_the_boxes_kept_are_those_of_one_after_the_other(threshold):
    boxes = draw_boxes(1, 150, extent=60)
    scores = jnp.round(jax.random.uniform(jax.random.key(0), (150,)), 1)
    assert kept_of(boxes, scores, threshold=threshold, count=150) == greedy(boxes, scores, threshold)


def test_a_chain_in_which_each_box_hangs_on_the_one_before():
    starts = 4.0 * jnp.arange(200)
    chain = jnp.stack([starts, jnp.zeros(200), starts + 10, jnp.full(200, 10.0)], -1)
    # Neighbours overlap by 6 of 14, the next but one by 2 of 18.
    assert kept_of(chain, -starts, threshold=0.2, count=200) == list(range(0, 200, 2))


def test_the_threshold_itself_suppresses_nothing():
    boxes = jnp.array([[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    assert kept_of(boxes, jnp.array([0.5, 0.9]), threshold=0.5, count=2) == [1, 0]
    assert kept_of(boxes, jnp.array([0.5, 0.9]), threshold=0.49, count=2) == [1]


def test_what_is_not_valid_is_not_kept_and_suppresses_nothing():
    given = stored("nms")
    boxes, scores = given["boxes"], given["scores"]
    valid = jax.random.bernoulli(jax.random.key(0), 0.6, scores.shape)
    # Invalid ones are as good as can be.
    found = kept_of(boxes, jnp.where(valid, scores, 2.0), threshold=0.3, count=400, valid=valid)
    remaining = np.flatnonzero(valid)
    assert found == remaining[greedy(boxes[remaining], scores[remaining], 0.3)].tolist()
    assert kept_of(boxes, scores, threshold=0.3, count=9, valid=jnp.zeros(400, bool)) == []


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_a_second_suppression_changes_nothing(threshold):
    given = stored("nms")
    kept = jnp.array(kept_of(given["boxes"], given["scores"], threshold=threshold, count=400))
    again = kept_of(given["boxes"][kept], given["scores"][kept], threshold=threshold, count=len(kept))
    assert again == list(range(len(kept)))


def test_images_in_a_batch_are_as_images_alone():
    boxes = jnp.stack([draw_boxes(0, 80), draw_boxes(1, 80), draw_boxes(2, 80)])
    scores = jax.random.uniform(jax.random.key(0), (3, 80))
    valid = jnp.arange(80)[None] < jnp.array([80, 30, 0])[:, None]

    def one(boxes, scores, valid):
        return non_maximum_suppression(boxes, scores, valid, threshold=0.3, count=40)

    together = jax.jit(jax.vmap(one))(boxes, scores, valid)
    for image in range(3):
        for made, wanted in zip(together, one(boxes[image], scores[image], valid[image]), strict=True):
            np.testing.assert_array_equal(made[image], wanted)


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_detections_of_all_classes_are_torchvision_s(threshold):
    given = stored("classes")
    boxes, scores, kept = given["boxes"], given["scores"], given[str(threshold)]
    regions, classes = kept // 4, kept % 4
    for count in (10, len(kept) + 5):
        found = suppress_by_class(boxes, scores, jnp.ones((60, 4), bool), threshold=threshold, count=count)
        number = min(count, len(kept))
        np.testing.assert_array_equal(found.valid, np.arange(count) < number)
        np.testing.assert_array_equal(found.labels[:number], classes[:count])
        np.testing.assert_array_equal(found.scores[:number], scores[regions, classes][:count])
        np.testing.assert_array_equal(found.boxes[:number], boxes[regions, classes][:count])


def test_classes_do_not_suppress_each_other_and_padding_is_zero():
    boxes = jnp.broadcast_to(jnp.array([1.0, 2.0, 30.0, 40.0]), (2, 3, 4))
    scores = jnp.array([[0.5, 0.9, 0.9], [0.6, 0.9, 0.04]])
    found = suppress_by_class(boxes, scores, scores > 0.05, threshold=0.3, count=9)
    assert found.labels.tolist() == [1, 2, 0, *[0] * 6]
    np.testing.assert_array_equal(found.scores, np.array([0.9, 0.9, 0.6, *[0] * 6], np.float32))
    assert found.valid.tolist() == [True] * 3 + [False] * 6
    assert not found.boxes[3:].any()


def test_a_box_alone_stays_where_it_is():
    boxes = draw_boxes(0, 30, extent=1000, side=20)
    apart = jnp.array(kept_of(boxes, jnp.arange(30.0), threshold=0.0, count=30))
    scores = jax.random.uniform(jax.random.key(0), (30,))
    voted = vote(boxes[apart], boxes[apart], scores[apart], jnp.ones(len(apart), bool), threshold=0.5)
    np.testing.assert_array_equal(voted, boxes[apart])


def test_votes_count_by_score():
    boxes = jnp.array([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0], [0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 9.0, 10.0]])
    scores, valid = jnp.array([0.6, 0.2, 0.9, 0.9]), jnp.array([True, True, True, False])
    # An overlap of 0.8, of the threshold, and one that is not valid.
    voted = vote(boxes[:1], boxes, scores, valid, threshold=0.51)
    np.testing.assert_allclose(voted, [[0, 0, 10, 9.5]], rtol=1e-6)
    voted = vote(boxes[:1], boxes, scores, valid, threshold=0.5)
    np.testing.assert_allclose(voted, [[0, 0, 10, (6 + 1.6 + 4.5) / 1.7]], rtol=1e-6)


@pytest.mark.parametrize("score", [0.0, 0.5])
def test_without_votes_a_box_stays_where_it_is(score):
    boxes = draw_boxes(0, 3)
    valid = jnp.full(3, score == 0)
    np.testing.assert_array_equal(vote(boxes, boxes, jnp.full(3, score), valid, threshold=0.0), boxes)
