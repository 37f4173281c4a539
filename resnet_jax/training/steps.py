"""The training step: pure, jitted once, its state donated."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from resnet_jax.data.batch import Batch
from resnet_jax.data.resident import BatchAt, ResidentData
from resnet_jax.distributed import replicated
from resnet_jax.evaluation.metrics import classification_sums
from resnet_jax.random_keys import named_key
from resnet_jax.training.losses import cross_entropy_sum
from resnet_jax.training.schedules import Schedule
from resnet_jax.training.state import Progress, TrainState

TrainStep = Callable[[TrainState, Progress, Batch], tuple[TrainState, Progress]]


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    *,
    seed: int,
    label_smoothing: float = 0.0,
) -> TrainStep:
    """Returns the pure function (state, progress, batch) -> (state, progress) of one update.

    The loss is the mean cross-entropy over the batch's weights. Where it or any gradient is not finite, nothing but
    the step count changes: not the parameters, the statistics, the optimizer nor the schedule.
    """
    dropout_key = named_key(seed, "dropout")

    def train_step(state: TrainState, progress: Progress, batch: Batch) -> tuple[TrainState, Progress]:
        def objective(params):
            logits, updated = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                batch.image,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.fold_in(dropout_key, state.step)},
            )
            total = cross_entropy_sum(logits, batch.label, batch.weight, label_smoothing=label_smoothing)
            return total / jnp.sum(batch.weight), (logits, updated.get("batch_stats", {}))

        (loss, (logits, batch_stats)), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradients))
        sums = classification_sums(logits, batch.label, batch.weight)

        directions, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        rate = schedule.learning_rate(state.schedule_state, state.step)
        new = TrainState(
            step=state.step,
            params=jax.tree.map(lambda w, v: w - rate * v, state.params, directions),
            batch_stats=batch_stats,
            opt_state=opt_state,
            schedule_state=schedule.after_step(state.schedule_state, state.step, sums.errors_top1, sums.count),
        )
        kept = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state)
        progress = progress.add(sums, finite=finite, step=state.step, loss=loss, learning_rate=rate)
        return kept.replace(step=state.step + 1), progress

    return train_step


def make_resident_step(train_step: TrainStep, batch_at: BatchAt, mesh: Mesh, *, steps_per_call: int = 1):
    """Jits one or more updates that fetch and augment their batches from a data set in device memory.

    Args:
      train_step: from `make_train_step`.
      batch_at: from `make_batch_at`.
      mesh: devices; each batch is split over them, all else is replicated.
      steps_per_call: updates per call; more than one run as a loop on the device.

    Returns:
      A jitted function (state, progress, data, orders, epoch_start) -> (state, progress); the first two arguments
      are donated; `orders, epoch_start` come from `EpochOrders.at(state.step * batch_size)`.
    """

    def one(data: ResidentData, orders, epoch_start, state, progress):
        return train_step(state, progress, batch_at(data, orders, epoch_start, state.step))

    @partial(jax.jit, donate_argnums=(0, 1), out_shardings=replicated(mesh))
    def call(state: TrainState, progress: Progress, data: ResidentData, orders, epoch_start):
        if steps_per_call == 1:
            return one(data, orders, epoch_start, state, progress)
        body = partial(one, data, orders, epoch_start)
        return jax.lax.scan(lambda carry, _: (body(*carry), None), (state, progress), length=steps_per_call)[0]

    return call
