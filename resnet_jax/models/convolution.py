"""One convolution for every net, whose gradients are fast on a CPU and left alone elsewhere.

XLA's CPU compiler turns the transposed convolutions of an ordinary gradient into naive loop nests inside any
`scan` or `while` (20 to 38 times slower), and its weight gradient is slow everywhere. Writing both gradients
as ordinary NHWC/HWIO convolutions cures the first; splitting the weight gradient over the batch most of the second.
And with few output channels it leaves half of a vector unit idle, which two output columns at a time fill; a net that
is not differentiated does without, so that an exported one is the same on all platforms. Accelerators get the ordinary
convolution, and JAX's own gradient.

Under `vmap` over images and kernels, as in several nets at once, XLA sees one convolution in as many groups, which is
what an accelerator wants and takes a CPU three to five times as long as one convolution after the other: there it is
the latter.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Output positions and examples of one part of the weight gradient, and the most parts. 128 images of 32x32x16 take 9.0,
# 9.3 and 7.8 ms in 1, 4 and 16 parts. Of few examples a part fills no vector: 16 images of 56x56x64 take 27, 29, 41 and
# 90 ms in 1, 2, 4 and 16 parts; 32 of them 73, 71 and 122 ms in 1, 4 and 16.
_POSITIONS_PER_PART = 2048
_EXAMPLES_PER_PART = 8
_MOST_PARTS = 16
# Output channels up to which pairs of columns are faster on a CPU: 5.0 for 6.0 ms with 16, 5.1 for 3.7 ms with 32.
_FEW_CHANNELS = 16


def _plain_convolution(images, kernel, *, strides, padding):
    return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=_DIMENSIONS)


def _paired_convolution(images, kernel, *, padding):
    """As of stride 1: two output columns are one position of twice the channels, whose window is one column wider."""
    height, width, inputs, outputs = kernel.shape
    of_both = [jnp.pad(kernel, ((0, 0), (column, 1 - column), (0, 0), (0, 0))) for column in (0, 1)]
    both = jnp.stack(of_both, 3).reshape(height, width + 1, inputs, 2 * outputs)
    pairs = _plain_convolution(images, both, strides=(1, 2), padding=padding)
    return pairs.reshape(*pairs.shape[:2], -1, outputs)


def _is_faster_in_pairs(images, kernel, *, strides, padding) -> bool:
    width = images.shape[2] + sum(padding[1]) - kernel.shape[1] + 1
    return strides == (1, 1) and kernel.shape[1] > 1 and kernel.shape[3] <= _FEW_CHANNELS and width % 2 == 0


def _training_convolution(images, kernel, *, strides, padding):
    plain = partial(_plain_convolution, strides=strides, padding=padding)
    if not _is_faster_in_pairs(images, kernel, strides=strides, padding=padding):
        return plain(images, kernel)
    return lax.platform_dependent(images, kernel, cpu=partial(_paired_convolution, padding=padding), default=plain)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolution(
    images: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c f"],
    strides: tuple[int, int],
    padding: Padding,
) -> Float[Array, "n oh ow f"]:
    """Two-dimensional convolution in NHWC/HWIO form with explicit padding; reverse-mode derivatives only.

    Args:
      images: input of shape [n, h, w, c].
      kernel: weights of shape [kh, kw, c, f], of the images' dtype.
      strides: steps between output positions, in pixels.
      padding: ((top, bottom), (left, right)) rows and columns of zeros.

    Returns:
      Output of shape [n, (h + top + bottom - kh) // strides[0] + 1, ..., f].
    """
    return _one_by_one(partial(_plain_convolution, strides=strides, padding=padding))(images, kernel)


def _one_by_one(function: Callable) -> Callable:
    """The function; of a batch of arguments a CPU computes one after the other, in one program.

    Derivatives of this one, which are those of second order, are JAX's own.
    """
    batchable = custom_vmap(function)

    @batchable.def_vmap
    def rule(axis_size, in_batched, *arguments):
        axes = tuple(0 if batched else None for batched in in_batched)

        def in_turn(*arguments):
            turns = [
                [leaf[turn] if batched else leaf for leaf, batched in zip(arguments, in_batched, strict=True)]
                for turn in range(axis_size)
            ]
            return jnp.stack([function(*turn) for turn in turns])

        return lax.platform_dependent(*arguments, cpu=in_turn, default=jax.vmap(function, axes)), True

    # JAX cannot go backwards through a rule for batches.
    differentiable = jax.custom_vjp(batchable)
    differentiable.defvjp(
        lambda *arguments: (batchable(*arguments), arguments),
        lambda arguments, gradient: jax.vjp(function, *arguments)[1](gradient),
    )
    return differentiable


def _forward(images, kernel, strides, padding):
    output = _one_by_one(partial(_training_convolution, strides=strides, padding=padding))(images, kernel)
    return output, (images, kernel)


def _backward(strides, padding, residuals, gradient):
    def own(images, kernel, gradient):
        conv = partial(_plain_convolution, strides=strides, padding=padding)
        return jax.vjp(conv, images, kernel)[1](gradient)

    def canonical(images, kernel, gradient):
        strided = {"strides": strides, "padding": padding}
        of_input = partial(_input_gradient, input_shape=images.shape, **strided)
        of_kernel = partial(_kernel_gradient, kernel_shape=kernel.shape, **strided)
        return _one_by_one(of_input)(gradient, kernel), _one_by_one(of_kernel)(images, gradient)

    return lax.platform_dependent(*residuals, gradient, cpu=canonical, default=own)


convolution.defvjp(_forward, _backward)


def _dilated(size: int, stride: int) -> int:
    return (size - 1) * stride + 1


def _input_gradient(gradient, kernel, input_shape, strides, padding):
    """The gradient spread out by the strides, convolved with the kernel turned by 180 degrees."""
    pads = []
    for axis in (0, 1):
        low = kernel.shape[axis] - 1 - padding[axis][0]
        high = input_shape[axis + 1] + padding[axis][0] - _dilated(gradient.shape[axis + 1], strides[axis])
        pads.append((low, high))
    turned = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
    if _is_faster_in_pairs(gradient, turned, strides=strides, padding=pads):
        return _paired_convolution(gradient, turned, padding=pads)
    return lax.conv_general_dilated(gradient, turned, (1, 1), pads, lhs_dilation=strides, dimension_numbers=_DIMENSIONS)


def _kernel_gradient(images, gradient, kernel_shape, strides, padding):
    """Channels play the batch, the batch plays the channels; summed over parts of the batch."""
    if kernel_shape[:2] == (1, 1) and not any(map(any, padding)):
        return _kernel_gradient_of_1x1(images, gradient, strides)
    count, height, width, _ = gradient.shape
    pads = []
    for axis in (0, 1):
        reach = _dilated(gradient.shape[axis + 1], strides[axis]) + kernel_shape[axis] - 1
        pads.append((padding[axis][0], reach - images.shape[axis + 1] - padding[axis][0]))
    parts = _parts(count, positions=count * height * width)
    # Every parts-th example, not a run of them: a batch split over devices stays where it is.
    images = images.reshape(count // parts, parts, *images.shape[1:])
    gradient = gradient.reshape(count // parts, parts, *gradient.shape[1:])
    total = None
    for part in range(parts):
        lhs = images[:, part].transpose(3, 1, 2, 0)
        rhs = gradient[:, part].transpose(1, 2, 0, 3)
        # Parts are summed in float32, so that splitting costs bfloat16 no precision.
        piece = lax.conv_general_dilated(
            lhs,
            rhs,
            (1, 1),
            pads,
            rhs_dilation=strides,
            dimension_numbers=_DIMENSIONS,
            preferred_element_type=jnp.float32,
        )
        total = piece if total is None else total + piece
    return total.transpose(1, 2, 0, 3).astype(images.dtype)


def _kernel_gradient_of_1x1(images, gradient, strides):
    """One matrix product, of rows of channels as they lie in memory; as a convolution it would transpose the images.

    16 images of 56x56, 64 to 256 channels: 16 for 28 ms.
    """
    images = images[:, :: strides[0], :: strides[1]]
    lhs, rhs = (array.reshape(-1, array.shape[-1]) for array in (images, gradient))
    return jnp.matmul(lhs.T, rhs, preferred_element_type=jnp.float32).astype(images.dtype)[None, None]


def _parts(count: int, *, positions: int) -> int:
    """The largest divisor of `count` that leaves every part enough positions and examples."""
    most = min(_MOST_PARTS, positions // _POSITIONS_PER_PART, count // _EXAMPLES_PER_PART)
    return next((parts for parts in range(most, 1, -1) if count % parts == 0), 1)
