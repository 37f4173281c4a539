"""What proposals and classified regions cost, as sums over an image and counts of what was sampled."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from resnet_jax.detection.targets import AnchorTargets, RegionTargets


class DetectionSums(NamedTuple):
    """Sums over an image's sampled anchors and regions, or those of several images; float32.

    Attributes:
      loss: what is minimised, see `image_loss`.
      objectness: cross-entropy of anchors.
      anchor_boxes: smooth L1 of the positive anchors' offsets.
      anchors: sampled.
      classes: cross-entropy of regions.
      region_boxes: smooth L1 of the offsets of regions with an object.
      regions: sampled.
      errors: regions whose most probable class is not theirs.
      images: how many.
    """

    loss: Array
    objectness: Array
    anchor_boxes: Array
    anchors: Array
    classes: Array
    region_boxes: Array
    regions: Array
    errors: Array
    images: Array

    @classmethod
    def zero(cls) -> "DetectionSums":
        """No image yet."""
        return cls(*(jnp.zeros((), jnp.float32) for _ in cls._fields))

    @property
    def wrong(self) -> tuple[Array, Array]:
        """Misclassified regions and of how many."""
        return self.errors, self.regions

    @property
    def counted(self) -> Array:
        """How many images; without any there are no means."""
        return self.images

    def means(self) -> dict[str, float]:
        """The "loss" of an image, its parts and the "region_error", each by what was sampled, and the "count"."""
        found = {name: float(value) for name, value in zip(self._fields, jax.device_get(self), strict=True)}
        if found["images"] == 0:
            raise ValueError("no image was counted, so there is no mean")
        anchors, regions = max(found["anchors"], 1.0), max(found["regions"], 1.0)
        return {
            "loss": found["loss"] / found["images"],
            **{name: found[name] / anchors for name in ("objectness", "anchor_boxes")},
            **{name: found[name] / regions for name in ("classes", "region_boxes")},
            "region_error": found["errors"] / regions,
            "count": int(found["images"]),
        }


def smooth_l1(difference: Array, beta: float | int) -> Array:
    """Quadratic below beta, linear above (Girshick 2015, equation 3, with beta 1); with beta 0 the absolute value."""
    size = jnp.abs(difference)
    if beta == 0:
        return size
    return jnp.where(size < beta, 0.5 * size**2 / beta, size - 0.5 * beta)


def anchor_losses(
    logits: Float[Array, " a"], offsets: Float[Array, "a 4"], targets: AnchorTargets, *, beta: float | int
) -> dict[str, Array]:
    """Of one image: what `DetectionSums` has of the anchors; beta is the smooth L1 loss's."""
    logits, offsets = logits[targets.anchor], offsets[targets.anchor]
    entropy = optax.sigmoid_binary_cross_entropy(logits, targets.positive.astype(jnp.float32))
    boxes = smooth_l1(offsets - targets.offsets, beta).sum(1)
    return {
        "objectness": jnp.where(targets.valid, entropy, 0.0).sum(),
        "anchor_boxes": jnp.where(targets.valid & targets.positive, boxes, 0.0).sum(),
        "anchors": targets.valid.sum(dtype=jnp.float32),
    }


def region_losses(
    logits: Float[Array, "k c"], offsets: Float[Array, "k o 4"], targets: RegionTargets, *, beta: float | int
) -> dict[str, Array]:
    """Of one image: what `DetectionSums` has of the regions.

    Args:
      logits: of background and the classes.
      offsets: of the classes.
      targets: of the regions.
      beta: of the smooth L1 loss.
    """
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, targets.classes)
    has_object = targets.valid & (targets.classes > 0)
    own = jnp.maximum(targets.classes - 1, 0)
    of_class = jnp.take_along_axis(offsets, own[:, None, None], axis=1)[:, 0]
    boxes = smooth_l1(of_class - targets.offsets, beta).sum(1)
    return {
        "classes": jnp.where(targets.valid, entropy, 0.0).sum(),
        "region_boxes": jnp.where(has_object, boxes, 0.0).sum(),
        "regions": targets.valid.sum(dtype=jnp.float32),
        "errors": (targets.valid & (logits.argmax(1) != targets.classes)).sum(dtype=jnp.float32),
    }


def image_loss(sums: dict[str, Array]) -> Array:
    """Means over what was sampled of an image; offsets count by all anchors or regions, not by those with an object."""
    proposing = (sums["objectness"] + sums["anchor_boxes"]) / jnp.maximum(sums["anchors"], 1.0)
    return proposing + (sums["classes"] + sums["region_boxes"]) / jnp.maximum(sums["regions"], 1.0)
