"""The per-class region proposal network (appendix C): at every anchor a box for each class, and whether it is one."""

from flax import linen as nn
from jaxtyping import Array, Float, Int

from resnet_jax.detection.anchors import anchors
from resnet_jax.detection.settings import Anchors
from resnet_jax.localization.per_class_layer import (
    PerClassWeights,
    at_anchors,
    at_anchors_of_class,
    everywhere,
    of_classes,
)
from resnet_jax.localization.settings import CROP_ANCHORS
from resnet_jax.localization.starting import starting_bias
from resnet_jax.models.dense import Sizes
from resnet_jax.models.resnet import ResNet


class PerClassRpn(nn.Module):
    """The last stage of a net, then two sibling 1x1 convolutions: logits and offsets of each anchor and class.

    The logits are independent: the logistic function of each is the probability of an object of that class. They start
    where each class has an equal share of the anchors that train, of which half have an object; from 0, a thousand
    classes would begin with a loss of 700 (Lin et al. 2017, section 4.1).

    Attributes:
      net: whose layers come first, with its batch normalization; its classifier is not used.
      num_classes: without a background.
      anchors: at every position.
    """

    net: ResNet
    num_classes: int
    anchors: Anchors = CROP_ANCHORS

    @property
    def stride(self) -> int:
        """Pixels of the image from one position to the next."""
        return self.net.total_stride

    def setup(self) -> None:
        """Names the parts."""
        self.trunk = self.net.clone(num_classes=None)
        own = self.anchors.per_position, self.num_classes
        self.classifier = PerClassWeights(*own, values=1, bias=starting_bias(self.num_classes))
        self.regressor = PerClassWeights(*own, values=4)

    def __call__(
        self, images: Float[Array, "n h w c"], *, train: bool, sizes: Sizes | None = None
    ) -> tuple[Float[Array, "n a k"], Float[Array, "n a k 4"]]:
        """All logits and offsets, by `all_anchors` and class; see `features`."""
        x = self.features(images, train=train, sizes=sizes)
        logits = everywhere(x, *self.classifier(x.shape[-1]))
        return logits[..., 0], everywhere(x, *self.regressor(x.shape[-1]))

    def features(
        self, images: Float[Array, "n h w c"], *, train: bool, sizes: Sizes | None = None
    ) -> Float[Array, "n fh fw f"]:
        """The net's last stage, float32.

        Args:
          images: normalised.
          train: whether batch normalization takes the batch's statistics and moves the running ones; see `ResNet`.
          sizes: height and width of each image in a batch padded at the bottom and right to multiples of the stride,
            which has no influence; only in tests. None: the whole images.

        Raises:
          ValueError: as `ResNet` does.
        """
        # Averages over windows of one position are the map itself.
        x = self.trunk(images, train=train, sizes=sizes, pool_window=1)
        assert isinstance(x, Array)
        return x

    @nn.nowrap
    def all_anchors(self, features: Float[Array, "n fh fw f"]) -> Float[Array, "a 4"]:
        """The anchors at each position of features of this shape, in pixels of the image."""
        height, width = features.shape[1:3]
        return anchors(height, width, stride=self.stride, sizes=self.anchors.sizes, ratios=self.anchors.ratios)

    def of_classes(
        self, features: Float[Array, "n fh fw f"], labels: Int[Array, "n k"]
    ) -> tuple[Float[Array, "n k a"], Float[Array, "n k a 4"]]:
        """Logits and offsets of all anchors, of each image for its own k classes alone."""
        logits = of_classes(features, *self.classifier(features.shape[-1]), labels)
        return logits[..., 0], of_classes(features, *self.regressor(features.shape[-1]), labels)

    def at_anchors(
        self, features: Float[Array, "n fh fw f"], chosen: Int[Array, "n s"], labels: Int[Array, " n"]
    ) -> tuple[Float[Array, "n s k"], Float[Array, "n s 4"]]:
        """Logits of all classes and offsets of each image's own class alone, at its chosen anchors."""
        logits = at_anchors(features, *self.classifier(features.shape[-1]), chosen)
        return logits[..., 0], at_anchors_of_class(features, *self.regressor(features.shape[-1]), chosen, labels)
