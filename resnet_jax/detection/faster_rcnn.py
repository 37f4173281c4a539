"""Faster R-CNN on the features of a residual net's conv4 (section 4.3 and appendix A)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from resnet_jax.detection.anchors import anchors
from resnet_jax.detection.backbones import ResidualTail, ResidualTrunk, VggTail, VggTrunk
from resnet_jax.detection.roi import roi_align, roi_pool
from resnet_jax.detection.rpn import RegionProposalNetwork
from resnet_jax.detection.settings import Anchors
from resnet_jax.models.dense import Sizes

ROI_OPERATIONS = ("align", "pool")

# Side of the square, in pixels, that regions are to be near in the two scales where they are looked at.
_NEAR = 224.0


class Level(NamedTuple):
    """A batch of images at one scale.

    Attributes:
      features: [n, fh, fw, f].
      sizes: [n, 2], height and width of each there, in pixels.
    """

    features: Array
    sizes: Array


class FasterRcnn(nn.Module):
    """What an image's regions share, proposals, and the classification of each region with a box for each class.

    The residual net's conv1 to conv4 are the trunk, conv5 and the average over all positions the tail; region pooling
    lies between (appendix A). All batch normalization is frozen.

    Attributes:
      trunk: images to features.
      tail: features of a region to a vector.
      num_classes: without background.
      anchors: of the proposals.
      rpn_features: of the proposals' 3x3 layer.
      roi: "pool" (the maximum of Fast R-CNN) or "align" (bilinear, Mask R-CNN).
      roi_size: side of a pooled region, in positions: 14 before conv5, which halves it, 7 before VGG-16's fc6.
      context: whether each region's vector is joined by the whole image's (appendix B).
      dtype: of the computation; boxes and scores are float32.
    """

    trunk: ResidualTrunk | VggTrunk
    tail: ResidualTail | VggTail
    num_classes: int
    anchors: Anchors = Anchors()
    rpn_features: int = 512
    roi: str = "pool"
    roi_size: int = 14
    context: bool = False
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """The layers besides trunk and tail."""
        self.rpn = RegionProposalNetwork(self.anchors.per_position, self.rpn_features, self.dtype)
        self.classifier = nn.Dense(self.num_classes + 1, kernel_init=nn.initializers.normal(0.01))
        self.regressor = nn.Dense(4 * self.num_classes, kernel_init=nn.initializers.normal(0.001))

    def __call__(self, images: Float[Array, "n h w c"], sizes: Sizes, boxes: Float[Array, "n r 4"]):
        """All parts once, for initialisation: returns what `proposing` and `classify` do."""
        features = self.features(images, sizes)
        return self.proposing(features), self.classify([Level(features, jnp.asarray(sizes))], boxes, sizes)

    def features(self, images: Float[Array, "n h w c"], sizes: Sizes) -> Float[Array, "n fh fw f"]:
        """What proposals and regions share; see the trunk."""
        return self.trunk(images, sizes)

    def proposing(self, features: Float[Array, "n fh fw f"]) -> tuple[Float[Array, "n a"], Float[Array, "n a 4"]]:
        """Logits and offsets of `all_anchors`."""
        return self.rpn(features)

    @nn.nowrap
    def all_anchors(self, features: Float[Array, "n fh fw f"]) -> Float[Array, "a 4"]:
        """The anchors at each position of features of this shape, in pixels of the image."""
        height, width = features.shape[1:3]
        sizes, ratios = self.anchors
        return jnp.asarray(anchors(height, width, stride=self.trunk.stride, sizes=sizes, ratios=ratios))

    def classify(
        self, levels: Sequence[Level], boxes: Float[Array, "n r 4"], sizes: Sizes, *, train: bool = False
    ) -> tuple[Float[Array, "n r k"], Float[Array, "n r o 4"]]:
        """Logits of background and the classes, and each class's offsets, of the regions.

        Args:
          levels: the images' features by rising scale, as a rule one alone; of several, those two are looked at in
            which a region's area is next to 224 x 224, and the larger of each two numbers counts (appendix B).
          boxes: the regions, in pixels.
          sizes: height and width of each image, in pixels, which is the region of the context.
          train: whether dropout is on.
        """
        return self.score(self.vectors(levels, boxes, sizes, train=train))

    def vectors(
        self, levels: Sequence[Level], boxes: Float[Array, "n r 4"], sizes: Sizes, *, train: bool = False
    ) -> Float[Array, "n r v"]:
        """What the classification of each region looks at; twice as long with context."""
        if self.context:
            whole = jnp.concatenate([jnp.zeros_like(sizes), sizes[:, ::-1]], axis=1)
            boxes = jnp.concatenate([boxes, whole[:, None].astype(jnp.float32)], axis=1)
        # Of the longer sides, whose rounding matters least.
        scales = jnp.stack([level.sizes.max(1) / sizes.max(1) for level in levels])
        pooled = [
            jax.vmap(self.pool)(level.features, boxes * scale[:, None, None], level.sizes)
            for level, scale in zip(levels, scales, strict=True)
        ]
        if len(levels) > 1:
            pooled = _of_two_levels(pooled, _lower_level(boxes, scales))
        described = [self.tail(each.reshape(-1, *each.shape[2:]), train=train) for each in pooled]
        found = jnp.stack(described).max(0).reshape(*boxes.shape[:2], -1)
        if not self.context:
            return found
        regions, whole = found[:, :-1], found[:, -1:]
        return jnp.concatenate([regions, jnp.broadcast_to(whole, regions.shape)], axis=-1)

    def score(self, vectors: Float[Array, "n r v"]) -> tuple[Float[Array, "n r k"], Float[Array, "n r o 4"]]:
        """Logits and offsets of regions from their vectors."""
        offsets = self.regressor(vectors)
        return self.classifier(vectors), offsets.reshape(*vectors.shape[:2], self.num_classes, 4)

    @nn.nowrap
    def pool(
        self, features: Float[Array, "fh fw f"], boxes: Float[Array, "r 4"], size: Int[Array, "2"]
    ) -> Float[Array, "r s s f"]:
        """Features of an image's regions, all of one size."""
        if self.roi not in ROI_OPERATIONS:
            raise ValueError(f"roi={self.roi!r}: allowed are {', '.join(ROI_OPERATIONS)}")
        operation, stride = roi_align if self.roi == "align" else roi_pool, self.trunk.stride
        return operation(features, boxes, size=self.roi_size, scale=1 / stride, extent=-(-size // stride))


def _lower_level(boxes: Float[Array, "n r 4"], scales: Float[Array, "l n"]) -> Array:
    """Of each region the last level, but one, at which it is smaller than the square, [n, r]."""
    sides = jnp.sqrt((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]))
    smaller = (sides[None] * scales[:, :, None] < _NEAR).sum(0)
    return jnp.clip(smaller - 1, 0, len(scales) - 2)


def _of_two_levels(pooled: Sequence[Array], lower: Array) -> list[Array]:
    """Regions [n, r, ...] as pooled at the lower level of each, and at the next."""
    found = []
    for wanted in (lower, lower + 1):
        chosen = jnp.zeros_like(pooled[0])
        for number, each in enumerate(pooled):
            chosen = jnp.where((wanted == number)[..., None, None, None], each, chosen)
        found.append(chosen)
    return found
