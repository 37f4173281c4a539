"""A net for classification cut in two: what all regions of an image share, and what is done for each region."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.models.convolution import convolution
from resnet_jax.models.dense import Sizes, check_padding, filled_norm, padding_filler
from resnet_jax.models.resnet import ResNet

# Filters of VGG-16's convolutions, by stage (Simonyan and Zisserman 2015, Table 1, column D).
_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_HIDDEN = 4096


class ResidualTrunk(nn.Module):
    """All of a residual net but its last stage: conv1 to conv4_x of an ImageNet net (appendix A), of stride 16.

    Attributes:
      net: whose layers they are; its classifier is not used.
      freeze_at: how many of stem, stage1, stage2, ... get no gradient; 2 as in the authors' code.
    """

    net: ResNet
    freeze_at: int = 0

    @property
    def stride(self) -> int:
        """Pixels of the image from one position to the next."""
        return self.net.total_stride // 2

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], sizes: Sizes) -> Float[Array, "n fh fw f"]:
        """Returns the features of normalised images, zero beyond their sizes.

        Args:
          images: padded at the bottom and right to multiples of the stride; the padding has no influence.
          sizes: height and width of each, in pixels.

        Raises:
          ValueError: if shapes do not fit.
        """
        check_padding(sizes, images.shape[:3], self.stride)
        fill = padding_filler(sizes, images.shape[1:3])
        norm = filled_norm(_norm(self.net), fill)
        x = self.net.make_stem(norm, fill)(fill(images))
        for stage, size in enumerate(self.net.stage_sizes[:-1], 1):
            # At the edge of what is frozen, so that nothing before it keeps activations for a gradient.
            x = _frozen(x) if self.freeze_at == stage else x
            x = self.net.apply_stage(x, stage, size, norm)
        x = _frozen(x) if self.freeze_at >= len(self.net.stage_sizes) else x
        return fill(x)


class ResidualTail(nn.Module):
    """The last stage of a residual net and the average over all positions: conv5_x "and up" (appendix A)."""

    net: ResNet

    @nn.compact
    def __call__(self, regions: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n f"]:
        """Returns a vector for each region's features, float32; ValueError for a net that cannot be cut."""
        del train
        if self.net.arrangement.before:
            raise ValueError(
                f"activation_order={self.net.activation_order!r} leaves sums for the next block to normalise, between "
                "which a net cannot be cut in two; take one whose blocks end with what they need, such as 'post'"
            )
        stage = len(self.net.stage_sizes)
        x = self.net.apply_stage(regions, stage, self.net.stage_sizes[-1], _norm(self.net))
        return x.astype(jnp.float32).mean((1, 2))


def _norm(net: ResNet):
    return net.make_norm(use_running_average=True, update_statistics=False)


def split_net(variables: dict, *, stages: int) -> tuple[dict, dict]:
    """The variables of a residual net as those of its trunk and of its tail; the classifier's are left out.

    Args:
      variables: {"params", "batch_stats"} of the net; of `norm="frozen"` what `freeze_batch_norm` gives.
      stages: of the net.
    """

    def pick(last: bool) -> dict:
        return {
            collection: {
                name: value
                for name, value in tree.items()
                if name != "classifier" and name.startswith(f"stage{stages}_") == last
            }
            for collection, tree in variables.items()
        }

    return pick(False), pick(True)


class BiasedConv(nn.Module):
    """Convolution with a bias, padded by (size - 1) // 2 on every side."""

    features: int
    size: int
    init: Any = nn.initializers.he_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w f"]:
        """Returns the convolved images in `dtype`."""
        kernel = self.param("kernel", self.init, (self.size, self.size, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        pad = (self.size - 1) // 2
        x, kernel = x.astype(self.dtype), jnp.asarray(kernel, self.dtype)
        x = convolution(x, kernel, (1, 1), ((pad, pad), (pad, pad)))
        return x + jnp.asarray(bias, self.dtype).reshape(1, 1, 1, -1)


class VggTrunk(nn.Module):
    """The 13 convolutions of VGG-16, without the last maximum: the paper's baseline (Tables 7 and 8), of stride 16.

    Attributes:
      freeze_at: how many stages get no gradient; 2 in Fast R-CNN.
      dtype: of the computation.
    """

    freeze_at: int = 0
    dtype: Any = jnp.float32

    stride = 16

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], sizes: Sizes) -> Float[Array, "n fh fw f"]:
        """As `ResidualTrunk`'s."""
        check_padding(sizes, images.shape[:3], self.stride)
        fill = padding_filler(sizes, images.shape[1:3])
        x = fill(images)
        for stage, widths in enumerate(_VGG16, 1):
            if stage > 1:
                # Zeros beyond an image are below none of its own values, which come from a ReLU.
                x = nn.max_pool(x, (2, 2), (2, 2))
            for number, width in enumerate(widths, 1):
                x = fill(nn.relu(BiasedConv(width, 3, dtype=self.dtype, name=f"conv{stage}_{number}")(x)))
            x = _frozen(x) if self.freeze_at == stage else x
        return x


class VggTail(nn.Module):
    """fc6 and fc7 of VGG-16, each with dropout of a half."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, regions: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n f"]:
        """Returns a vector for each region's features, float32; in training it needs a "dropout" key."""
        x = regions.reshape(len(regions), -1)
        for name in ("fc6", "fc7"):
            x = nn.relu(nn.Dense(_HIDDEN, kernel_init=nn.initializers.he_normal(), dtype=self.dtype, name=name)(x))
            x = nn.Dropout(0.5, deterministic=not train)(x)
        return x.astype(jnp.float32)


def _frozen(x: Array) -> Array:
    return jax.lax.stop_gradient(x)


def frozen_names(trunk: ResidualTrunk | VggTrunk) -> tuple[str, ...]:
    """Beginnings of the names of the trunk's layers that get no gradient."""
    if isinstance(trunk, VggTrunk):
        return tuple(f"conv{stage}_" for stage in range(1, trunk.freeze_at + 1))
    return ("stem", *(f"stage{stage}_" for stage in range(1, trunk.freeze_at)))[: trunk.freeze_at]
