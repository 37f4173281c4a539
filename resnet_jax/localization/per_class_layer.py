"""The 1x1 convolution whose outputs belong to an anchor and a class each: all of them, or only those that are needed.

With 1000 classes, 9 anchors and offsets of 4 numbers, all outputs of one position of 2048 features are 36,000 numbers.
Training needs the offsets of one class at a few positions, testing those of a few classes, so that each is computed
from the kernel's own part for it.
"""

import math

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int


class PerClassWeights(nn.Module):
    """Kernel and bias of the convolution.

    Attributes:
      anchors: of a position.
      num_classes: of an anchor.
      values: of a class: 1 logit, or 4 offsets.
      std: of the normal values that the kernel starts with.
      bias: what the bias starts with.
    """

    anchors: int
    num_classes: int
    values: int
    std: float = 0.01
    bias: float = 0.0

    @nn.compact
    def __call__(self, features: int) -> tuple[Float[Array, "f a c v"], Float[Array, "a c v"]]:
        """Returns both by anchor, class and value, for so many inputs."""
        shape = self.anchors, self.num_classes, self.values
        outputs = math.prod(shape)
        kernel = self.param("kernel", nn.initializers.normal(self.std), (1, 1, features, outputs), jnp.float32)
        bias = self.param("bias", nn.initializers.constant(self.bias), (outputs,), jnp.float32)
        return kernel.reshape(features, *shape), bias.reshape(shape)


def everywhere(
    x: Float[Array, "n h w f"], kernel: Float[Array, "f a c v"], bias: Float[Array, "a c v"]
) -> Float[Array, "n all c v"]:
    """All outputs, by position row by row, then anchor."""
    found = jnp.einsum("nhwf,facv->nhwacv", x, kernel) + bias[None, None, None]
    return found.reshape(len(x), -1, *found.shape[4:])


def of_classes(
    x: Float[Array, "n h w f"], kernel: Float[Array, "f a c v"], bias: Float[Array, "a c v"], labels: Int[Array, "n k"]
) -> Float[Array, "n k all v"]:
    """Of each image the outputs of its own k classes alone, `everywhere`'s [labels]."""
    # Classes of all images first, so that the kernel's parts are one after the other in memory.
    kernel, bias = jnp.moveaxis(kernel, 2, 0)[labels], jnp.moveaxis(bias, 1, 0)[labels]
    found = jnp.einsum("nhwf,nkfav->nkhwav", x, kernel) + bias[:, :, None, None]
    return found.reshape(*labels.shape, -1, found.shape[-1])


def at_anchors(
    x: Float[Array, "n h w f"],
    kernel: Float[Array, "f a c v"],
    bias: Float[Array, "a c v"],
    chosen: Int[Array, "n s"],
) -> Float[Array, "n s c v"]:
    """Of each image the outputs of its s chosen anchors alone: `everywhere`'s [chosen]."""
    anchors = kernel.shape[1]
    found = jnp.einsum("nsf,facv->nsacv", _at_positions(x, chosen // anchors), kernel) + bias[None, None]
    return _of_anchor(found, chosen % anchors)


def at_anchors_of_class(
    x: Float[Array, "n h w f"],
    kernel: Float[Array, "f a c v"],
    bias: Float[Array, "a c v"],
    chosen: Int[Array, "n s"],
    labels: Int[Array, " n"],
) -> Float[Array, "n s v"]:
    """Of each image the outputs of its s chosen anchors for its own class alone: `everywhere`'s [chosen, label]."""
    anchors = kernel.shape[1]
    kernel, bias = jnp.moveaxis(kernel, 2, 0)[labels], jnp.moveaxis(bias, 1, 0)[labels]
    found = jnp.einsum("nsf,nfav->nsav", _at_positions(x, chosen // anchors), kernel) + bias[:, None]
    return _of_anchor(found, chosen % anchors)


def _at_positions(x: Array, positions: Array) -> Array:
    """The features [n s f] at s positions of each map."""
    return jnp.take_along_axis(x.reshape(len(x), -1, x.shape[-1]), positions[:, :, None], axis=1)


def _of_anchor(found: Array, anchor: Array) -> Array:
    """[n s a ...] at one anchor [n s]."""
    places = anchor.reshape(*anchor.shape, *(1,) * (found.ndim - 2))
    return jnp.take_along_axis(found, places, axis=2)[:, :, 0]
