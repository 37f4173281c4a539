"""From a config of detection to the parts of a run."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from resnet_jax import config as configs
from resnet_jax.data.feeds import Feed, FeedWithVariables, StreamedFeed
from resnet_jax.data.input_description import InputDescription
from resnet_jax.detection.annotations import BoxSource
from resnet_jax.detection.backbones import split_net
from resnet_jax.detection.batches import BoxExample
from resnet_jax.detection.data import open_splits
from resnet_jax.detection.faster_rcnn import FasterRcnn
from resnet_jax.detection.from_config import (
    backbone_of,
    constant_layers,
    detector_of,
    framing_of,
    input_of,
    sampling_of,
)
from resnet_jax.detection.losses import DetectionSums
from resnet_jax.detection.objective import BoxBatch, detection, propose_from
from resnet_jax.detection.streaming import BoxBatches, make_prepare
from resnet_jax.detection.trained import TrainedDetector, initial_variables
from resnet_jax.detection.vgg_weights import load_vgg16
from resnet_jax.distributed import data_mesh, local_rows
from resnet_jax.parts import Parts, build_optimizer, build_schedule, build_update
from resnet_jax.pretrained.loading import load_partial
from resnet_jax.pretrained.reading import load_weights
from resnet_jax.training.seeds import Seeds
from resnet_jax.training.steps import make_streamed_step
from resnet_jax.workdir import Workdir


def build(config: Any) -> Parts:
    """Makes all parts of a run that trains a detector.

    Raises:
      ValueError: for anything in the config that is not possible.
      FileNotFoundError: a data set, weight file or workdir that is not there.
    """
    configs.check(config)
    sources = open_splits(config)
    train = sources["train"]
    config = configs.resolve(config, train_examples=len(train), device_count=jax.device_count())
    mesh = data_mesh(slices=config.train.slices)
    pretrained = _input_of_weights(config)
    start = _trained(config.detector.start_from, mesh)
    input = input_of(config, train.class_names, pretrained) if start is None else start.input
    _check_input(config, "start_from", input, train.class_names)
    proposer = _trained(config.detector.proposals_from, mesh)
    if proposer is not None:
        _check_proposer(config, proposer, input)
    detector = detector_of(config, num_classes=len(train.class_names))
    optimizer = build_optimizer(config, constant=constant_layers(config, detector))
    return Parts(
        config=config,
        data=" ".join(source.digest() for source in sources.values()),
        input=input,
        mesh=mesh,
        seeds=Seeds(config.seed, 1),
        model=detector,
        initialize=_initialize(config, detector, start),
        zero=DetectionSums.zero(),
        optimizer=optimizer,
        schedule=build_schedule(config),
        splits={name: source for name, source in sources.items() if name != "train" or config.evaluate.train},
        feed=_feed(config, train, input, mesh, proposer),
        make_call=lambda steps: make_streamed_step(
            build_update(
                config,
                detection(detector, sampling_of(config), seed=config.seed, trains=config.detector.trains),
                optimizer,
                mesh,
                seed=config.seed,
            ),
            _prepare(config, input, proposer),
            mesh,
            sharding=config.train.sharding,
        ),
        steps_per_call=1,
    )


def _trained(workdir: str | None, mesh: Mesh) -> TrainedDetector | None:
    if workdir is None:
        return None
    return TrainedDetector.restore(Workdir(workdir), checkpoint="latest", mesh=mesh)


def _check_input(config: Any, key: str, input: InputDescription, class_names: tuple[str, ...]) -> None:
    if input.class_names != class_names:
        raise ValueError(f"detector.{key}={config.detector[key]}: it is of other classes than those of the data")


def _check_proposer(config: Any, proposer: TrainedDetector, input: InputDescription) -> None:
    key = "proposals_from"
    _check_input(config, key, proposer.input, input.class_names)
    if not proposer.input.same_as(input):
        raise ValueError(
            f"detector.{key}={config.detector[key]}: it expects other images (their size, mean or standard deviation) "
            "than this detector; take the same data.short_side, data.long_side and detector.weights for both"
        )


def _initialize(config: Any, detector: FasterRcnn, start: TrainedDetector | None) -> Callable[[jax.Array], dict]:
    def initialize(key: jax.Array) -> dict:
        variables = initial_variables(detector, key)
        if start is not None:
            shapes = [jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (variables, start.variables)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"detector.start_from={config.detector.start_from}: it is of another net than model.name="
                    f"{config.model.name} with this config's detector keys"
                )
            return start.variables
        return variables if config.detector.weights is None else _with_weights(config, variables, key)

    return initialize


def _input_of_weights(config: Any) -> InputDescription | None:
    if config.detector.weights is None:
        return None
    return (
        load_vgg16(config.detector.weights)[2]
        if backbone_of(config) is None
        else load_weights(config.detector.weights).input
    )


def _with_weights(config: Any, variables: dict, key: jax.Array) -> dict:
    """The variables with the weights' in trunk and tail."""
    net = backbone_of(config)
    if net is None:
        trunk, tail, _ = load_vgg16(config.detector.weights)
        return {**variables, "params": {**variables["params"], "trunk": trunk, "tail": tail}}
    loaded, report = load_partial(config.detector.weights, net, key=key)
    if report.initialised:
        raise ValueError(
            f"detector.weights={config.detector.weights}: it lacks {len(report.initialised)} tensors of "
            f"{config.model.name}, such as {report.initialised[0]}"
        )
    cut = dict(zip(("trunk", "tail"), split_net(loaded, stages=len(net.stage_sizes)), strict=True))
    return {
        collection: {**tree, **{part: own[collection] for part, own in cut.items() if collection in own}}
        for collection, tree in variables.items()
    }


def _feed(config: Any, train: BoxSource, input: InputDescription, mesh: Mesh, proposer: TrainedDetector | None) -> Feed:
    batches = BoxBatches(
        train,
        framing_of(config, input.mean, training=True),
        seed=config.seed,
        batch_size=config.train.batch_size,
        rows=local_rows(config.train.batch_size, mesh),
        flip=config.data.flip,
    )
    feed = StreamedFeed(batches, mesh, total_steps=config.steps.total, workers=config.data.workers)
    return feed if proposer is None else FeedWithVariables(feed, proposer.variables)


def _prepare(config: Any, input: InputDescription, proposer: TrainedDetector | None) -> Callable[..., BoxBatch]:
    """What makes a `BoxBatch` of the feed's arguments and the step, with another detector's proposals if it has any."""
    own = make_prepare(input.mean, input.std)
    if proposer is None:
        return own
    net, settings = proposer.detector, sampling_of(config).proposing

    def prepare(variables: dict, examples: BoxExample, *rest: Any) -> BoxBatch:
        batch = own(examples, *rest)
        features: Any = net.apply(variables, batch.image, batch.sizes, method="features")
        proposals = propose_from(net, variables, features, batch.sizes, settings)
        return batch.replace(proposals=jax.lax.stop_gradient(proposals))

    return prepare
