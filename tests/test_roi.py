"""Regions' features and their gradients are torchvision's, in bounded memory and without a scatter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from detection_ops import draw_boxes, stored

from resnet_jax.detection.boxes import mirror
from resnet_jax.detection.roi import roi_align, roi_pool

FUNCTIONS = {"align": roi_align, "pool": roi_pool}
# Bilinear samples are sums of products, in another order; a largest value is what it is.
TOLERANCE = {"align": 5e-5, "pool": 0}
CASES = [("normal", 7), ("relu", 7), ("normal", 14)]
SCALE = 1 / 16

both = pytest.mark.parametrize("function", FUNCTIONS)


@both
@pytest.mark.parametrize(("features", "size"), CASES)
def test_values_are_torchvision_s(function, features, size):
    given = stored("roi")
    found = jax.jit(lambda x: FUNCTIONS[function](x, given["boxes"], size=size, scale=SCALE))(given[features])
    wanted = given[f"{function}_{features}_{size}"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE[function])


@both
@pytest.mark.parametrize("features", ["normal", "relu"])
def test_gradients_are_torchvision_s(function, features):
    given = stored("roi")

    def total(x):
        return (FUNCTIONS[function](x, given["boxes"], size=7, scale=SCALE) * given["upstream"]).sum()

    gradient = jax.jit(jax.grad(total))(given[features])
    np.testing.assert_allclose(gradient, given[f"{function}_{features}_7_gradient"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampling", [1, 2, 3])
def test_samples_of_a_slope_lie_on_it(sampling):
    slope = jnp.arange(25.0).reshape(5, 5, 1)
    found = roi_align(slope, jnp.array([[1.0, 1.0, 3.0, 3.0]]), size=4, scale=1.0, sampling=sampling)
    wanted = 4.5 + 2.5 * np.arange(4)[:, None] + 0.5 * np.arange(4)[None]
    np.testing.assert_allclose(found[0, :, :, 0], wanted, rtol=1e-6)


def test_samples_of_the_mirrored_image_are_mirrored():
    features = jax.random.normal(jax.random.key(0), (9, 12, 2))
    # Some stick out, as the image has 144 x 192 pixels.
    boxes = draw_boxes(0, 20, extent=150, side=90)
    found = roi_align(features, boxes, size=5, scale=SCALE)
    mirrored = roi_align(features[:, ::-1], mirror(boxes, 192), size=5, scale=SCALE)
    np.testing.assert_allclose(mirrored, found[:, :, ::-1], atol=5e-5)


def pooled_bin_by_bin(features, boxes, size):
    """`roi_pool` as a loop over bins whose edges are whole numbers."""
    found = np.zeros((len(boxes), size, size, features.shape[2]), np.float32)
    for number, box in enumerate(boxes):
        left, top, right, bottom = (int(np.floor(SCALE * side + 0.5)) for side in box)
        rows, columns = max(bottom - top + 1, 1), max(right - left + 1, 1)
        for y in range(size):
            first, last = top + y * rows // size, top - (-(y + 1) * rows // size)
            strip = features[max(first, 0) : max(last, 0)]
            for x in range(size):
                first, last = left + x * columns // size, left - (-(x + 1) * columns // size)
                cells = strip[:, max(first, 0) : max(last, 0)]
                if cells.size:
                    found[number, y, x] = cells.max((0, 1))
    return found


@pytest.mark.parametrize("size", [1, 3, 14])
def test_bins_have_whole_cells(size):
    features = np.random.default_rng(0).normal(size=(38, 64, 2)).astype(np.float32)
    # Corners on cells, of which 62 in a row do not divide by 14 in float32; and more boxes than are pooled at once.
    corners = [[0, 0, 61, 37], [1, 3, 62, 30], [-5, -5, 56, 56], [63, 37, 63, 37]]
    boxes = jnp.concatenate([16 * jnp.array(corners, jnp.float32), draw_boxes(0, 40, extent=800, side=500)])
    found = jax.jit(lambda x: roi_pool(x, boxes, size=size, scale=SCALE))(jnp.asarray(features))
    np.testing.assert_array_equal(found, pooled_bin_by_bin(features, np.asarray(boxes), size))


def test_of_equal_values_the_first_row_by_row_has_the_gradient():
    features = jnp.zeros((4, 4, 1)).at[1, 3].set(1.0).at[2, 1].set(1.0)
    gradient = jax.grad(lambda x: roi_pool(x, jnp.array([[0.0, 0.0, 3.0, 3.0]]), size=1, scale=1.0).sum())(features)
    np.testing.assert_array_equal(gradient, jnp.zeros((4, 4, 1)).at[1, 3].set(1.0))


@both
def test_a_region_beside_the_map_is_zero_and_so_is_its_gradient(function):
    features = 1 + jax.random.uniform(jax.random.key(0), (9, 12, 2))
    boxes = jnp.array([[400.0, 10.0, 500.0, 100.0], [-300.0, -300.0, -200.0, -200.0]])
    value, gradient = jax.value_and_grad(lambda x: FUNCTIONS[function](x, boxes, size=7, scale=SCALE).sum())(features)
    assert value == 0 and not gradient.any()


@pytest.mark.slow
@both
def test_half_precision_stays_what_it_is(function):
    features = jax.random.normal(jax.random.key(0), (9, 12, 2), jnp.bfloat16)
    found = FUNCTIONS[function](features, draw_boxes(0, 3), size=7, scale=SCALE)
    wanted = FUNCTIONS[function](features.astype(jnp.float32), draw_boxes(0, 3), size=7, scale=SCALE)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, wanted.astype(jnp.bfloat16))


@pytest.mark.slow
@both
def test_images_in_a_batch_are_as_images_alone(function):
    features, boxes = jax.random.normal(jax.random.key(0), (2, 9, 12, 3)), draw_boxes(0, 2, 18, extent=150)
    upstream = jax.random.normal(jax.random.key(1), (18, 5, 5, 3))

    def one(features, boxes):
        value, pull = jax.vjp(lambda x: FUNCTIONS[function](x, boxes, size=5, scale=SCALE), features)
        return value, pull(upstream)[0]

    together = jax.jit(jax.vmap(one))(features, boxes)
    for image in range(2):
        for made, wanted in zip(together, one(features[image], boxes[image]), strict=True):
            np.testing.assert_allclose(made[image], wanted, atol=1e-5)


def training_program(function):
    """The gradient of 64 regions of an image of 600 x 1000 pixels, traced."""
    features, boxes = jax.ShapeDtypeStruct((38, 63, 1024), jnp.float32), jax.ShapeDtypeStruct((64, 4), jnp.float32)

    def total(features, boxes):
        return jnp.square(FUNCTIONS[function](features, boxes, size=14, scale=SCALE)).sum()

    return jax.jit(jax.grad(total)).trace(features, boxes)


@both
def test_the_memory_of_64_regions_is_bounded(function):
    planned = training_program(function).lower().compile().memory_analysis().temp_size_in_bytes
    assert planned < {"align": 0.5e9, "pool": 1.0e9}[function]
