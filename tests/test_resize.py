"""Resizing: area means, bilinear weights, and the size of an image with a given shorter side."""

import numpy as np
import pytest

from resnet_jax.data.resize import RESIZES, resize_image, scaled_size


def noise(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels)).astype(np.uint8)


def test_area_takes_the_mean_over_what_a_pixel_covers():
    image = noise(6, 8)
    expected = image.reshape(2, 3, 2, 4, 3).mean((1, 3))
    np.testing.assert_allclose(resize_image(image, (2, 2), resize="area"), expected, atol=0.5001)


def test_bilinear_reads_the_four_nearest_pixels_at_centres_on_half_integers():
    # From 8 to 2 pixels the new centres fall at 2.0 and 6.0 in edges' coordinates: midway between pixels 1, 2 and 5, 6.
    image = noise(8, 8)
    rows = (image[[1, 5]].astype(float) + image[[2, 6]]) / 2
    expected = (rows[:, [1, 5]] + rows[:, [2, 6]]) / 2
    np.testing.assert_allclose(resize_image(image, (2, 2), resize="bilinear"), expected, atol=1)


def test_area_is_bilinear_where_the_image_grows():
    image = noise(5, 7)
    np.testing.assert_array_equal(
        resize_image(image, (11, 15), resize="area"), resize_image(image, (11, 15), resize="bilinear")
    )


def test_area_treats_an_axis_that_shrinks_and_one_that_grows_each_in_its_way():
    image = np.zeros((8, 2, 1), np.uint8)
    image[::2] = 200
    image[:, 1] //= 2
    found = resize_image(image, (2, 4), resize="area")[..., 0]
    # Down the columns the mean of 200 and 0; along the rows a ramp from 100 to 50 at 0, 1/4, 3/4 and 1.
    np.testing.assert_allclose(found, [[100, 87.5, 62.5, 50]] * 2, atol=0.5001)


@pytest.mark.parametrize(("resize", "support"), [("pillow_bilinear", 1), ("pillow_bicubic", 2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_pillow_s_resizes_are_antialiased_with_its_kernels(resize, support, channels):
    def kernel(x):
        x = abs(x)
        if support == 1:
            return max(0.0, 1 - x)
        # Keys' cubic with a = -1/2.
        return 1.5 * x**3 - 2.5 * x**2 + 1 if x < 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    def weights(old, new):
        scale = old / new
        rows = [[kernel((pixel + 0.5 - (k + 0.5) * scale) / scale) for pixel in range(old)] for k in range(new)]
        return np.array(rows) / np.sum(rows, axis=1, keepdims=True)

    image = noise(24, 18, channels)
    expected = np.einsum("ih,hwc,jw->ijc", weights(24, 8), image, weights(18, 5))
    found = resize_image(image, (8, 5), resize=resize)
    # Pillow rounds between the two axes.
    np.testing.assert_allclose(found, np.clip(expected, 0, 255), atol=1.5)


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_the_wanted_size_stays_as_it_is(resize, channels):
    image = noise(5, 7, channels)
    np.testing.assert_array_equal(resize_image(image, (5, 7), resize=resize), image)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (1, 65535)])
def test_any_shape_can_be_resized(shape):
    image = np.full((*shape, 3), 77, np.uint8)
    for resize in RESIZES:
        found = resize_image(image, (9, 5), resize=resize)
        assert found.shape == (9, 5, 3) and (found == 77).all()


@pytest.mark.parametrize(
    ("size", "resize", "message"),
    [
        ((4, 4), "cubic", "resize='cubic'; allowed: area, bilinear, pillow_bilinear, pillow_bicubic"),
        ((0, 4), "area", r"size=\(0, 4\)"),
    ],
)
def test_bad_arguments_are_named(size, resize, message):
    with pytest.raises(ValueError, match=message):
        resize_image(noise(4, 4), size, resize=resize)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (375, 500, (256, 341)),
        (375, 499, (256, 340)),
        (500, 375, (341, 256)),
        (100, 100, (256, 256)),
        (1, 5000, (256, 1_280_000)),
    ],
)
def test_the_shorter_side_becomes_what_is_wanted(height, width, expected):
    assert scaled_size(height, width, 256) == expected
    assert scaled_size(*expected, 256) == expected
