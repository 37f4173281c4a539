"""From a config of localization to the parts of a run."""

from collections.abc import Callable
from typing import Any

import jax

from resnet_jax import config as configs
from resnet_jax.data.feeds import Feed, FeedWithVariables, StreamedFeed
from resnet_jax.data.input_description import InputDescription
from resnet_jax.detection.data import open_splits
from resnet_jax.detection.from_config import training_proposals_of
from resnet_jax.detection.objective import BoxBatch
from resnet_jax.detection.streaming import BoxBatches, make_prepare
from resnet_jax.distributed import data_mesh, local_rows
from resnet_jax.localization.from_config import framing_of, input_of, localizer_of, net_of, objective_of
from resnet_jax.localization.losses import LocalizationSums
from resnet_jax.localization.per_class_rpn import PerClassRpn
from resnet_jax.localization.region_net import RegionNet
from resnet_jax.localization.starting import with_trunk
from resnet_jax.localization.testing import RpnMember, with_proposals
from resnet_jax.localization.trained import TrainedLocalizer, initial_variables, proposer_of
from resnet_jax.parts import Parts, build_optimizer, build_schedule, build_update
from resnet_jax.pretrained.loading import load_whole
from resnet_jax.training.seeds import Seeds
from resnet_jax.training.steps import make_streamed_step


def build(config: Any) -> Parts:
    """Makes all parts of a run that trains a localizer.

    Raises:
      ValueError: for anything in the config that is not possible.
      FileNotFoundError: a data set, weight file or workdir that is not there.
    """
    configs.check(config)
    sources = open_splits(config)
    train = sources["train"]
    config = configs.resolve(config, train_examples=len(train), device_count=jax.device_count())
    mesh = data_mesh(slices=config.train.slices)
    net, pretrained = None, None
    if config.localizer.weights is not None:
        net, pretrained = load_whole(config.localizer.weights, net_of(config), named="localizer.weights")
    input = input_of(config, train.class_names, pretrained)
    proposer = proposer_of(config, input, mesh)
    localizer = localizer_of(config, num_classes=len(train.class_names))
    optimizer = build_optimizer(config)
    batches = BoxBatches(
        train,
        framing_of(config, input.mean),
        seed=config.seed,
        batch_size=config.train.batch_size,
        rows=local_rows(config.train.batch_size, mesh),
        flip=config.data.flip,
    )
    feed: Feed = StreamedFeed(batches, mesh, total_steps=config.steps.total, workers=config.data.workers)
    return Parts(
        config=config,
        data=" ".join(source.digest() for source in sources.values()),
        input=input,
        mesh=mesh,
        seeds=Seeds(config.seed, 1),
        model=localizer,
        initialize=_initialize(config, localizer, net),
        zero=LocalizationSums.zero(),
        optimizer=optimizer,
        schedule=build_schedule(config),
        splits={name: source for name, source in sources.items() if name != "train" or config.evaluate.train},
        feed=feed if proposer is None else FeedWithVariables(feed, proposer.variables),
        make_call=lambda steps: make_streamed_step(
            build_update(config, objective_of(config, localizer), optimizer, mesh, seed=config.seed),
            _prepare(config, input, proposer),
            mesh,
            sharding=config.train.sharding,
        ),
        steps_per_call=1,
        proposer=proposer,
    )


def _initialize(config: Any, localizer: PerClassRpn | RegionNet, net: dict | None) -> Callable[[jax.Array], dict]:
    """What makes the variables before step 1, with those of a trained net if there is one."""

    def initialize(key: jax.Array) -> dict:
        variables = initial_variables(localizer, config, key)
        return variables if net is None else with_trunk(variables, net)

    return initialize


def _prepare(config: Any, input: InputDescription, proposer: TrainedLocalizer | None) -> Callable[..., BoxBatch]:
    """What makes a `BoxBatch` of the feed's arguments and the step, with proposals where there is a proposer."""
    own = make_prepare(input.mean, input.std)
    if proposer is None:
        return own
    rpn, settings = proposer.localizer, training_proposals_of(config)
    assert isinstance(rpn, PerClassRpn)

    def prepare(variables: dict, *rest: Any) -> BoxBatch:
        return with_proposals([RpnMember(rpn, variables)], own(*rest), settings)

    return prepare
