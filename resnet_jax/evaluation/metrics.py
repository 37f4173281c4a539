"""Metrics as sums and one count: they add up over batches, devices and hosts without a mean of means."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from resnet_jax.training.losses import cross_entropy_sum


class Sums(flax.struct.PyTreeNode):
    """Sums over examples, float32 scalars; add two with `+`.

    Attributes:
      loss: cross-entropy in nats.
      errors_top1: examples whose label does not have the highest score.
      errors_top5: examples whose label is not among the five highest scores.
      count: examples.
    """

    loss: Any
    errors_top1: Any
    errors_top5: Any
    count: Any

    @classmethod
    def zero(cls) -> "Sums":
        """No examples yet."""
        return cls(*(jnp.zeros((), jnp.float32) for _ in range(4)))

    @property
    def wrong(self) -> tuple[Any, Any]:
        """Errors and of how many; a schedule's warm-up may wait for their share to fall."""
        return self.errors_top1, self.count

    @property
    def counted(self) -> Any:
        """How many examples; without any there are no means."""
        return self.count

    def __add__(self, other: "Sums") -> "Sums":
        return jax.tree.map(jnp.add, self, other)

    def means(self) -> dict[str, float]:
        """{"loss", "error_top1", "error_top5"} per example and the "count"; waits for the device."""
        loss, top1, top5, count = (float(value) for value in jax.device_get(jax.tree.leaves(self)))
        if count == 0:
            raise ValueError("no example was counted, so there is no mean")
        return {
            "loss": loss / count,
            "error_top1": top1 / count,
            "error_top5": top5 / count,
            "count": int(count),
        }


def classification_sums(
    logits: Float[Array, "n classes"], labels: Int[Array, " n"], weights: Float[Array, " n"]
) -> Sums:
    """Loss and errors of a batch.

    Args:
      logits: scores of shape [n, classes].
      labels: class numbers of shape [n].
      weights: 1 for an example, 0 for padding, shape [n].

    Returns:
      The sums over the examples of weight 1. An example counts as right among the top k when fewer than k classes
      score as high as its label or higher, itself aside; a tie therefore counts against the net, as does a NaN.

    Example:
      >>> logits = jnp.asarray([[2, 1, 0], [0, 1, 2], [5, 5, 5]], jnp.float32)
      >>> sums = classification_sums(logits, jnp.asarray([0, 0, 0]), jnp.asarray([1.0, 1.0, 0.0]))
      >>> means = sums.means()
      >>> means["error_top1"], means["error_top5"], means["count"]
      (0.5, 0.0, 2)
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    # Not `logits < own`: a NaN must not count as right.
    rivals = jnp.sum(~(logits < own), axis=-1) - 1
    return Sums(
        loss=cross_entropy_sum(logits, labels, weights),
        errors_top1=jnp.sum(weights * (rivals >= 1)),
        errors_top5=jnp.sum(weights * (rivals >= 5)),
        count=jnp.sum(weights),
    )
