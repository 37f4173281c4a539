"""Boxes are measured, cut, mirrored and coded as torchvision does it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from detection_ops import draw_boxes, stored

from resnet_jax.detection.boxes import area, at_least, clip, decode, encode, intersection_over_union, mirror

WEIGHTS = {"10": (10.0, 10.0, 5.0, 5.0), "1": (1.0, 1.0, 1.0, 1.0)}
FIRST_CASES = [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 1.0, 0.5], [0.0, 0.0, 0.5, 0.5]]
LAST_CASES = [[0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 1.5, 1.5]]


def test_a_width_is_the_difference_of_the_corners():
    boxes = jnp.array([[[1.0, 2.0, 4.0, 4.0]], [[5.0, 5.0, 5.0, 9.0]]])
    np.testing.assert_array_equal(area(boxes), [[6], [0]])


def test_overlaps_are_torchvision_s():
    given = stored("iou")
    np.testing.assert_allclose(intersection_over_union(given["a"], given["b"]), given["iou"], rtol=1e-6, atol=0)


def test_overlaps_of_simple_boxes():
    overlaps = intersection_over_union(jnp.array(FIRST_CASES[:1]), jnp.array(FIRST_CASES + LAST_CASES))
    np.testing.assert_allclose(overlaps, [[1, 0.5, 0.5, 0.25, 0.25, 0.25 / 1.75]], rtol=1e-6)


def test_boxes_without_area_overlap_nothing():
    boxes = jnp.array([[0.0, 0.0, 0.0, 0.0], [3.0, 3.0, 3.0, 8.0], [0.0, 0.0, 9.0, 9.0]])
    np.testing.assert_array_equal(intersection_over_union(boxes, boxes), np.diag([0, 0, 1]))


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_boxes_are_cut_as_torchvision_does_it(dtype):
    given = stored("clip")
    found = clip(given["boxes"], jnp.array([170, 230], dtype))
    np.testing.assert_array_equal(found, given["clipped"])


def test_a_box_beside_the_image_is_left_without_area():
    beside = jnp.array([[240.0, 10.0, 300.0, 90.0], [-50.0, -50.0, -2.0, -2.0]])
    assert not area(clip(beside, jnp.array([170.0, 230.0]))).any()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_offsets_are_torchvision_s(weights):
    given = stored("coding")
    encoded = encode(given["boxes"], given["anchors"], WEIGHTS[weights])
    np.testing.assert_allclose(encoded, given[f"encoded_{weights}"], rtol=1e-5, atol=1e-5)
    decoded = decode(given["offsets"], given["anchors"], WEIGHTS[weights])
    # The sides grow up to 62 times, so that the corners' rounding is that of 10,000 pixels.
    np.testing.assert_allclose(decoded, given[f"decoded_{weights}"], rtol=1e-5, atol=1e-3)


def test_decoding_undoes_encoding():
    boxes, anchors = draw_boxes(0, 50), draw_boxes(1, 50)
    found = decode(encode(boxes, anchors, WEIGHTS["10"]), anchors, WEIGHTS["10"])
    np.testing.assert_allclose(found, boxes, atol=1e-3)


def test_offsets_of_several_classes_begin_with_one_anchor():
    anchors, offsets = draw_boxes(0, 5), jax.random.normal(jax.random.key(0), (5, 3, 4))
    found = decode(offsets, anchors[:, None], WEIGHTS["10"])
    for number in range(3):
        np.testing.assert_allclose(found[:, number], decode(offsets[:, number], anchors, WEIGHTS["10"]), rtol=1e-6)


def test_no_offset_makes_a_box_infinite():
    found = decode(jnp.full((1, 4), 1e4), jnp.array([[0.0, 0.0, 16.0, 16.0]]), WEIGHTS["1"])
    np.testing.assert_allclose(found[:, 2:] - found[:, :2], 1000, rtol=1e-4)


def test_the_gradient_ends_where_a_side_grows_no_further():
    anchors = jnp.array([[0.0, 0.0, 16.0, 16.0]])

    def width(offset):
        x1, _, x2, _ = decode(jnp.array([[0.0, 0.0, 1.0, 0.0]]) * offset, anchors, WEIGHTS["1"])[0]
        return x2 - x1

    np.testing.assert_allclose(jax.grad(width)(1.0), 16 * math.e, rtol=1e-5)
    assert jax.grad(width)(100.0) == 0


def test_left_and_right_are_exchanged():
    box = jnp.array([[10.0, 20.0, 30.0, 50.0]])
    np.testing.assert_array_equal(mirror(box, 100), [[70, 20, 90, 50]])
    boxes = draw_boxes(0, 20)
    np.testing.assert_allclose(mirror(mirror(boxes, 200), 200), boxes, atol=1e-4)
    np.testing.assert_allclose(area(mirror(boxes, 200)), area(boxes), rtol=1e-4)


def test_both_sides_must_be_long_enough():
    boxes = jnp.array([[0.0, 0.0, 16.0, 16.0], [0.0, 0.0, 15.9, 99.0], [0.0, 0.0, 99.0, 15.9], [5.0, 5.0, 5.0, 5.0]])
    np.testing.assert_array_equal(at_least(boxes, 16), [True, False, False, False])


@pytest.mark.parametrize(
    "call",
    [
        lambda boxes: clip(boxes, jnp.array([50.0, 60.0])),
        lambda boxes: mirror(boxes, 100),
        lambda boxes: intersection_over_union(boxes, boxes),
        lambda boxes: decode(boxes / 100, boxes, WEIGHTS["10"]),
    ],
    ids=["clip", "mirror", "overlaps", "decode"],
)
def test_images_in_a_batch_are_as_images_alone(call):
    boxes = draw_boxes(0, 3, 6)
    together = jax.jit(jax.vmap(call))(boxes)
    np.testing.assert_allclose(together, jnp.stack([call(image) for image in boxes]), rtol=1e-5, atol=1e-5)
