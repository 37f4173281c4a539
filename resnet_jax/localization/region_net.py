"""The net that looks at warped regions one by one (appendix C, R-CNN)."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.localization.starting import starting_bias
from resnet_jax.models.resnet import ResNet


class RegionNet(nn.Module):
    """A net up to its global average, then two sibling dense layers: logits and offsets of each class.

    The logits are independent, and start, as those of `PerClassRpn`.

    Attributes:
      net: whose layers come first, with its batch normalization; its classifier is not used.
      num_classes: without a background.
      region_size: height and width of the regions, in pixels.
    """

    net: ResNet
    num_classes: int
    region_size: int = 224

    def setup(self) -> None:
        """Names the parts."""
        self.trunk = self.net.clone(num_classes=None)
        bias = nn.initializers.constant(starting_bias(self.num_classes))
        self.classifier = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), bias_init=bias)
        self.regressor = nn.Dense(4 * self.num_classes, kernel_init=nn.initializers.normal(0.001))

    def __call__(
        self, regions: Float[Array, "r h w c"], *, train: bool
    ) -> tuple[Float[Array, "r k"], Float[Array, "r k 4"]]:
        """Logits and offsets, float32.

        Args:
          regions: normalised, of `region_size`.
          train: see `ResNet`.

        Raises:
          ValueError: regions of another size.
        """
        if regions.shape[1:3] != (self.region_size, self.region_size):
            raise ValueError(f"regions of {regions.shape[1:3]} pixels (height, width); region_size={self.region_size}")
        vectors = self.trunk(regions, train=train)
        assert isinstance(vectors, jnp.ndarray)
        return self.classifier(vectors), self.regressor(vectors).reshape(len(vectors), self.num_classes, 4)
