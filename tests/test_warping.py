"""Warped regions: a slow bilinear reference, resizing of the whole image, and nothing from the padding."""

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data.resize import resize_image
from resnet_jax.localization import warping

warp = jax.jit(warping.warp, static_argnames="size")
PIXELS = np.random.default_rng(0).normal(size=(2, 13, 17, 3)).astype(np.float32)
SIZES = np.array([[13, 17], [11, 9]], np.int32)


def slow(image, box, size):
    """One pixel after the other; pixel centres stand at half-integers, and the border goes on for ever."""
    x1, y1, x2, y2 = (float(value) for value in box)
    found = np.zeros((size, size, image.shape[2]))
    for row in range(size):
        for column in range(size):
            y = np.clip(y1 + (row + 0.5) * (y2 - y1) / size - 0.5, 0, image.shape[0] - 1)
            x = np.clip(x1 + (column + 0.5) * (x2 - x1) / size - 0.5, 0, image.shape[1] - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
            above = image[top, left] * (1 - (x - left)) + image[top, right] * (x - left)
            below = image[bottom, left] * (1 - (x - left)) + image[bottom, right] * (x - left)
            found[row, column] = above * (1 - (y - top)) + below * (y - top)
    return found


def test_regions_are_bilinear_samples_of_their_own_image():
    boxes = np.array(
        [
            [[0, 0, 17, 13], [2.25, 3.5, 9.75, 12], [16, 12, 17, 13]],
            [[0, 0, 9, 11], [1, 2, 1.5, 2.5], [0.5, 7.25, 8.5, 11]],
        ],
        np.float32,
    )
    found = warp(jnp.asarray(PIXELS), jnp.asarray(boxes), SIZES, size=7)
    assert found.shape == (2, 3, 7, 7, 3)
    for image, (height, width), own, regions in zip(PIXELS, SIZES, boxes, found, strict=True):
        for box, region in zip(own, regions, strict=True):
            np.testing.assert_allclose(region, slow(image[:height, :width], box, 7), atol=2e-5)


def test_a_whole_image_is_resized():
    whole = jnp.array([[[0.0, 0.0, 17.0, 13.0]]])
    found = warp(jnp.asarray(PIXELS[:1]), whole, SIZES[:1], size=20)[0, 0]
    expected = jax.image.resize(jnp.asarray(PIXELS[0]), (20, 20, 3), "bilinear", antialias=False)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    pixels = np.random.default_rng(1).integers(0, 256, (13, 17, 3)).astype(np.uint8)
    found = warp(jnp.asarray(pixels[None], jnp.float32), whole, SIZES[:1], size=20)[0, 0]
    expected = resize_image(pixels, (20, 20), resize="bilinear")
    np.testing.assert_allclose(found, expected.astype(np.float32), atol=1.0)


def test_the_size_is_the_paper_s_unless_said_otherwise():
    boxes = jnp.zeros((2, 1, 4)) + jnp.array([[[0.0, 0.0, 5.0, 5.0]]])
    assert warp(jnp.asarray(PIXELS), boxes, SIZES).shape == (2, 1, 224, 224, 3)


def test_padding_has_no_influence():
    canvas = np.full((1, 32, 40, 3), 1e6, np.float32)
    canvas[0, :13, :17] = PIXELS[0]
    boxes = jnp.array([[[0.0, 0.0, 17.0, 13.0], [10.0, 5.0, 17.0, 13.0]]])
    found = warp(jnp.asarray(canvas), boxes, SIZES[:1], size=9)
    np.testing.assert_allclose(found, warp(jnp.asarray(PIXELS[:1]), boxes, SIZES[:1], size=9), atol=1e-5)
