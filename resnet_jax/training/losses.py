"""The training losses, as sums over examples."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

# timm's `--bce-target-thresh 0.2`, as in the recipes of "ResNet strikes back".
_PRESENT_ABOVE = 0.2


def cross_entropy_sum(
    logits: Float[Array, "n classes"],
    labels: Int[Array, " n"],
    weights: Float[Array, " n"],
    *,
    label_smoothing: float = 0.0,
    partner_labels: Int[Array, " n"] | None = None,
    shares: Float[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """Sum over examples of weight times softmax cross-entropy, in nats, float32.

    Args:
      logits: scores of shape [n, classes].
      labels: class numbers of shape [n], each in [0, classes).
      weights: one per example; 0 for padding, which then has no influence at all.
      label_smoothing: share of the target spread evenly over all classes; 0 in the paper.
      partner_labels: of mixed images, the class of the image mixed in, shape [n].
      shares: of mixed images, the target's share of `labels`, shape [n]; the partner has the rest.
    """
    targets = _mixed_targets(labels, partner_labels, shares, logits.shape[-1])
    targets = optax.losses.smooth_labels(targets, label_smoothing)
    losses = optax.losses.softmax_cross_entropy(logits.astype(jnp.float32), targets)
    return _weighted_sum(losses, weights)


def binary_cross_entropy_sum(
    logits: Float[Array, "n classes"],
    labels: Int[Array, " n"],
    weights: Float[Array, " n"],
    *,
    label_smoothing: float = 0.0,
    partner_labels: Int[Array, " n"] | None = None,
    shares: Float[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """Sum over examples of weight times sigmoid cross-entropy, the mean over classes, in nats, float32.

    Every class is a question of its own: is it in the image? Of a mixed image both classes are, with target 1, unless
    one has a share of at most 0.2. So does "ResNet strikes back" (Wightman et al. 2021), whose timm recipes set the
    threshold 0.2 and take the mean over classes. Smoothing s makes the targets 1 - s + s / classes and s / classes;
    timm's smoothing of mixed targets comes before its threshold, which undoes it, so set 0 to compare with that.

    Args: as those of `cross_entropy_sum`.
    """
    present = _mixed_targets(labels, partner_labels, shares, logits.shape[-1]) > _PRESENT_ABOVE
    targets = optax.losses.smooth_labels(present.astype(jnp.float32), label_smoothing)
    losses = optax.losses.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets)
    return _weighted_sum(losses.mean(-1), weights)


LOSSES = {"softmax": cross_entropy_sum, "sigmoid": binary_cross_entropy_sum}


def loss_named(name: str):
    """The function of that name in `LOSSES`.

    Raises:
      ValueError: for another name.
    """
    if name not in LOSSES:
        raise ValueError(f"loss={name!r} is not one of {', '.join(LOSSES)}")
    return LOSSES[name]


def _mixed_targets(labels: Array, partner_labels: Array | None, shares: Array | None, classes: int) -> Array:
    """Target distributions [n, classes]."""
    if (partner_labels is None) != (shares is None):
        raise ValueError("partner_labels and shares describe mixed images together: give both or neither")
    targets = jax.nn.one_hot(labels, classes)
    if partner_labels is None or shares is None:
        return targets
    return shares[:, None] * targets + (1 - shares[:, None]) * jax.nn.one_hot(partner_labels, classes)


def _weighted_sum(losses: Array, weights: Array) -> Array:
    # `where` and not a product alone: 0 times an infinite loss of padding would be NaN.
    return jnp.sum(jnp.where(weights > 0, losses * weights, 0.0))
