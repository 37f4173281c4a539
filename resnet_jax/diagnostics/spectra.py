"""The largest singular value of each layer as a linear map: what it can at most multiply a difference by.

Of a convolution that is the map on its whole image, zeros around it and strides included, not the kernel as a matrix.
For a net the product over its layers, with each normalization's factor, is a bound of its Lipschitz constant.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.diagnostics.lanczos import lanczos_start, lanczos_step, ritz_values
from resnet_jax.models.blocks import Conv
from resnet_jax.models.convolution import convolution
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.stacking import unstack_blocks


class _Layer(NamedTuple):
    shape: tuple[int, ...]
    stride: int


def largest_singular_value(
    linear: Callable[[Array], Array], shape: tuple[int, ...], *, steps: int = 20, seed: int = 0
) -> float:
    """Of a linear map of arrays of a shape, from below: the root of its Gram map's largest Ritz value.

    Args:
      linear: with a reverse derivative.
      shape: of what it takes.
      steps: products with the map, and as many with its transpose.
      seed: of the vector that it begins with.

    Raises:
      ValueError: for steps below 1.
    """
    return _root(*_elements(linear, _start(shape, seed), steps=steps))


def layer_singular_values(
    model: ResNet, variables: dict, image_shape: tuple[int, int, int], *, steps: int = 20
) -> dict[str, float]:
    """The largest singular value of every convolution on an image of the size that it sees, and of the classifier.

    Args:
      model: the net, of scanned blocks or not.
      variables: its {"params", "batch_stats"}.
      image_shape: (height, width, channels) of the net's input.
      steps: see `largest_singular_value`.

    Returns:
      By layer, in forward order, such as "stage1_block2/conv1", with the names of the unrolled net.

    Raises:
      ValueError: for steps below 1, or images that the net does not take.
    """
    variables = unstack_blocks(variables)
    found = {}
    for name, layer in _convolutions(model.clone(scan=False), variables, image_shape).items():
        kernel = _kernel(variables["params"], name)
        found[name] = _of_convolution(kernel, _start(layer.shape), layer.stride, steps)
    if model.num_classes is not None:
        kernel = _kernel(variables["params"], "classifier")
        found["classifier"] = _of_matrix(kernel, _start(kernel.shape[:1]), steps)
    elements = jax.device_get(list(found.values()))
    return {name: _root(*own) for name, own in zip(found, elements, strict=True)}


def _kernel(params: dict, name: str) -> Array:
    for part in name.split("/"):
        params = params[part]
    return params["kernel"]


def _convolutions(model: ResNet, variables: dict, image_shape: tuple[int, int, int]) -> dict[str, _Layer]:
    """Stride and shape of the input, of one image, of each convolution; nothing is computed."""
    layers: dict[str, _Layer] = {}

    def record(next_function, args, kwargs, context):
        if isinstance(context.module, Conv):
            layers["/".join(context.module.path)] = _Layer(args[0].shape, context.module.stride)
        return next_function(*args, **kwargs)

    with nn.intercept_methods(record):
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        jax.eval_shape(partial(model.apply, train=False), variables, image)
    return layers


def _start(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@partial(jax.jit, static_argnums=(2, 3))
def _of_convolution(kernel: Array, start: Array, stride: int, steps: int) -> tuple[Array, Array]:
    pad = (kernel.shape[0] - 1) // 2
    linear = partial(convolution, kernel=kernel, strides=(stride, stride), padding=((pad, pad), (pad, pad)))
    return _elements(linear, start, steps=steps)


@partial(jax.jit, static_argnums=2)
def _of_matrix(matrix: Float[Array, "i o"], start: Float[Array, " i"], steps: int) -> tuple[Array, Array]:
    return _elements(lambda x: x @ matrix, start, steps=steps)


def _elements(linear: Callable[[Array], Array], start: Any, *, steps: int) -> tuple[Any, Any]:
    """Of the tridiagonal matrix of the Gram map."""
    if steps < 1:
        raise ValueError(f"steps={steps}: must be at least 1 product with the map")

    def gram(x):
        y, transposed = jax.vjp(linear, x)
        return transposed(y)[0]

    def one(at, _):
        at = lanczos_step(gram, at)
        return at, (at.diagonal, at.beside)

    return jax.lax.scan(one, lanczos_start(start), length=steps)[1]


def _root(diagonal: Any, beside: Any) -> float:
    # Rounding can leave the largest value of a map to nothing below 0.
    return float(max(ritz_values(diagonal, beside)[-1], 0.0) ** 0.5)
