"""From a config of detection to the parts of a run."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import optax
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
from resnet_jax.pretrained.loading import load_whole
from resnet_jax.training.seeds import Seeds
from resnet_jax.training.steps import make_streamed_step
from resnet_jax.workdir import Workdir

_OF_CLASSES = ("classifier", "regressor")
# Beginnings of the keys that a part's arrays have their shapes from.
_SHAPING = {
    "trunk": ("model.",),
    "tail": ("model.", "detector.roi_size"),
    "rpn": ("detector.anchor", "detector.rpn_features"),
    **dict.fromkeys(_OF_CLASSES, ("detector.context",)),
}


class _Weights(NamedTuple):
    """What `detector.weights` has: variables of trunk and tail, and what they expect of their input, if it is known."""

    trunk: dict
    tail: dict
    input: InputDescription | None

    def within(self, variables: dict) -> dict:
        """A detector's variables with these in trunk and tail."""
        parts = {"trunk": self.trunk, "tail": self.tail}
        return {
            collection: {**tree, **{part: own[collection] for part, own in parts.items() if collection in own}}
            for collection, tree in variables.items()
        }


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
    weights = _read_weights(config)
    start = _trained(config.detector.start_from, mesh)
    if start is None:
        input = input_of(config, train.class_names, None if weights is None else weights.input)
    else:
        input = _input_of_start(config, start, train.class_names)
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
        initialize=_initialize(config, detector, start, weights),
        zero=DetectionSums.zero(),
        optimizer=optimizer,
        schedule=build_schedule(config),
        splits={name: source for name, source in sources.items() if name != "train" or config.evaluate.train},
        feed=_feed(config, train, input, mesh, proposer),
        make_call=build_calls(config, detector, optimizer, input, mesh, proposer),
        steps_per_call=1,
    )


def build_calls(
    config: Any,
    detector: FasterRcnn,
    optimizer: optax.GradientTransformation,
    input: InputDescription,
    mesh: Mesh,
    proposer: TrainedDetector | None = None,
) -> Callable[[int], Any]:
    """(updates per call) -> the jitted call, see `Parts.make_call`, for devices that need not be here; one update."""
    objective = detection(detector, sampling_of(config), seed=config.seed, trains=config.detector.trains)
    return lambda steps: make_streamed_step(
        build_update(config, objective, optimizer, mesh, seed=config.seed),
        _prepare(config, input, proposer),
        mesh,
        sharding=config.train.sharding,
    )


def _trained(workdir: str | None, mesh: Mesh) -> TrainedDetector | None:
    if workdir is None:
        return None
    return TrainedDetector.restore(Workdir(workdir), checkpoint="latest", mesh=mesh)


def _input_of_start(config: Any, start: TrainedDetector, class_names: tuple[str, ...]) -> InputDescription:
    if config.detector.new_classes:
        return replace(start.input, class_names=class_names)
    if start.input.class_names != class_names:
        raise ValueError(
            f"detector.start_from={config.detector.start_from}: it is of other classes than those of the data; "
            "detector.new_classes=True begins the layers of classes anew and takes all others"
        )
    return start.input


def _check_proposer(config: Any, proposer: TrainedDetector, input: InputDescription) -> None:
    key = "proposals_from"
    if proposer.input.class_names != input.class_names:
        raise ValueError(f"detector.{key}={config.detector[key]}: it is of other classes than those of the data")
    if not proposer.input.same_as(input):
        raise ValueError(
            f"detector.{key}={config.detector[key]}: it expects other images (their size, mean or standard deviation) "
            "than this detector; take the same data.short_side, data.long_side and detector.weights for both"
        )


def _initialize(
    config: Any, detector: FasterRcnn, start: TrainedDetector | None, weights: _Weights | None
) -> Callable[[jax.Array], dict]:
    def initialize(key: jax.Array) -> dict:
        variables = initial_variables(detector, key)
        if start is not None:
            return _of_start(config, variables, start)
        return variables if weights is None else weights.within(variables)

    return initialize


def _of_start(config: Any, variables: dict, start: TrainedDetector) -> dict:
    """The variables of the run that is begun from, of layers that begin anew those given."""
    taken = start.variables
    if config.detector.new_classes:
        anew = {layer: variables["params"][layer] for layer in _OF_CLASSES}
        taken = {**taken, "params": {**taken["params"], **anew}}
    if differing := {names[1] for names, _ in _shapes(variables) ^ _shapes(taken)}:
        prefixes = tuple(prefix for part in sorted(differing) for prefix in _SHAPING[part])
        keys = [key for key in configs.differing_keys(start.config, config) if key.startswith(prefixes)]
        there = configs.flatten(start.config)
        raise ValueError(
            f"detector.start_from={config.detector.start_from}: it is of another net than model.name="
            f"{config.model.name} with this config's detector keys; {', '.join(sorted(differing))} would fit with "
            f"{', '.join(f'{key}={there[key]}' for key in keys)}"
        )
    return taken


def _shapes(variables: dict) -> set[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Names and shape of each array."""
    return {(tuple(key.key for key in path), leaf.shape) for path, leaf in jax.tree.leaves_with_path(variables)}


def _read_weights(config: Any) -> _Weights | None:
    path, net = config.detector.weights, backbone_of(config)
    if path is None:
        return None
    if net is None:
        trunk, tail, input = load_vgg16(path)
        return _Weights({"params": trunk}, {"params": tail}, input)
    loaded, expected = load_whole(path, net, named="detector.weights")
    return _Weights(*split_net(loaded, stages=len(net.stage_sizes)), expected)


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
