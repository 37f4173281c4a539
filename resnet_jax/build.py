"""From a config of classification to the parts of a run: the map of the system, one line per part."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from resnet_jax import config as configs
from resnet_jax.data.arrays import ImageArrays, content_digest, load_arrays
from resnet_jax.data.augment import TrainView
from resnet_jax.data.datasets import DatasetInfo, data_manifest, dataset_info, split_size
from resnet_jax.data.device_augment import make_prepare
from resnet_jax.data.examples import Examples
from resnet_jax.data.feeds import ResidentFeed, StreamedFeed
from resnet_jax.data.input_description import InputDescription, describe_input
from resnet_jax.data.resident import BatchAt, ResidentData, make_batch_at
from resnet_jax.data.statistics import PixelStatistics, describe_streamed_input, statistics_of
from resnet_jax.data.streaming import TrainBatches
from resnet_jax.distributed import data_mesh, local_rows, replicate
from resnet_jax.evaluation.metrics import Sums
from resnet_jax.models.registry import create_model, initialize
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.summary import Summary, summarize
from resnet_jax.parts import Parts, build_optimizer, build_schedule, build_update
from resnet_jax.random_keys import Seed
from resnet_jax.training.objective import classification
from resnet_jax.training.seeds import Seeds
from resnet_jax.training.state import TrainState
from resnet_jax.training.steps import TrainStep, make_resident_step, make_streamed_step
from resnet_jax.training.steps_per_call import steps_per_call

Split = ResidentData | Examples


def build(config: Any) -> Parts:
    """Makes all parts of a run from a config; a resident data set is read and put on the devices.

    Raises:
      ValueError: for anything in the config that is not possible, before any data is read.
      FileNotFoundError: if the data set is not there; the message says how to prepare it.
    """
    configs.check(config)
    if config.task != "classification":
        raise ValueError(f"task={config.task}: must be classification here")
    info = dataset_info(config.data.name, data_dir=config.data.data_dir)
    check_classes(config, info)
    train_examples = split_size(info, config.data.train_split)
    # The others too, before the first is read.
    for split in (config.data.validation_split, config.data.test_split, config.evaluate.train_split):
        if split is not None:
            split_size(info, split)
    config = configs.resolve(config, train_examples=train_examples, device_count=jax.device_count())
    mesh = data_mesh(slices=config.train.slices)
    if config.train.sharding != "none" and mesh.shape["data"] == 1 < mesh.size:
        raise ValueError(
            f"train.sharding={config.train.sharding}: every slice has one device, so that nothing is divided; choose "
            "fewer slices (train.slices=1)"
        )
    model = build_model(config, num_classes=info.num_classes)
    parts = {"resident": _resident_parts, "streamed": _streamed_parts}[config.data.pipeline](config, info, mesh)
    image_shape = parts["input"].image_shape
    return Parts(
        config=config,
        mesh=mesh,
        seeds=Seeds(config.seed, config.num_seeds),
        model=model,
        initialize=lambda key: initialize(model, key, image_shape),
        zero=Sums.zero(),
        optimizer=build_optimizer(config),
        schedule=build_schedule(config),
        make_call=build_calls(config, model, parts["input"], mesh),
        **parts,
    )


def check_classes(config: Any, info: DatasetInfo) -> None:
    """Raises ValueError if the config says another number of classes than the data set has."""
    if config.model.num_classes not in (None, info.num_classes):
        raise ValueError(
            f"model.num_classes={config.model.num_classes}: data set {info.name!r} has {info.num_classes} classes; "
            "None takes that number"
        )


def _resident_parts(config: Any, info: DatasetInfo, mesh: Mesh) -> dict[str, Any]:
    train = load_arrays(info, config.data.train_split)
    input = describe_input(train.images, info.class_names, normalization=config.data.normalization)
    data = to_device(train, mesh)
    seeds = Seeds(config.seed, config.num_seeds)
    counted = multiply_adds(config, image_size=info.image_shape[0], num_classes=info.num_classes)
    wanted = steps_per_call(config, multiply_adds=counted, backend=jax.default_backend())
    return {
        "data": f"{data_manifest(info)} {content_digest(train)}",
        "input": input,
        "splits": _open_splits(config, info, mesh, {"train": data}),
        "feed": ResidentFeed(data, seeds=seeds.numbers, batch_size=config.train.batch_size),
        "steps_per_call": max(1, min(wanted, len(data) // config.train.batch_size)),
    }


def _streamed_parts(config: Any, info: DatasetInfo, mesh: Mesh) -> dict[str, Any]:
    statistics = statistics_of(info, config.data.statistics)
    batches = build_train_batches(config, info, rows=local_rows(config.train.batch_size, mesh))
    batches.examples.check_some()
    return {
        "data": data_manifest(info),
        "input": build_input(config, info, statistics),
        "splits": _open_splits(config, info, mesh, {}),
        "feed": StreamedFeed(batches, mesh, total_steps=config.steps.total, workers=config.data.workers),
        "steps_per_call": 1,
    }


def _open_splits(config: Any, info: DatasetInfo, mesh: Mesh, opened: dict[str, Split]) -> dict[str, Split]:
    names = {"validation": config.data.validation_split, "test": config.data.test_split}
    if config.evaluate.train_split or "train" not in opened:
        names["train"] = config.evaluate.train_split or config.data.train_split
    return opened | {name: open_split(config, info, split, mesh) for name, split in names.items() if split is not None}


def open_split(config: Any, info: DatasetInfo, split: str, mesh: Mesh) -> Split:
    """A split as the config's pipeline reads it: whole on every device, or image by image from disk."""
    if config.data.pipeline == "streamed":
        return Examples(info, split)
    return to_device(load_arrays(info, split), mesh)


