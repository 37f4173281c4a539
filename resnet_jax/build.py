"""From a resolved config to the parts of a run: the map of the system, one line per part."""

from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import FrozenConfigDict

from resnet_jax import config as configs
from resnet_jax.data.datasets import ImageArrays, dataset_info, load_arrays, split_size
from resnet_jax.data.input_description import InputDescription, describe_input
from resnet_jax.data.resident import BatchAt, EpochOrders, ResidentData, make_batch_at
from resnet_jax.distributed import data_mesh, replicate
from resnet_jax.models.registry import create_model, initialize
from resnet_jax.models.resnet import ResNet
from resnet_jax.random_keys import named_key
from resnet_jax.training import schedules
from resnet_jax.training.optimizers import sgd
from resnet_jax.training.schedules import Schedule
from resnet_jax.training.state import TrainState
from resnet_jax.training.steps import make_resident_step, make_train_step

# On an accelerator one call runs this many steps; on a CPU calls are cheap and loops are not.
_STEPS_PER_CALL = {"cpu": 1}
_STEPS_PER_CALL_ELSEWHERE = 50


@dataclass(frozen=True)
class Parts:
    """What a run is made of."""

    config: FrozenConfigDict
    input: InputDescription
    mesh: Mesh
    model: ResNet
    optimizer: optax.GradientTransformation
    schedule: Schedule
    splits: dict[str, ResidentData]
    orders: EpochOrders

    @property
    def train_data(self) -> ResidentData:
        """The training split."""
        return self.splits["train"]

    def initial_state(self) -> TrainState:
        """The state before step 1, on all devices."""
        variables = initialize(self.model, named_key(self.config.seed, "parameters"), self.input.image_shape)
        return replicate(TrainState.create(variables, self.optimizer, self.schedule), self.mesh)

    def resident_step(self, steps_per_call: int):
        """The jitted training step, see `make_resident_step`."""
        seed, smoothing = self.config.seed, self.config.train.label_smoothing
        step = make_train_step(self.model, self.optimizer, self.schedule, seed=seed, label_smoothing=smoothing)
        batch_at = build_batches(self.config, self.input, self.mesh)
        return make_resident_step(step, batch_at, self.mesh, steps_per_call=steps_per_call)

    def steps_per_call(self) -> int:
        """Steps that one call runs: as the config says or the backend likes, at most an epoch."""
        wanted = self.config.train.steps_per_dispatch
        if wanted is None:
            wanted = _STEPS_PER_CALL.get(jax.default_backend(), _STEPS_PER_CALL_ELSEWHERE)
        return max(1, min(wanted, len(self.train_data) // self.config.train.batch_size))


def build(config: Any) -> Parts:
    """Makes all parts of a run from a config; data is read and put on the devices.

    Raises:
      ValueError: for anything in the config that is not possible, before any data is read.
      FileNotFoundError: if the data set is not there; the message says how to prepare it.
    """
    configs.check(config)
    info = dataset_info(config.data.name, data_dir=config.data.data_dir)
    names = {
        "train": config.data.train_split,
        "validation": config.data.validation_split,
        "test": config.data.test_split,
    }
    sizes = {name: split_size(info, split) for name, split in names.items() if split is not None}
    config = configs.resolve(config, train_examples=sizes["train"], device_count=jax.device_count())
    mesh = data_mesh()
    arrays = {name: load_arrays(info, names[name]) for name in sizes}
    return Parts(
        config=config,
        input=describe_input(arrays["train"].images, info.class_names, normalization=config.data.normalization),
        mesh=mesh,
        model=build_model(config, num_classes=info.num_classes),
        optimizer=build_optimizer(config),
        schedule=build_schedule(config),
        splits={name: to_device(split, mesh) for name, split in arrays.items()},
        orders=EpochOrders(seed=config.seed, count=sizes["train"]),
    )


def build_model(config: Any, *, num_classes: int | None) -> ResNet:
    """The net that `config.model` describes."""
    options = {key: value for key, value in config.model.items() if key != "name" and value is not None}
    return create_model(config.model.name, num_classes=num_classes, **options)


def build_optimizer(config: Any) -> optax.GradientTransformation:
    """The optimizer that `config.optimizer` describes."""
    return sgd(**config.optimizer)


def build_batches(config: Any, input: InputDescription, mesh: Mesh) -> BatchAt:
    """The training batches that `config.data` describes."""
    return make_batch_at(
        mesh,
        seed=config.seed,
        batch_size=config.train.batch_size,
        mean=input.mean,
        std=input.std,
        pad=config.data.pad,
        flip=config.data.flip,
    )


def build_schedule(config: Any) -> Schedule:
    """The schedule that `config.schedule` describes, its durations taken from `config.steps`."""
    c, steps = config.schedule, config.steps
    schedule = {
        "constant": lambda: schedules.constant(c.learning_rate),
        "piecewise": lambda: schedules.piecewise(c.learning_rate, boundaries=steps.boundaries, factor=c.factor),
        "cosine": lambda: schedules.cosine(c.learning_rate, total=steps.total, start=steps.warmup),
        "plateau": lambda: schedules.plateau(
            c.learning_rate, factor=c.factor, patience=c.patience, min_improvement=c.min_improvement
        ),
    }[c.name]()
    if c.warmup == "linear":
        return schedules.with_linear_warmup(schedule, steps=steps.warmup)
    if c.warmup == "until_error":
        return schedules.with_warmup_until_error(
            schedule, learning_rate=c.warmup_learning_rate, error=c.warmup_error, window=c.warmup_window
        )
    return schedule


def to_device(split: ImageArrays, mesh: Mesh) -> ResidentData:
    """Puts a whole split on every device."""
    return replicate(ResidentData(images=split.images, labels=split.labels), mesh)
