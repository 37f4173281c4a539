"""The paper's building blocks (Figures 2 and 5), their shortcuts, and their plain twins."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.models.convolution import convolution
from resnet_jax.models.dense import Fill, keep
from resnet_jax.models.pooling import max_pool

Norm = Callable[..., Callable[[Array], Array]]


def he_normal(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """A Gaussian of variance 2 / fan-in (He et al. 2015, "Delving deep into rectifiers")."""
    # Drawn flat: the same numbers as in `shape`, from a program that compiles three times faster on a CPU.
    flat = jax.random.normal(key, (math.prod(shape),), dtype)
    return flat.reshape(shape) * jnp.sqrt(jnp.asarray(2.0 / math.prod(shape[:-1]), dtype))


@jax.custom_vjp
def relu(x: Array) -> Array:
    """max(x, 0) of a sum; its gradient looks at the result, which is in memory, where JAX's own would add up again."""
    return nn.relu(x)


def _forward(x):
    y = nn.relu(x)
    return y, y


def _backward(y, gradient):
    # Or the compiler computes y anew from the two that were added.
    y = jax.lax.optimization_barrier(y)
    return (jnp.where(y > 0, gradient, 0),)


relu.defvjp(_forward, _backward)


class Conv(nn.Module):
    """Convolution without bias, He initialised, padded by (size - 1) // 2 on every side.

    The padding is explicit because "SAME" at stride 2 would centre the windows on odd pixels, one off from the
    pixels that a strided 1x1 projection and the option-A subsampling take.
    """

    features: int
    size: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n oh ow f"]:
        """Returns the convolved images in `dtype`."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", he_normal, shape, jnp.float32)
        pad = (self.size - 1) // 2
        # Variables read from a file may be numpy's.
        x, kernel = x.astype(self.dtype), jnp.asarray(kernel, self.dtype)
        return convolution(x, kernel, (self.stride, self.stride), ((pad, pad), (pad, pad)))


class Stem(nn.Module):
    """The first layer. "imagenet": 7x7/2, norm, ReLU, 3x3/2 maximum (Table 1); "cifar": 3x3, norm, ReLU (section 4.2).

    Without `norm`, the normalization and the ReLU are left out, for blocks that start with their own. `pool_padding`
    says where the maximum's windows start: "both" pads a pixel on every side, "end" lets the first window start at the
    first pixel and cuts the last one off, as Caffe did for the authors' released nets. `fill` makes what lies beyond
    each image a given value (`padding_filler`).
    """

    kind: str
    features: int
    norm: Norm | None
    pool_padding: str = "both"
    dtype: Any = jnp.float32
    fill: Fill = keep

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n oh ow f"]:
        """Applies the layer."""
        size, stride = (7, 2) if self.kind == "imagenet" else (3, 1)
        x = Conv(self.features, size, stride, self.dtype, name="conv")(images)
        if self.norm:
            x = self.norm(name="norm", relu=True)(x)
        if self.kind == "imagenet":
            padding = [(1, 1) if self.pool_padding == "both" else (0, 1 + side % 2) for side in x.shape[1:3]]
            x = max_pool(self.fill(x, -jnp.inf), padding)
        return self.fill(x)


class Shortcut(nn.Module):
    """The identity where shapes agree, else the paper's option (section 3.3 and Table 3).

    A: every `stride`-th pixel, new channels zero, no parameters. B: a 1x1 projection where the shape changes.
    C: a 1x1 projection everywhere.
    """

    option: str
    features: int
    stride: int
    norm: Norm | None
    dtype: Any = jnp.float32

    def projects(self, x: Float[Array, "n h w c"]) -> bool:
        """Whether the shortcut of this input is a 1x1 convolution."""
        keeps_shape = self.stride == 1 and x.shape[-1] == self.features
        return self.option == "C" or (self.option == "B" and not keeps_shape)

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n oh ow f"]:
        """Brings the block's input to the shape of its output."""
        if self.projects(x):
            x = Conv(self.features, 1, self.stride, self.dtype, name="conv")(x)
            return self.norm(name="norm")(x) if self.norm else x
        x = x[:, :: self.stride, :: self.stride]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.features - x.shape[-1])))