def build_calls(config: Any, model: ResNet, input: InputDescription, mesh: Mesh) -> Callable[[int], Any]:
    """(updates per call) -> the jitted call, see `Parts.make_call`; of streamed data a call makes one update."""
    sharding = config.train.sharding

    def make_step(seed: Seed) -> TrainStep:
        return build_train_step(config, model, mesh, seed=seed)

    if config.data.pipeline == "streamed":
        prepare = build_prepare(config, input, mesh)
        return lambda steps: make_streamed_step(make_step(config.seed), prepare, mesh, sharding=sharding)
    return lambda steps: make_resident_step(
        lambda seed: (make_step(seed), build_batches(config, input, mesh, seed=seed)),
        mesh,
        sharding=sharding,
        steps_per_call=steps,
        together=Seeds(config.seed, config.num_seeds).together,
    )


def build_train_step(config: Any, model: ResNet, mesh: Mesh, *, seed: Seed) -> TrainStep:
    """One update of a classification net, see `build_update`."""
    objective = classification(model, loss=config.train.loss, label_smoothing=config.train.label_smoothing)
    return build_update(config, objective, build_optimizer(config), mesh, seed=seed)


def build_state(config: Any, variables: dict) -> TrainState:
    """The state before step 1 of a net with these variables."""
    ema = config.train.ema_decay > 0
    return TrainState.create(variables, build_optimizer(config), build_schedule(config), ema=ema)


def build_train_batches(config: Any, info: DatasetInfo, *, rows: range | None = None) -> TrainBatches:
    """The streamed training batches that `config.data` describes, or these rows of each."""
    data = config.data
    view = TrainView(
        image_size=data.image_size,
        crop=data.crop,
        short_sides=tuple(data.short_sides),
        area=tuple(data.crop_area),
        aspect=tuple(data.crop_aspect),
        flip=data.flip,
        resize=data.resize,
        policy=data.policy,
        policy_operations=data.policy_operations,
        policy_magnitude=data.policy_magnitude,
        channels=info.image_shape[-1],
    )
    return TrainBatches(
        Examples(info, data.train_split),
        view,
        seed=config.seed,
        batch_size=config.train.batch_size,
        rows=range(config.train.batch_size) if rows is None else rows,
        unreadable=data.unreadable,
    )


def build_input(config: Any, info: DatasetInfo, statistics: PixelStatistics) -> InputDescription:
    """What a net trained on streamed images expects of its input."""
    return describe_streamed_input(
        info,
        statistics,
        normalization=config.data.normalization,
        image_size=config.evaluate.image_size or config.data.image_size,
        short_side=config.evaluate.short_side,
        resize=config.data.resize,
    )


def build_prepare(config: Any, input: InputDescription, mesh: Mesh) -> Callable:
    """What happens to streamed training images on the devices, see `make_prepare`."""
    return make_prepare(
        mesh,
        seed=config.seed,
        mean=input.mean,
        std=input.std,
        pca_std=config.data.pca_std,
        eigenvalues=input.color_values,
        eigenvectors=input.color_vectors,
        cutout_size=config.data.cutout,
        mixup_alpha=config.data.mixup,
        cutmix_alpha=config.data.cutmix,
        batch_size=config.train.batch_size,
    )


def build_model(config: Any, *, num_classes: int | None) -> ResNet:
    """The net that `config.model` describes."""
    return create_model(config.model.name, num_classes=num_classes, **_net_options(config))


def multiply_adds(config: Any, *, image_size: int | None, num_classes: int) -> int:
    """Of the forward pass of the net that `config.model` describes, on one image of three channels, see `summarize`."""
    return summary_of(config, image_size=image_size, num_classes=num_classes).multiply_adds


def summary_of(config: Any, *, image_size: int | None, num_classes: int, channels: int = 3) -> Summary:
    """Parameters, multiply-adds and activations of the net that `config.model` describes, see `summarize`."""
    options = {"num_classes": num_classes, **_net_options(config)}
    return summarize(config.model.name, image_size=image_size, channels=channels, **options)


def _net_options(config: Any) -> dict[str, Any]:
    named = ("name", "num_classes")
    return {key: value for key, value in config.model.items() if key not in named and value is not None}


def build_batches(config: Any, input: InputDescription, mesh: Mesh, *, seed: Seed) -> BatchAt:
    """The training batches that `config.data` describes."""
    return make_batch_at(
        mesh,
        seed=seed,
        batch_size=config.train.batch_size,
        mean=input.mean,
        std=input.std,
        pad=config.data.pad,
        flip=config.data.flip,
        policy=config.data.policy,
        policy_operations=config.data.policy_operations,
        policy_magnitude=config.data.policy_magnitude,
        cutout_size=config.data.cutout,
        mixup_alpha=config.data.mixup,
        cutmix_alpha=config.data.cutmix,
    )


def to_device(split: ImageArrays, mesh: Mesh) -> ResidentData:
    """Puts a whole split on every device."""
    return replicate(ResidentData(images=split.images, labels=split.labels), mesh)
