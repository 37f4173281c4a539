"""Everything that training carries from one step to the next."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from resnet_jax.evaluation.metrics import Sums
from resnet_jax.training.schedules import Schedule


class TrainState(flax.struct.PyTreeNode):
    """The state of training; with the config it determines all that follows.

    Attributes:
      step: updates done (or skipped), int32.
      params: trainable values, float32.
      batch_stats: running statistics of batch normalization, float32.
      opt_state: the optimizer's, e.g. momentum.
      schedule_state: the schedule's, e.g. whether the 110-layer warm-up is over.
      ema: moving averages of parameters and statistics, {"params", "batch_stats"}; {} where none are kept.
      unreadable: training images that came with weight 0, because they could not be decoded, int32.
      skipped: updates left out without one between that was made, int32; 0 after one that was.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    schedule_state: Any
    ema: Any
    unreadable: Any
    skipped: Any

    @classmethod
    def create(
        cls, variables: dict, optimizer: optax.GradientTransformation, schedule: Schedule, *, ema: bool = False
    ) -> "TrainState":
        """The state before the first step; with `ema` it carries moving averages, which start at the variables."""
        averaged = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.init(variables["params"]),
            schedule_state=schedule.init(),
            # Copies: a buffer in two places of the state could not be donated.
            ema=jax.tree.map(jnp.array, averaged) if ema else {},
            unreadable=jnp.zeros((), jnp.int32),
            skipped=jnp.zeros((), jnp.int32),
        )

    @property
    def variables(self) -> dict:
        """What `model.apply` takes in training."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluated_variables(self) -> dict:
        """What `model.apply` takes in a test: the moving averages where there are any, or else the raw variables."""
        return self.ema or self.variables

    def averaged(self, decay: float) -> "TrainState":
        """Moves the averages to min(decay, (1 + step) / (10 + step)) of themselves and the rest of the variables.

        Parameters and batch statistics alike, as torchvision and timm do. The smaller decay at the start lets the
        initial values fade in a short run too (TensorFlow's `num_updates`; torchvision copies the variables during
        the warm-up instead, timm has a constant decay by default).
        """
        kept = jnp.minimum(decay, (1 + self.step) / (10 + self.step))
        ema = jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, self.ema, self.variables)
        return self.replace(ema=ema)


class Progress(flax.struct.PyTreeNode):
    """What has been seen since metrics were last written; kept on the device so that no step waits for the host.

    Attributes:
      sums: loss and errors of the training batches, skipped ones left out, see `Objective`.
      skipped: updates left out because the loss or a gradient was not finite, int32.
      bad_step: the first of them, int32; -1 if none.
      bad_loss: its loss, float32.
      bad_rate: its learning rate, float32.
      skipped_in_a_row: the most updates left out without one between that was made, int32.
      row_end: the last step of those, int32.
      learning_rate: of the last step, float32.
      unreadable: images that could not be decoded, int32.
    """

    sums: Any
    skipped: Any
    bad_step: Any
    bad_loss: Any
    bad_rate: Any
    skipped_in_a_row: Any
    row_end: Any
    learning_rate: Any
    unreadable: Any

    @classmethod
    def zero(cls, sums: Any = None) -> "Progress":
        """Nothing seen yet; the sums are `Objective.zero`, None those of classification."""
        return cls(
            sums=Sums.zero() if sums is None else sums,
            skipped=jnp.zeros((), jnp.int32),
            bad_step=jnp.full((), -1, jnp.int32),
            bad_loss=jnp.zeros((), jnp.float32),
            bad_rate=jnp.zeros((), jnp.float32),
            skipped_in_a_row=jnp.zeros((), jnp.int32),
            row_end=jnp.full((), -1, jnp.int32),
            learning_rate=jnp.zeros((), jnp.float32),
            unreadable=jnp.zeros((), jnp.int32),
        )

    def add(self, sums: Any, *, state: TrainState, loss: Array, learning_rate: Array, unreadable: Array) -> "Progress":
        """Counts one batch, with the state after it."""
        finite, step = state.skipped == 0, state.step - 1
        first_bad = ~finite & (self.skipped == 0)
        return Progress(
            sums=jax.tree.map(lambda old, new: jnp.where(finite, old + new, old), self.sums, sums),
            skipped=self.skipped + ~finite,
            bad_step=jnp.where(first_bad, step, self.bad_step),
            bad_loss=jnp.where(first_bad, loss, self.bad_loss),
            bad_rate=jnp.where(first_bad, learning_rate, self.bad_rate),
            skipped_in_a_row=jnp.maximum(self.skipped_in_a_row, state.skipped),
            row_end=jnp.where(state.skipped > self.skipped_in_a_row, step, self.row_end),
            learning_rate=learning_rate,
            unreadable=self.unreadable + unreadable,
        )
