"""What a training step makes smaller, whatever is trained: of a batch the sum of its examples' losses."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array

from resnet_jax.evaluation.metrics import Sums, classification_sums
from resnet_jax.models.resnet import ResNet
from resnet_jax.training.losses import loss_named


class Objective(NamedTuple):
    """A loss that adds up over examples.

    Attributes:
      losses: (variables, batch, key) -> the sum of the losses of the batch's examples, each times its `batch.weight`;
        sums to count, with `means()`, `wrong` and `counted` as `evaluation.metrics.Sums` has them; and the running
        statistics after the batch. The key is of what is drawn, such as dropout.
      zero: the sums of no batch.
      group_size: examples whose losses depend on each other, and so stay together wherever a batch is cut; None: all.
      learns_statistics: whether running statistics move.
    """

    losses: Callable[[dict, Any, Array], tuple[Array, Any, dict]]
    zero: Any
    group_size: int | None
    learns_statistics: bool


def classification(model: ResNet, *, loss: str = "softmax", label_smoothing: float = 0.0) -> Objective:
    """Classification of images; batches are `data.batch.Batch`.

    The sums count softmax cross-entropy and errors against `batch.label`, whatever the loss, the smoothing and the
    mixing.

    Args:
      model: the net.
      loss: a name in `LOSSES`.
      label_smoothing: share of the target spread evenly over all classes.

    Raises:
      ValueError: for an unknown loss.
    """
    sum_losses, learns_statistics = loss_named(loss), model.norm == "batch"

    def losses(variables, batch, key):
        logits, updated = model.apply(
            variables, batch.image, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )
        options = {"label_smoothing": label_smoothing, "partner_labels": batch.partner_label, "shares": batch.share}
        total = sum_losses(logits, batch.label, batch.weight, **options)
        return total, classification_sums(logits, batch.label, batch.weight), updated.get("batch_stats", {})

    return Objective(losses, Sums.zero(), model.bn_group_size if learns_statistics else 1, learns_statistics)
