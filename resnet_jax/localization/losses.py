"""What sampled anchors or regions cost, as sums over an image and counts of what was sampled."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from resnet_jax.detection.losses import smooth_l1

NO_OBJECT = -1


class LocalizationSums(NamedTuple):
    """Sums over an image's sampled anchors or regions, or those of several images; float32.

    Attributes:
      loss: what is minimised: of each image the other two, by what was sampled.
      classes: logistic loss, over all classes.
      boxes: smooth L1 of the offsets of those with an object, of its class alone.
      sampled: anchors or regions.
      positives: of them with an object.
      errors: of these without the highest logit at their own class.
      images: how many.
    """

    loss: Array
    classes: Array
    boxes: Array
    sampled: Array
    positives: Array
    errors: Array
    images: Array

    @classmethod
    def zero(cls) -> "LocalizationSums":
        """No image yet."""
        return cls(*(jnp.zeros((), jnp.float32) for _ in cls._fields))

    @property
    def wrong(self) -> tuple[Array, Array]:
        """Misclassified anchors or regions with an object, and of how many."""
        return self.errors, self.positives

    @property
    def counted(self) -> Array:
        """How many images; without any there are no means."""
        return self.images

    def means(self) -> dict[str, float]:
        """The "loss" of an image, "classes" and "boxes" by what was sampled, the "object_error", and the "count"."""
        found = {name: float(value) for name, value in zip(self._fields, jax.device_get(self), strict=True)}
        if found["images"] == 0:
            raise ValueError("no image was counted, so there is no mean")
        return {
            "loss": found["loss"] / found["images"],
            **{name: found[name] / max(found["sampled"], 1.0) for name in ("classes", "boxes")},
            "object_error": found["errors"] / max(found["positives"], 1.0),
            "count": int(found["images"]),
        }


def sampled_losses(
    logits: Float[Array, "s k"],
    offsets: Float[Array, "s 4"],
    labels: Int[Array, " s"],
    wanted: Float[Array, "s 4"],
    valid: Bool[Array, " s"],
    *,
    beta: float | int,
) -> LocalizationSums:
    """Of one image's sampled anchors or regions.

    Args:
      logits: of the classes.
      offsets: of the image's class.
      labels: class numbers, `NO_OBJECT` where there is no object and every class's target is 0.
      wanted: offsets, where there is one.
      valid: which count.
      beta: of the smooth L1 loss.
    """
    positive = valid & (labels != NO_OBJECT)
    targets = jax.nn.one_hot(labels, logits.shape[1])
    entropy = optax.sigmoid_binary_cross_entropy(logits, targets).sum(1)
    classes = jnp.where(valid, entropy, 0.0).sum()
    boxes = jnp.where(positive, smooth_l1(offsets - wanted, beta).sum(1), 0.0).sum()
    sampled = valid.sum(dtype=jnp.float32)
    return LocalizationSums(
        loss=(classes + boxes) / jnp.maximum(sampled, 1.0),
        classes=classes,
        boxes=boxes,
        sampled=sampled,
        positives=positive.sum(dtype=jnp.float32),
        errors=(positive & (logits.argmax(1) != labels)).sum(dtype=jnp.float32),
        images=jnp.ones((), jnp.float32),
    )


def weighted(of_images: LocalizationSums, weight: Float[Array, " n"]) -> LocalizationSums:
    """The sum of the images' sums, arrays [n], each times its weight; what has weight 0 may be NaN."""
    return LocalizationSums(*(jnp.where(weight > 0, each * weight, 0.0).sum() for each in of_images))
