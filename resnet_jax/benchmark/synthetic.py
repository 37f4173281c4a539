"""A run on random pixels that lie on the devices before it begins: what the computation alone takes."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from resnet_jax import build
from resnet_jax.analysis.lowered_step import Data, describe_no_data
from resnet_jax.config import resolve
from resnet_jax.data.arrays import ImageArrays
from resnet_jax.data.datasets import dataset_info, split_size
from resnet_jax.data.feeds import Feed, ResidentFeed
from resnet_jax.distributed import data_mesh, split_batch
from resnet_jax.evaluation.metrics import Sums
from resnet_jax.models.registry import initialize
from resnet_jax.parts import Parts, build_optimizer, build_schedule
from resnet_jax.training.seeds import Seeds
from resnet_jax.training.steps_per_call import steps_per_call

# Shapes, classes and training images of data sets that need not be there.
KNOWN = {
    "digits": Data((8, 8, 1), 10, 1437),
    "cifar10": Data((32, 32, 3), 10, 50_000),
    "cifar100": Data((32, 32, 3), 100, 50_000),
}
_IMAGENET_CLASSES, _IMAGENET_IMAGES = 1000, 1_281_167
# Of the test split: enough that what is done once for all of it does not count.
_TEST_BATCHES = 4


class OneBatch:
    """A feed that gives the same batch at every step, see `data.feeds`."""

    def __init__(self, images: ImageArrays, mesh: Mesh):
        weights = np.ones(len(images.labels), np.float32)
        self._batch = jax.device_put((*images, weights), split_batch(mesh))

    def arguments(self, step: int) -> tuple[Array, Array, Array]:
        """Images (uint8), labels and weights."""
        del step
        return self._batch

    def close(self) -> None:
        """Does nothing: there is nothing to end."""


def data_of(config: Any) -> Data:
    """What a config's data set looks like; ImageNet's number of classes and images stand for those of streamed ones.

    Raises:
      ValueError: an unknown data set.
      FileNotFoundError: a resident one that is neither in `KNOWN` nor prepared.
    """
    if config.data.pipeline == "streamed":
        side = config.data.image_size
        return Data((side, side, 3), config.model.num_classes or _IMAGENET_CLASSES, _IMAGENET_IMAGES)
    if config.data.name in KNOWN:
        return KNOWN[config.data.name]
    info = dataset_info(config.data.name, data_dir=config.data.data_dir)
    height, width, channels = (side or 0 for side in info.image_shape)
    return Data((height, width, channels), info.num_classes, split_size(info, config.data.train_split))


def synthetic_parts(config: Any) -> Parts:
    """The parts of a run as `build` makes them, of random pixels and labels; the test split has a few batches.

    Of a resident data set there are as many images as of the real one, of a streamed one there is one batch, which
    every step gets.

    Raises:
      ValueError: for anything in the config that is not possible.
    """
    data = data_of(config)
    config = resolve(config, train_examples=data.examples, device_count=jax.device_count())
    mesh, seeds = data_mesh(slices=config.train.slices), Seeds(config.seed, config.num_seeds)
    model, input = build.build_model(config, num_classes=data.num_classes), describe_no_data(data)
    feed: Feed
    if config.data.pipeline == "streamed":
        feed, per_call = OneBatch(_noise(data, config.train.batch_size), mesh), 1
    else:
        train = build.to_device(_noise(data, data.examples), mesh)
        feed = ResidentFeed(train, seeds=seeds.numbers, batch_size=config.train.batch_size)
        counted = build.multiply_adds(config, image_size=data.image_shape[0], num_classes=data.num_classes)
        wanted = steps_per_call(config, multiply_adds=counted, backend=jax.default_backend())
        per_call = max(1, min(wanted, data.examples // config.train.batch_size))
    return Parts(
        config=config,
        data="synthetic",
        input=input,
        mesh=mesh,
        seeds=seeds,
        model=model,
        initialize=lambda key: initialize(model, key, data.image_shape),
        zero=Sums.zero(),
        optimizer=build_optimizer(config),
        schedule=build_schedule(config),
        splits={"test": build.to_device(_noise(data, _TEST_BATCHES * config.evaluate.batch_size), mesh)},
        feed=feed,
        make_call=build.build_calls(config, model, input, mesh),
        steps_per_call=per_call,
    )


def _noise(data: Data, count: int) -> ImageArrays:
    """Random, because a device takes less power, and so less time, for zeros."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, *data.image_shape), np.uint8)
    return ImageArrays(images, random.integers(0, data.num_classes, count).astype(np.int32))
