"""The region proposal network (Ren et al. 2015): where objects might be, whatever they are."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from resnet_jax.detection.backbones import BiasedConv
from resnet_jax.detection.boxes import at_least, clip, decode
from resnet_jax.detection.nms import non_maximum_suppression
from resnet_jax.detection.settings import ANCHOR_WEIGHTS, Proposing


class Proposals(NamedTuple):
    """Boxes that may hold an object, best first.

    Attributes:
      boxes: [k, 4], in pixels; zeros where there is none.
      scores: [k], logits.
      valid: [k], whether there is one.
    """

    boxes: Array
    scores: Array
    valid: Array


class RegionProposalNetwork(nn.Module):
    """A 3x3 layer, and of each position and anchor whether there is an object, and where it is.

    Attributes:
      anchors: at a position.
      features: of the 3x3 layer.
      dtype: of the computation.
    """

    anchors: int
    features: int = 512
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w f"]) -> tuple[Float[Array, "n a"], Float[Array, "n a 4"]]:
        """Returns logits and offsets of all anchors, by position and then as `anchors` orders them, float32."""
        gaussian = nn.initializers.normal(0.01)
        x = nn.relu(BiasedConv(self.features, 3, gaussian, self.dtype, name="conv")(x))
        logits = BiasedConv(self.anchors, 1, gaussian, self.dtype, name="objectness")(x)
        offsets = BiasedConv(4 * self.anchors, 1, gaussian, self.dtype, name="boxes")(x)
        count = len(x)
        return (
            logits.astype(jnp.float32).reshape(count, -1),
            offsets.astype(jnp.float32).reshape(count, -1, 4),
        )


def propose(
    logits: Float[Array, " a"],
    offsets: Float[Array, "a 4"],
    anchors: Float[Array, "a 4"],
    size: Array,
    settings: Proposing,
) -> Proposals:
    """The best boxes of one image.

    Args:
      logits: of the anchors.
      offsets: likewise.
      anchors: in pixels.
      size: height and width of the image without its padding, in pixels; anchors centred beyond propose nothing.
      settings: counts and thresholds.

    Returns:
      `settings.after` proposals within the image.
    """
    inside = _centred_inside(anchors, size)
    scores, index = jax.lax.top_k(jnp.where(inside, logits, -jnp.inf), min(settings.before, len(logits)))
    boxes = clip(decode(offsets[index], anchors[index], ANCHOR_WEIGHTS), size)
    valid = inside[index] & at_least(boxes, settings.min_side)
    chosen, kept = non_maximum_suppression(boxes, scores, valid, threshold=settings.threshold, count=settings.after)
    return Proposals(
        boxes=jnp.where(kept[:, None], boxes[chosen], 0.0),
        scores=jnp.where(kept, scores[chosen], -jnp.inf),
        valid=kept,
    )


def _centred_inside(anchors: Float[Array, "a 4"], size: Array) -> Bool[Array, " a"]:
    centre_x, centre_y = (anchors[:, 0] + anchors[:, 2]) / 2, (anchors[:, 1] + anchors[:, 3]) / 2
    return (centre_y < size[0]) & (centre_x < size[1])
