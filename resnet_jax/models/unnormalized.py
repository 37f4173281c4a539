"""Nets without normalization: what stands in its place, and how their branches start.

norm="none" has a bias for each channel where a normalization stood, and He's initialisation as it is: the control,
whose signal grows with every addition and which may diverge. Two cures make each branch start as zero:

norm="skipinit" (De and Smith 2020, "Batch normalization biases residual blocks towards the identity function"): as
"none", and at the end of each branch one trained number, 0 at first, that multiplies it.

norm="fixup" (Zhang, Dauphin and Ma 2019, "Fixup initialization"): a branch's last layer and the classifier are zero at
first, its other layers He's times L^(-1/(2m - 2)); one trained number, 0 at first, is added before each convolution,
ReLU and the classifier, and one, 1 at first, multiplies each branch. Of the stem's convolution alone there is none
before it, where images are normalised, and a projection shares that of the branch's first layer.

Their signals have the scale of the images: `data.normalization=channel_mean_std` gives pixels the deviation of 1 that
the initialisation is made for, where "pixel_mean" leaves that of 8-bit numbers, and every gradient too large.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.models.blocks import he_normal


class Bias(nn.Module):
    """Plus a trained number for each channel, or one for all, zero at first; then, or not, a ReLU.

    Attributes:
      shared: whether one number serves all channels.
      relu: whether a ReLU follows.
      dtype: of the output; the bias is float32.
    """

    shared: bool
    relu: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Adds."""
        bias = self.param("bias", nn.initializers.zeros, (1 if self.shared else x.shape[-1],), jnp.float32)
        x = x.astype(self.dtype) + jnp.asarray(bias, self.dtype).reshape(1, 1, 1, -1)
        return nn.relu(x) if self.relu else x


def fixup_kernel_init(*, blocks: int, layers: int) -> Callable[..., Array]:
    """Of a branch's convolutions but the last: He's initialiser times blocks^(-1 / (2 layers - 2)).

    Args:
      blocks: of the whole net, L of the paper.
      layers: of a branch, m of the paper, at least 2.
    """
    factor = math.pow(blocks, -1 / (2 * layers - 2))
    return lambda key, shape, dtype=jnp.float32: he_normal(key, shape, dtype) * jnp.asarray(factor, dtype)