class BasicBlock(nn.Module):
    """Two 3x3 layers (Figure 5, left): 3x3, norm, ReLU, 3x3, norm, plus the shortcut, ReLU.

    Attributes:
      features: filters of each layer.
      stride: of the first layer, in pixels.
      norm: makes a normalization layer; takes `name`, `scale_init` and `relu`.
      shortcut: "A", "B" or "C"; None leaves it out, which is the plain net's pair of layers.
      last_scale_init: initialiser of the last normalization's gamma.
      dtype: of the computation.
    """

    features: int
    stride: int
    norm: Norm
    shortcut: str | None
    last_scale_init: Callable = nn.initializers.ones
    dtype: Any = jnp.float32

    expansion = 1

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n oh ow f"]:
        """Applies the block."""
        y = Conv(self.features, 3, self.stride, self.dtype, name="conv1")(x)
        y = self.norm(name="norm1", relu=True)(y)
        y = Conv(self.features, 3, 1, self.dtype, name="conv2")(y)
        y = self.norm(name="norm2", scale_init=self.last_scale_init)(y)
        if self.shortcut:
            y += Shortcut(self.shortcut, self.features, self.stride, self.norm, self.dtype, name="shortcut")(x)
        return relu(y)


class BottleneckBlock(nn.Module):
    """1x1, norm, ReLU, 3x3, norm, ReLU, 1x1 to four times the filters, norm, plus the shortcut, ReLU (Figure 5, right).

    `stride_in` says which layer takes the stride: the first "1x1", as in the paper's own nets, or the "3x3" (v1.5),
    which costs 0.23 G multiply-adds more at 224 pixels. The other attributes are those of `BasicBlock`.
    """

    features: int
    stride: int
    norm: Norm
    shortcut: str | None
    stride_in: str = "1x1"
    last_scale_init: Callable = nn.initializers.ones
    dtype: Any = jnp.float32

    expansion = 4

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n oh ow f"]:
        """Applies the block."""
        stride1, stride2 = (self.stride, 1) if self.stride_in == "1x1" else (1, self.stride)
        out = self.features * self.expansion
        y = Conv(self.features, 1, stride1, self.dtype, name="conv1")(x)
        y = self.norm(name="norm1", relu=True)(y)
        y = Conv(self.features, 3, stride2, self.dtype, name="conv2")(y)
        y = self.norm(name="norm2", relu=True)(y)
        y = Conv(out, 1, 1, self.dtype, name="conv3")(y)
        y = self.norm(name="norm3", scale_init=self.last_scale_init)(y)
        if self.shortcut:
            y += Shortcut(self.shortcut, out, self.stride, self.norm, self.dtype, name="shortcut")(x)
        return relu(y)


class PreActivationBasicBlock(nn.Module):
    """norm, ReLU, 3x3, norm, ReLU, 3x3, plus the shortcut (He et al. 2016, "Identity mappings", Figure 4e).

    A projection sees the activated input, an identity the untouched one; nothing follows the addition.
    The attributes are those of `BasicBlock`, less `last_scale_init`.
    """

    features: int
    stride: int
    norm: Norm
    shortcut: str | None
    dtype: Any = jnp.float32

    expansion = 1

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n oh ow f"]:
        """Applies the block."""
        active = self.norm(name="norm1", relu=True)(x)
        y = Conv(self.features, 3, self.stride, self.dtype, name="conv1")(active)
        y = self.norm(name="norm2", relu=True)(y)
        y = Conv(self.features, 3, 1, self.dtype, name="conv2")(y)
        return y + _pre_activation_shortcut(self, x, active) if self.shortcut else y


class PreActivationBottleneckBlock(nn.Module):
    """The bottleneck with norm and ReLU before each layer (He et al. 2016); attributes as in `BottleneckBlock`."""

    features: int
    stride: int
    norm: Norm
    shortcut: str | None
    stride_in: str = "1x1"
    dtype: Any = jnp.float32

    expansion = 4

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n oh ow f"]:
        """Applies the block."""
        stride1, stride2 = (self.stride, 1) if self.stride_in == "1x1" else (1, self.stride)
        active = self.norm(name="norm1", relu=True)(x)
        y = Conv(self.features, 1, stride1, self.dtype, name="conv1")(active)
        y = self.norm(name="norm2", relu=True)(y)
        y = Conv(self.features, 3, stride2, self.dtype, name="conv2")(y)
        y = self.norm(name="norm3", relu=True)(y)
        y = Conv(self.features * self.expansion, 1, 1, self.dtype, name="conv3")(y)
        return y + _pre_activation_shortcut(self, x, active) if self.shortcut else y


def _pre_activation_shortcut(block, x, active):
    shortcut = Shortcut(
        block.shortcut, block.features * block.expansion, block.stride, None, block.dtype, name="shortcut"
    )
    return shortcut(active if shortcut.projects(x) else x)


POST_ACTIVATION = {"basic": BasicBlock, "bottleneck": BottleneckBlock}
PRE_ACTIVATION = {"basic": PreActivationBasicBlock, "bottleneck": PreActivationBottleneckBlock}
