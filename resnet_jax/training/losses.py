"""The training loss, as a sum over examples."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def cross_entropy_sum(
    logits: Float[Array, "n classes"],
    labels: Int[Array, " n"],
    weights: Float[Array, " n"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Sum over examples of weight times softmax cross-entropy, in nats, float32.

    Args:
      logits: scores of shape [n, classes].
      labels: class numbers of shape [n], each in [0, classes).
      weights: one per example; 0 for padding, which then has no influence at all.
      label_smoothing: share of the target spread evenly over all classes; 0 in the paper.
    """
    targets = optax.losses.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    losses = optax.losses.softmax_cross_entropy(logits.astype(jnp.float32), targets)
    # `where` and not a product alone: 0 times an infinite loss of padding would be NaN.
    return jnp.sum(jnp.where(weights > 0, losses * weights, 0.0))
