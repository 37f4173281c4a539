"""The loss that is diagnosed: the mean over some images, by their own batch statistics and without dropout."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from resnet_jax.models.resnet import ResNet
from resnet_jax.training.losses import loss_named

# (params, batch_stats, images [n, h, w, c], labels [n]) -> the loss.
Loss = Callable[..., Float[Array, ""]]


def make_loss(model: ResNet, *, loss: str = "softmax", label_smoothing: float = 0.0) -> Loss:
    """Returns the pure function (params, batch_stats, images, labels) -> mean loss, differentiable twice.

    Batch normalization takes the images' own statistics, as in training: the running ones lag behind a net that
    changes, and are of no use before the first step. They do not move. Nothing is drawn, so that two diagnoses differ
    by the parameters alone; weight decay is no part of the loss.

    Args:
      model: the net.
      loss: a name in `LOSSES`.
      label_smoothing: share of the target spread evenly over all classes.

    Raises:
      ValueError: for an unknown loss; when called, for images that the net does not take.
    """
    sum_losses = loss_named(loss)

    def mean_loss(params, batch_stats, images, labels):
        variables = {"params": params, "batch_stats": batch_stats}
        logits = model.apply(variables, images, train=False, use_running_average=False, update_statistics=False)
        weights = jnp.ones(labels.shape, jnp.float32)
        return sum_losses(logits, labels, weights, label_smoothing=label_smoothing) / labels.shape[0]

    return mean_loss
