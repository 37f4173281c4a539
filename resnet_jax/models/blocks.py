"""The paper's building blocks (Figures 2 and 5), their shortcuts, and their plain twins, in any arrangement."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.models.arrangements import ORDERS, Arrangement, Steps
from resnet_jax.models.convolution import convolution
from resnet_jax.models.dense import Fill, keep
from resnet_jax.models.pooling import max_pool

Norm = Callable[..., Callable[[Array], Array]]
Initializer = Callable[..., Array]


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
    """Convolution without bias, He initialised unless told otherwise, padded by (size - 1) // 2 on every side.

    The padding is explicit because "SAME" at stride 2 would centre the windows on odd pixels, one off from the
    pixels that a strided 1x1 projection and the option-A subsampling take.
    """

    features: int
    size: int
    stride: int = 1
    dtype: Any = jnp.float32
    kernel_init: Initializer = he_normal

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n oh ow f"]:
        """Returns the convolved images in `dtype`."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        pad = (self.size - 1) // 2
        # Variables read from a file may be numpy's.
        x, kernel = x.astype(self.dtype), jnp.asarray(kernel, self.dtype)
        return convolution(x, kernel, (self.stride, self.stride), ((pad, pad), (pad, pad)))


class Stem(nn.Module):
    """The first layer. "imagenet": 7x7/2, norm, ReLU, 3x3/2 maximum (Table 1); "cifar": 3x3, norm, ReLU (section 4.2).

    Without `norm`, the normalization and the ReLU are left out, without `relu` the latter, for blocks that start with
    their own. `pool_padding` says where the maximum's windows start: "both" pads a pixel on every side, "end" lets the
    first window start at the first pixel and cuts the last one off, as Caffe did for the authors' released nets. `fill`
    makes what lies beyond each image a given value (`padding_filler`).
    """

    kind: str
    features: int
    norm: Norm | None
    pool_padding: str = "both"
    dtype: Any = jnp.float32
    fill: Fill = keep
    relu: bool = True

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n oh ow f"]:
        """Applies the layer."""
        size, stride = (7, 2) if self.kind == "imagenet" else (3, 1)
        x = Conv(self.features, size, stride, self.dtype, name="conv")(images)
        if self.norm:
            x = self.norm(name="norm", relu=self.relu)(x)
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


class Scale(nn.Module):
    """Times one trained number, which `scale_init` starts (De and Smith 2020; Zhang et al. 2019)."""

    scale_init: Initializer
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Multiplies."""
        scale = self.param("scale", self.scale_init, (1,), jnp.float32)
        return x * scale.astype(self.dtype).reshape(1, 1, 1, 1)


def apply_steps(
    steps: Steps,
    x: Float[Array, "n h w c"],
    *,
    norm: Norm,
    name: str,
    scale_init: Initializer = nn.initializers.ones,
    dtype: Any = jnp.float32,
) -> Float[Array, "n h w c"]:
    """What stands at one place of an arrangement.

    Args:
      steps: of the place.
      x: what goes in.
      norm: makes a normalization layer.
      name: of its layers, with {} for what they are, such as "{}2" for "norm2".
      scale_init: initialiser of a normalization's gamma or of a scale.
      dtype: of the computation.
    """
    for step in steps:
        kind, _, activated = step.partition("+")
        if kind == "relu":
            x = relu(x)
        elif kind == "scale":
            x = Scale(scale_init, dtype, name=name.format(kind))(x)
        else:
            x = norm(name=name.format(kind), relu=bool(activated), scale_init=scale_init)(x)
    return x


class Layer(NamedTuple):
    """A convolution of a block.

    Attributes:
      features: filters.
      size: side of its window, in pixels.
      stride: in pixels.
    """

    features: int
    size: int
    stride: int


class Block(nn.Module):
    """A branch of a few layers plus the shortcut (section 3.2), in one of several arrangements.

    As the paper has it ("post"): convolution, norm, ReLU, ..., convolution, norm, plus the shortcut, ReLU.

    Attributes:
      features: filters of each layer, of a bottleneck's last four times as many.
      stride: of the first layer, in pixels, or of a bottleneck's second.
      norm: makes a normalization layer; takes `name`, `scale_init` and `relu`.
      shortcut: "A", "B" or "C"; None leaves it out, which is the plain net's layers.
      arrangement: where normalization, ReLU and addition stand.
      kernel_init: initialiser of the branch's convolutions but the last.
      last_kernel_init: of the last one.
      last_scale_init: of the last normalization's gamma, and of the branch's scale where it has one.
      dtype: of the computation.
    """

    features: int
    stride: int
    norm: Norm
    shortcut: str | None
    arrangement: Arrangement = ORDERS["post"]
    kernel_init: Initializer = he_normal
    last_kernel_init: Initializer = he_normal
    last_scale_init: Initializer = nn.initializers.ones
    dtype: Any = jnp.float32

    @nn.nowrap
    def layers(self) -> tuple[Layer, ...]:
        """The branch's convolutions."""
        raise NotImplementedError

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], branch_weights: Float[Array, " n"] | None = None
    ) -> Float[Array, "n oh ow f"]:
        """Applies the block.

        Args:
          x: the images.
          branch_weights: what the branch of each image is multiplied by before the addition; None is 1.
        """
        before, after, last, of_sum = self.arrangement
        steps = partial(apply_steps, norm=self.norm, dtype=self.dtype)
        layers = self.layers()
        y = taken = steps(before, x, name="{}1")
        for number, layer in enumerate(layers[:-1], 1):
            y = Conv(*layer, self.dtype, self.kernel_init, name=f"conv{number}")(y)
            y = steps(after, y, name=f"{{}}{number}")
            y = steps(before, y, name=f"{{}}{number + 1}")
        number = len(layers)
        y = Conv(*layers[-1], self.dtype, self.last_kernel_init, name=f"conv{number}")(y)
        y = steps(last, y, name=f"{{}}{number}", scale_init=self.last_scale_init)
        if branch_weights is not None:
            y *= branch_weights.astype(self.dtype).reshape(-1, 1, 1, 1)
        if self.shortcut:
            norm = self.norm if last and last[0].startswith("norm") else None
            shortcut = Shortcut(self.shortcut, layers[-1].features, self.stride, norm, self.dtype, name="shortcut")
            y += shortcut(taken if shortcut.projects(x) else x)
        return steps(of_sum, y, name="sum_{}")


class BasicBlock(Block):
    """Two 3x3 layers (Figure 5, left)."""

    expansion = 1

    @nn.nowrap
    def layers(self) -> tuple[Layer, ...]:
        """Two 3x3; the first takes the stride."""
        return Layer(self.features, 3, self.stride), Layer(self.features, 3, 1)


class BottleneckBlock(Block):
    """1x1, 3x3, 1x1 to four times the filters (Figure 5, right).

    `stride_in` says which layer takes the stride: the first "1x1", as in the paper's own nets, or the "3x3" (v1.5),
    which costs 0.23 G multiply-adds more at 224 pixels.
    """

    stride_in: str = "1x1"

    expansion = 4

    @nn.nowrap
    def layers(self) -> tuple[Layer, ...]:
        """The 1x1, the 3x3 and the 1x1."""
        stride1, stride2 = (self.stride, 1) if self.stride_in == "1x1" else (1, self.stride)
        width = self.features
        return Layer(width, 1, stride1), Layer(width, 3, stride2), Layer(width * self.expansion, 1, 1)


BLOCKS = {"basic": BasicBlock, "bottleneck": BottleneckBlock}
