"""The training step: pure, jitted once, its state donated."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from resnet_jax.data.resident import BatchAt, ResidentData
from resnet_jax.distributed import replicated, split_batch
from resnet_jax.random_keys import Seed, named_key
from resnet_jax.training.objective import Objective
from resnet_jax.training.ordered_sum import sum_in_order
from resnet_jax.training.schedules import Schedule
from resnet_jax.training.sharding import collect, distribute, lay_out
from resnet_jax.training.state import Progress, TrainState

# The batch is what the objective takes.
TrainStep = Callable[[TrainState, Progress, Any], tuple[TrainState, Progress]]


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    *,
    seed: Seed,
    ema_decay: float = 0.0,
    accumulation_steps: int = 1,
    sharding: str = "none",
    ordered: bool = False,
    mesh: Mesh | None = None,
) -> TrainStep:
    """Returns the pure function (state, progress, batch) -> (state, progress) of one update.

    The loss is the mean over the batch's weights. Where it or any gradient is not finite, nothing but the step count
    changes: not the parameters, the statistics, the averages, the optimizer nor the schedule.

    Args:
      objective: what to make smaller.
      optimizer: its updates are multiplied by the schedule's rate.
      schedule: of the learning rate.
      seed: of what is drawn, such as dropout.
      ema_decay: of the moving averages that a state made with `ema=True` carries, see `TrainState.averaged`.
      accumulation_steps: parts that a batch is worked through in, where the whole needs too much memory. The update
        is the whole batch's, but for rounding and what is drawn: statistics are those of the same groups of
        `objective.group_size` examples, and the running ones move once, towards the average over all groups.
      ordered: work through each group of `objective.group_size` examples by itself and add the groups in one order, so
        that no bit of the state depends on how many devices and processes share the batch, see `sum_in_order`. The
        update is the whole batch's, but for rounding and what is drawn. Needs the mesh, and no accumulation.
      sharding: what is divided among the devices, see `state_shardings`.
      mesh: devices that share the batch, which several parts and a divided state have to know; None is one device.

    Raises:
      ValueError: for `ordered` without what it needs. From the function: for a batch that does not split into the
        parts; for an `ema_decay` and a state without averages.
    """
    # By the name that it had when dropout was all that was drawn, so that old runs go on alike.
    drawing_key, group_size = named_key(seed, "dropout"), objective.group_size
    if ordered and (mesh is None or group_size is None or accumulation_steps != 1):
        raise ValueError(
            "ordered=True needs a mesh, a bn_group_size and accumulation_steps=1, not "
            f"mesh={mesh}, bn_group_size={group_size}, accumulation_steps={accumulation_steps}"
        )

    def differentiate(state: TrainState, batch: Any, weight: Array, key: Array):
        """Loss over `weight`, sums and running statistics of a batch or a part of one, and the loss's gradients."""

        def mean_loss(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            total, sums, batch_stats = objective.losses(variables, batch, key)
            return total / weight, (sums, batch_stats)

        params = collect(state.params, mesh, sharding)
        (loss, (sums, batch_stats)), gradients = jax.value_and_grad(mean_loss, has_aux=True)(params)
        return loss, sums, batch_stats, gradients

    def train_step(state: TrainState, progress: Progress, batch: Any) -> tuple[TrainState, Progress]:
        if ema_decay and not state.ema:
            raise ValueError(f"ema_decay={ema_decay}: the state carries no averages; create it with ema=True")
        key = jax.random.fold_in(drawing_key, state.step)
        # A batch without a readable image is no reason to divide by 0.
        weight = jnp.maximum(jnp.sum(batch.weight), 1.0)
        unreadable = batch.unreadable
        if ordered:
            assert mesh is not None and group_size is not None
            mean_loss, sums, batch_stats, gradients = sum_in_order(
                lambda group, index: differentiate(state, group, weight, jax.random.fold_in(key, index)),
                batch,
                group_size=group_size,
                mesh=mesh,
            )
            groups = batch.weight.shape[0] // group_size
            batch_stats = jax.tree.map(lambda total: total / groups, batch_stats)
        elif accumulation_steps == 1:
            mean_loss, sums, batch_stats, gradients = differentiate(state, batch, weight, key)
        else:
            parts = _cut(batch, accumulation_steps, mesh, group_size)
            mean_loss, sums, batch_stats, gradients = _add_up(
                lambda part, index: differentiate(state, part, weight, jax.random.fold_in(key, index)), parts
            )
            # Each part moved the same running statistics by a linear rule: the mean is the move of all groups at once.
            batch_stats = jax.tree.map(lambda total: total / accumulation_steps, batch_stats)

        gradients = distribute(gradients, mesh, sharding)
        # Divided gradients would have to be collected to be joined.
        finite = all_finite(gradients) if sharding == "none" else jnp.isfinite(optax.tree.norm(gradients))
        finite &= jnp.isfinite(mean_loss)
        directions, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        rate = schedule.learning_rate(state.schedule_state, state.step)
        new = state.replace(
            params=jax.tree.map(lambda w, v: w - rate * v, state.params, directions),
            # A mean of constants is not always the constant: the sum was rounded.
            batch_stats=batch_stats if objective.learns_statistics else state.batch_stats,
            opt_state=opt_state,
            schedule_state=schedule.after_step(state.schedule_state, state.step, *sums.wrong),
        )
        if state.ema:
            new = new.averaged(ema_decay)
        kept = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state)
        kept = kept.replace(
            step=state.step + 1,
            unreadable=state.unreadable + unreadable,
            skipped=jnp.where(finite, 0, state.skipped + 1),
        )
        progress = progress.add(sums, state=kept, loss=mean_loss, learning_rate=rate, unreadable=unreadable)
        return kept, progress

    return train_step


