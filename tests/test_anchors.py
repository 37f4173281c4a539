"""Anchors are torchvision's, in its order, and close to those of the authors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from detection_ops import stored

from resnet_jax.detection.anchors import anchors, inside
from resnet_jax.detection.boxes import intersection_over_union

SIZES = {"12": (64, 128, 256, 512), "9": (128, 256, 512)}
RATIOS = (0.5, 1, 2)

# Those of Faster R-CNN's authors at the first position, in pixels from 1, both corners within the box: a stride's
# multiples, since they round the sides at the first of the sizes and multiply after that.
AUTHORS = [
    [-83, -39, 100, 56],
    [-175, -87, 192, 104],
    [-359, -183, 376, 200],
    [-55, -55, 72, 72],
    [-119, -119, 136, 136],
    [-247, -247, 264, 264],
    [-35, -79, 52, 96],
    [-79, -167, 96, 184],
    [-167, -343, 184, 360],
]


@pytest.mark.parametrize("number", SIZES)
@pytest.mark.parametrize(("height", "width"), [(3, 5), (4, 2)])
def test_anchors_are_torchvision_s(number, height, width):
    found = anchors(height, width, stride=16, sizes=SIZES[number], ratios=RATIOS)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, stored("anchors")[f"{number}_{height}_{width}"])


def test_positions_then_ratios_then_sizes():
    found = anchors(1, 2, stride=4, sizes=(32, 64), ratios=(0.25, 1, 4))
    first = [(-32, -8, 32, 8), (-64, -16, 64, 16), (-16, -16, 16, 16)]
    first += [(-32, -32, 32, 32), (-8, -32, 8, 32), (-16, -64, 16, 64)]
    np.testing.assert_array_equal(found[:6], first)
    np.testing.assert_array_equal(found[6:], np.array(first) + [4, 0, 4, 0])


def test_anchors_are_close_to_the_authors():
    theirs = np.array(AUTHORS, np.float32) + [0, 0, 1, 1]
    centres = (theirs[:, :2] + theirs[:, 2:]) / 2
    np.testing.assert_array_equal(centres, np.full((9, 2), 9.0))
    centred = jnp.asarray(theirs - 9, jnp.float32)
    ours = anchors(1, 1, stride=16, sizes=SIZES["9"], ratios=RATIOS)
    overlaps = jnp.diag(intersection_over_union(ours, centred))
    assert overlaps.min() > 0.92
    np.testing.assert_array_equal(overlaps[3:6], 1)


def test_an_anchor_may_touch_the_border_and_not_cross_it():
    size = jnp.array([50, 80])
    boxes = jnp.array([[0.0, 0.0, 80.0, 50.0], [-0.1, 0.0, 9.0, 9.0], [0.0, -0.1, 9.0, 9.0]])
    beyond = jnp.array([[0.0, 0.0, 80.1, 50.0], [0.0, 0.0, 80.0, 50.1]])
    np.testing.assert_array_equal(inside(jnp.concatenate([boxes, beyond]), size), [True] + [False] * 4)


def test_the_image_counts_and_not_its_padding():
    found = anchors(4, 4, stride=16, sizes=(16,), ratios=(1,))
    masks = jax.vmap(lambda size: inside(found, size))(jnp.array([[64, 64], [64, 32]]))
    # Of 4 x 4 positions those in the first row and column stick out; half of the width leaves one column.
    assert masks.sum(1).tolist() == [9, 3]
