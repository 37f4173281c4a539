"""The convolution: its gradients are the ordinary ones on every path, and its windows lie where the paper's do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from resnet_jax.models.blocks import Conv, Shortcut
from resnet_jax.models.convolution import convolution

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def ordinary(images, kernel, strides, padding):
    return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=DIMENSIONS)


def normal(shape, seed, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def value_and_gradients(function, images, kernel, strides, padding):
    """Output, and the gradients of its product with fixed noise."""

    @jax.jit
    def both(images, kernel, cotangent):
        output, pull_back = jax.vjp(lambda x, k: function(x, k, strides, padding), images, kernel)
        return output, *pull_back(cotangent)

    shape = jax.eval_shape(lambda: ordinary(images, kernel, strides, padding))
    return both(images, kernel, normal(shape.shape, 2, shape.dtype))


def assert_close(actual, expected, *, tolerance):
    """Differences are at most that fraction of the largest expected value."""
    assert actual.dtype == expected.dtype
    expected = np.asarray(expected, np.float32)
    np.testing.assert_allclose(
        np.asarray(actual, np.float32), expected, rtol=0, atol=tolerance * np.abs(expected).max()
    )


# (batch, height, width), kernel side, stride, padding; 4,096 output positions and more are split into parts
# if the batch has a divisor: 64 x 8 x 8 into 2, 128 x 12 x 12 into 8, 67 examples not at all; 1x1 ones never.
CASES = {
    "3x3": ((4, 8, 8), 3, 1, ((1, 1), (1, 1))),
    "3x3 odd sides": ((4, 7, 5), 3, 1, ((1, 1), (1, 1))),
    "3x3 stride 2": ((4, 8, 8), 3, 2, ((1, 1), (1, 1))),
    "3x3 stride 2, odd sides": ((4, 7, 9), 3, 2, ((1, 1), (1, 1))),
    "1x1": ((4, 6, 6), 1, 1, ((0, 0), (0, 0))),
    "1x1 stride 2": ((4, 8, 6), 1, 2, ((0, 0), (0, 0))),
    "1x1 stride 2, odd sides": ((4, 7, 5), 1, 2, ((0, 0), (0, 0))),
    "7x7 stride 2": ((2, 16, 16), 7, 2, ((3, 3), (3, 3))),
    "7x7 stride 2, odd sides": ((2, 15, 13), 7, 2, ((3, 3), (3, 3))),
    "3x3 no padding": ((3, 8, 7), 3, 1, ((0, 0), (0, 0))),
    "3x3 uneven padding and strides": ((3, 8, 9), 3, (2, 1), ((0, 1), (2, 1))),
    "3x3 padded by more than the kernel": ((3, 5, 5), 3, 2, ((4, 3), (3, 4))),
    "3x3 two parts": ((64, 8, 8), 3, 1, ((1, 1), (1, 1))),
    "3x3 stride 2, eight parts": ((128, 24, 24), 3, 2, ((1, 1), (1, 1))),
    "1x1 of many": ((64, 8, 8), 1, 1, ((0, 0), (0, 0))),
    "1x1 padded": ((4, 6, 6), 1, 1, ((1, 0), (0, 2))),
    "3x3 a batch that does not split": ((67, 8, 8), 3, 1, ((1, 1), (1, 1))),
}


@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients_are_the_ordinary_ones(case):
    sides, size, stride, padding = CASES[case]
    strides = stride if isinstance(stride, tuple) else (stride, stride)
    images, kernel = normal((*sides, 3), 0), normal((size, size, 3, 4), 1)
    actual = value_and_gradients(convolution, images, kernel, strides, padding)
    expected = value_and_gradients(ordinary, images, kernel, strides, padding)
    for got, wanted in zip(actual, expected, strict=True):
        # Sums of up to 24,000 float32 products, in another order.
        assert_close(got, wanted, tolerance=1e-5)


@pytest.mark.parametrize("case", ["3x3 stride 2, odd sides", "1x1 stride 2", "7x7 stride 2", "3x3 two parts"])
def test_second_derivatives_are_the_ordinary_ones(case):
    """A Hessian times a vector, of functions that are not quadratic."""
    sides, size, stride, padding = CASES[case]
    images, kernel = normal((*sides, 3), 0), normal((size, size, 3, 4), 1)

    def products(function):
        def loss(images, kernel):
            return jnp.sin(function(images, kernel, (stride, stride), padding)).sum()

        def slope(images, kernel):
            return sum(jnp.sin(one).sum() for one in jax.grad(loss, (0, 1))(images, kernel))

        return jax.jit(jax.grad(slope, (0, 1)))(images, kernel)

    for got, wanted in zip(products(convolution), products(ordinary), strict=True):
        assert_close(got, wanted, tolerance=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3])
def test_gradients_in_bfloat16(size, stride):
    strides, padding = (stride, stride), ((size // 2,) * 2, (size // 2,) * 2)
    images, kernel = normal((64, 16, 16, 4), 0, jnp.bfloat16), normal((size, size, 4, 4), 1, jnp.bfloat16)
    wide = [array.astype(jnp.float32) for array in (images, kernel)]
    actual = value_and_gradients(convolution, images, kernel, strides, padding)
    expected = value_and_gradients(ordinary, *wide, strides, padding)
    for got, wanted in zip(actual, expected, strict=True):
        # bfloat16 keeps 8 bits; each part's sum is rounded once and so is each addition of parts.
        assert_close(got, wanted.astype(jnp.bfloat16), tolerance=2e-2)


def test_gradients_inside_a_loop():
    images, kernels = normal((64, 8, 8, 3), 0), normal((3, 3, 3, 3, 3), 1) / 3

    def loss(function, images, kernels):
        def layer(x, kernel):
            return jnp.tanh(function(x, kernel, (1, 1), ((1, 1), (1, 1)))), None

        return jnp.square(lax.scan(layer, images, kernels)[0]).mean()

    actual, expected = (
        jax.jit(jax.grad(lambda x, k, f=function: loss(f, x, k), (0, 1)))(images, kernels)
        for function in (convolution, ordinary)
    )
    for got, wanted in zip(actual, expected, strict=True):
        assert_close(got, wanted, tolerance=1e-5)


def lowered_gradients(images, size, platform):
    """Text of the program of both gradients of a convolution of 2 filters of that size."""

    def gradients(images, kernel):
        pad = (size // 2, size // 2)
        output, pull_back = jax.vjp(lambda x, k: convolution(x, k, (1, 1), (pad, pad)), images, kernel)
        return pull_back(output)

    shapes = (images, (size, size, images[-1], 2))
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(gradients).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    ("platform", "images", "parts"),
    # A part has 8 examples and 2,048 positions at least, and there are 16 parts at most.
    [
        ("cpu", (128, 16, 16, 2), 16),
        ("cpu", (128, 8, 8, 2), 4),
        ("cpu", (16, 56, 56, 2), 2),
        ("cpu", (512, 8, 8, 2), 16),
        ("tpu", (128, 16, 16, 2), 1),
        ("cuda", (128, 16, 16, 2), 1),
    ],
)
def test_only_a_cpu_gets_the_gradient_in_parts(platform, images, parts):
    text = lowered_gradients(images, 3, platform)
    assert text.count("stablehlo.convolution") == 1 + 1 + parts


@pytest.mark.parametrize(("platform", "convolutions", "products"), [("cpu", 2, 1), ("tpu", 3, 0), ("cuda", 3, 0)])
def test_only_a_cpu_gets_the_gradient_of_a_1x1_kernel_as_a_matrix_product(platform, convolutions, products):
    text = lowered_gradients((128, 16, 16, 2), 1, platform)
    assert text.count("stablehlo.convolution") == convolutions
    assert text.count("stablehlo.dot_general") == products


@pytest.mark.parametrize(
    ("channels", "width", "strides", "paired"),
    [(16, 8, (1, 1), True), (16, 7, (1, 1), False), (17, 8, (1, 1), False), (16, 8, (2, 2), False)],
)
def test_a_cpu_makes_two_columns_of_few_channels_at_a_time(channels, width, strides, paired):
    images, kernel = normal((4, 8, width, 5), 0), normal((3, 3, 5, channels), 1)
    padding = ((1, 1), (1, 1))

    def text(platform):
        def forward(images, kernel):
            return jax.vjp(lambda x, k: convolution(x, k, strides, padding), images, kernel)[0]

        return jax.jit(forward).trace(images, kernel).lower(lowering_platforms=(platform,)).as_text()

    assert (f"tensor<3x4x5x{2 * channels}xf32>" in text("cpu")) == paired
    assert f"x{2 * channels}xf32>" not in text("cuda") + text("tpu")
    actual = value_and_gradients(convolution, images, kernel, strides, padding)
    for got, wanted in zip(actual, value_and_gradients(ordinary, images, kernel, strides, padding), strict=True):
        assert_close(got, wanted, tolerance=1e-5)


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
@pytest.mark.parametrize("case", ["3x3 stride 2, odd sides", "3x3 two parts", "1x1 stride 2"])
def test_several_nets_at_once_have_the_output_and_gradients_of_each(case, axes):
    sides, size, stride, padding = CASES[case]
    shapes = ((*sides, 3), (size, size, 3, 4))
    many = [shape if axis is None else (3, *shape) for shape, axis in zip(shapes, axes, strict=True)]
    arguments = [normal(shape, index) for index, shape in enumerate(many)]

    def both(images, kernel):
        output, pull_back = jax.vjp(lambda x, k: convolution(x, k, (stride, stride), padding), images, kernel)
        return output, *pull_back(jnp.cos(output))

    together = jax.jit(jax.vmap(both, axes))(*arguments)
    for index in range(3):
        own = [leaf if axis is None else leaf[index] for leaf, axis in zip(arguments, axes, strict=True)]
        for found, expected in zip(together, jax.jit(both)(*own), strict=True):
            np.testing.assert_array_equal(found[index], expected)


@pytest.mark.parametrize(("platform", "convolutions"), [("cpu", 3 * (1 + 1 + 16)), ("tpu", 3), ("cuda", 3)])
def test_several_nets_at_once_are_one_convolution_but_on_a_cpu(platform, convolutions):
    images, kernel = normal((3, 128, 16, 16, 2), 0), normal((3, 3, 3, 2, 2), 1)

    def all_three(images, kernel):
        output, pull_back = jax.vjp(lambda x, k: convolution(x, k, (1, 1), ((1, 1), (1, 1))), images, kernel)
        return output, pull_back(output)

    lowered = jax.jit(jax.vmap(all_three)).trace(images, kernel).lower(lowering_platforms=(platform,))
    assert lowered.as_text().count("stablehlo.convolution") == convolutions


def delta_kernel(size, channels):
    """One at the centre, channel by channel."""
    kernel = np.zeros((size, size, channels, channels), np.float32)
    kernel[size // 2, size // 2] = np.eye(channels)
    return jnp.asarray(kernel)


@pytest.mark.parametrize("sides", [(8, 8), (16, 12), (7, 9)], ids=str)
@pytest.mark.parametrize("size", [1, 3, 7])
def test_strided_windows_are_centred_on_the_pixels_of_option_a(size, sides):
    images = normal((2, *sides, 3), 0)
    output = Conv(3, size, stride=2).apply({"params": {"kernel": delta_kernel(size, 3)}}, images)
    np.testing.assert_array_equal(output, images[:, ::2, ::2])
    np.testing.assert_array_equal(Shortcut("A", 3, 2, None).apply({}, images), images[:, ::2, ::2])


@pytest.mark.parametrize("size", [3, 7])
def test_same_padding_would_be_one_pixel_off(size):
    images = normal((2, 8, 8, 3), 0)
    output = lax.conv_general_dilated(images, delta_kernel(size, 3), (2, 2), "SAME", dimension_numbers=DIMENSIONS)
    assert output.shape == images[:, ::2, ::2].shape
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(output, images[:, ::2, ::2])
    np.testing.assert_array_equal(output, images[:, 1::2, 1::2])