def all_finite(gradients: Any) -> Array:
    """Whether the gradients and their squares are finite, added up within each channel of each layer.

    One test of all channels, where a norm would add up every layer by itself to the end: a tenth of a step's kernels.
    """
    squares = [jnp.square(leaf).sum(range(leaf.ndim - 1)) for leaf in jax.tree.leaves(gradients)]
    return jnp.isfinite(jnp.concatenate(squares)).all()


def _cut(batch: Any, parts: int, mesh: Mesh | None, group: int | None) -> Any:
    """The batch as [parts, batch / parts, ...], each part spread over all devices and made of whole groups.

    Every device cuts its own rows, so that nothing moves between devices.
    """
    size, devices = batch.weight.shape[0], 1 if mesh is None else mesh.size
    if parts < 1 or size % (parts * devices):
        raise ValueError(
            f"accumulation_steps={parts} and {devices} devices do not divide the batch of {size} examples; "
            "choose a batch size that is a multiple of their product"
        )
    rows = size // (parts * devices)
    if group is None or rows % group:
        raise ValueError(
            f"bn_group_size={group} does not divide the {rows} examples of one device in one of the "
            f"accumulation_steps={parts} parts of a batch of {size}; choose a divisor of {rows}"
        )

    def cut(leaf):
        leaf = jnp.moveaxis(leaf.reshape(devices, parts, rows, *leaf.shape[1:]), 1, 0)
        leaf = leaf.reshape(parts, devices * rows, *leaf.shape[3:])
        return leaf if mesh is None else jax.lax.with_sharding_constraint(leaf, split_batch(mesh, axis=1))

    return jax.tree.map(cut, batch)


def _add_up(function: Callable, parts: Any):
    """The sum of function(part, index) over the parts, each of which it sees alone."""

    def add(total, part_and_index):
        return jax.tree.map(jnp.add, total, function(*part_and_index)), None

    count = parts.weight.shape[0]
    first = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], parts), 0)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)
    return jax.lax.scan(add, zeros, (parts, jnp.arange(count)))[0]


def make_resident_step(
    make_update: Callable[[Seed], tuple[TrainStep, BatchAt]],
    mesh: Mesh,
    *,
    sharding: str = "none",
    steps_per_call: int = 1,
    together: bool = False,
):
    """Jits one or more updates that fetch and augment their batches from a data set in device memory.

    Args:
      make_update: seed -> what `make_train_step` and `make_batch_at` give for it. The seed is traced, so that one
        compiled program serves all seeds.
      mesh: devices; each batch is split over them.
      sharding: of the state, see `state_shardings`.
      steps_per_call: updates per call; more than one run as a loop on the device.
      together: several seeds make their updates at once: state, progress, seed and orders have a leading axis of them.

    Returns:
      A jitted function (state, progress, seed, data, orders, epoch_start) -> (state, progress); the first two
      arguments are donated; the others come from `ResidentFeed.arguments(state.step)`.
    """

    def update(state, progress, seed, data: ResidentData, orders, epoch_start):
        train_step, batch_at = make_update(seed)
        state, progress = train_step(state, progress, batch_at(data, orders, epoch_start, state.step))
        return lay_out(state, mesh, sharding), progress

    one = jax.vmap(update, (0, 0, 0, None, 0, None)) if together else update

    @partial(jax.jit, donate_argnums=(0, 1), out_shardings=(None, replicated(mesh)))
    def call(state: TrainState, progress: Progress, seed, data: ResidentData, orders, epoch_start):
        rest = (seed, data, orders, epoch_start)
        if steps_per_call == 1:
            return one(state, progress, *rest)
        body = partial(lambda rest, carry, _: (one(*carry, *rest), None), rest)
        return jax.lax.scan(body, (state, progress), length=steps_per_call)[0]

    return call


def make_streamed_step(train_step: TrainStep, prepare: Callable[..., Any], mesh: Mesh, *, sharding: str = "none"):
    """Jits one update on a batch that comes from the host.

    Args:
      train_step: from `make_train_step`.
      prepare: (the feed's arguments, step) -> batch, see `device_augment.make_prepare`.
      mesh: devices that share the batch.
      sharding: of the state, see `state_shardings`.

    Returns:
      A jitted function (state, progress, the feed's arguments) -> (state, progress); the first two are donated; the
      others are arrays that are split over the devices, see `StreamedFeed.arguments`.
    """

    @partial(jax.jit, donate_argnums=(0, 1), out_shardings=(None, replicated(mesh)))
    def call(state: TrainState, progress: Progress, *batch):
        state, progress = train_step(state, progress, prepare(*batch, state.step))
        return lay_out(state, mesh, sharding), progress

    return call
