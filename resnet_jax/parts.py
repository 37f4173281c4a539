"""What a run is made of, whatever it trains, and the parts that all tasks build alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import FrozenConfigDict

from resnet_jax.config import flatten
from resnet_jax.config_checks import learning_rate
from resnet_jax.data.feeds import Feed
from resnet_jax.data.input_description import InputDescription
from resnet_jax.distributed import place, replicate
from resnet_jax.random_keys import Seed, named_key
from resnet_jax.training import schedules
from resnet_jax.training.objective import Objective
from resnet_jax.training.optimizers import optimizer_named
from resnet_jax.training.schedules import Schedule
from resnet_jax.training.seeds import Seeds
from resnet_jax.training.sharding import state_shardings
from resnet_jax.training.state import Progress, TrainState
from resnet_jax.training.steps import TrainStep, make_train_step


@dataclass(frozen=True)
class Parts:
    """What a run is made of.

    Attributes:
      config: resolved.
      data: digests of the data set's files, see `data_manifest`, and of a resident training split, see
        `content_digest`.
      input: what the net expects of its input.
      mesh: the devices.
      seeds: of the run.
      model: the module that the task trains.
      initialize: (key) -> its variables before step 1.
      zero: what a step counts, of no batch, see `Objective`.
      optimizer: without the learning rate.
      schedule: of the learning rate.
      splits: what is tested, by name: "test", "validation" where there is one, and "train" where that is tested.
      feed: the training batches, or what they are made from on the devices.
      make_call: (updates per call) -> the jitted call (state, progress, *feed's arguments) -> (state, progress).
      steps_per_call: the most updates that one call may make.
      proposer: the trained net whose boxes are the model's regions in tests, too; None where it has no other's.
    """

    config: FrozenConfigDict
    data: str
    input: InputDescription
    mesh: Mesh
    seeds: Seeds
    model: Any
    initialize: Callable[[Array], dict]
    zero: Any
    optimizer: optax.GradientTransformation
    schedule: Schedule
    splits: dict[str, Any]
    feed: Feed
    make_call: Callable[[int], Any]
    steps_per_call: int
    proposer: Any = None

    def initial_variables(self) -> dict:
        """Parameters and statistics of each seed before step 1, as this process makes them by itself."""
        keys = [named_key(seed, "parameters") for seed in self.seeds.numbers]
        return self.seeds.join([self.initialize(key) for key in keys])

    def initial_state(self, variables: dict | None = None) -> TrainState:
        """The state before step 1, of these variables or the initial ones, on all devices as `train.sharding` says."""
        variables = self.initial_variables() if variables is None else variables
        state = self.seeds.over(
            lambda own: TrainState.create(own, self.optimizer, self.schedule, ema=self.config.train.ema_decay > 0)
        )(variables)
        return place(state, state_shardings(state, self.mesh, self.config.train.sharding))

    def initial_progress(self) -> Progress:
        """Nothing seen yet, by any seed."""
        # Anew each time: a step takes the buffers of what it is given.
        nothing = [Progress.zero(jax.tree.map(jnp.zeros_like, self.zero)) for _ in self.seeds.numbers]
        return replicate(self.seeds.join(nothing), self.mesh)


def build_update(
    config: Any, objective: Objective, optimizer: optax.GradientTransformation, mesh: Mesh, *, seed: Seed
) -> TrainStep:
    """One update as `config.train` and its neighbours describe it, see `make_train_step`."""
    return make_train_step(
        objective,
        optimizer,
        build_schedule(config),
        seed=seed,
        ema_decay=config.train.ema_decay,
        accumulation_steps=config.train.accumulation_steps,
        ordered=config.train.determinism == "topology",
        sharding=config.train.sharding,
        mesh=mesh,
    )


def build_optimizer(config: Any, *, constant: Sequence[str] = ()) -> optax.GradientTransformation:
    """The optimizer that `config.optimizer` describes.

    Args:
      config: of the run.
      constant: beginnings of the names of layers that do not train, and so do not decay.
    """
    return optimizer_named(**config.optimizer, constant=constant)


def build_schedule(config: Any) -> Schedule:
    """The schedule that `config.schedule` describes, its durations taken from `config.steps`."""
    c, steps = config.schedule, config.steps
    rate = learning_rate(flatten(config))
    schedule = {
        "constant": lambda: schedules.constant(rate),
        "piecewise": lambda: schedules.piecewise(rate, boundaries=steps.boundaries, factor=c.factor),
        "cosine": lambda: schedules.cosine(rate, total=steps.total, start=steps.warmup),
        "plateau": lambda: schedules.plateau(
            rate, factor=c.factor, patience=c.patience, min_improvement=c.min_improvement
        ),
    }[c.name]()
    if c.warmup == "linear":
        return schedules.with_linear_warmup(schedule, steps=steps.warmup, start=c.warmup_start)
    if c.warmup == "until_error":
        return schedules.with_warmup_until_error(
            schedule, learning_rate=c.warmup_learning_rate, error=c.warmup_error, window=c.warmup_window
        )
    return schedule
