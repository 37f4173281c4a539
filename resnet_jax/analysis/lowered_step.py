"""The training step of a config before it is compiled, from shapes alone: no data, no parameters, no device in use."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.stages import Lowered

from resnet_jax import build
from resnet_jax.data.input_description import InputDescription
from resnet_jax.data.resident import ResidentData
from resnet_jax.distributed import replicated, split_batch
from resnet_jax.models.registry import initialize
from resnet_jax.training.state import Progress, TrainState


class Data(NamedTuple):
    """The data set, as far as a step depends on it: (height, width, channels), classes, training images."""

    image_shape: tuple[int, int, int]
    num_classes: int
    examples: int


def lower_step(config: Any, data: Data, mesh: Mesh, *, platform: str) -> Lowered:
    """One training step as the training loop calls it, with a copy of the state on every device.

    Args:
      config: resolved.
      data: what it trains on.
      mesh: devices, which may be those of a description (`jax.experimental.topologies`).
      platform: that it is lowered for: "cpu", "cuda" or "tpu".
    """
    arguments = _arguments(config, data, abstract_state(config, data), mesh)
    model = build.build_model(config, num_classes=data.num_classes)
    call = build.build_calls(config, model, describe_no_data(data), mesh)(1)
    return call.trace(*arguments).lower(lowering_platforms=(platform,))


def abstract_state(config: Any, data: Data) -> TrainState:
    """The training state as shapes and types."""
    model = build.build_model(config, num_classes=data.num_classes)
    return jax.eval_shape(lambda: build.build_state(config, initialize(model, jax.random.key(0), data.image_shape)))


def describe_no_data(data: Data) -> InputDescription:
    """What a net expects of images of which there are no statistics."""
    ones, names = np.ones(data.image_shape[-1:], np.float32), ("",) * data.num_classes
    return InputDescription(data.image_shape, 0 * ones, ones, names, color_values=ones, color_vectors=np.diag(ones))


def _arguments(config: Any, data: Data, state: Any, mesh: Mesh) -> tuple:
    """The step's arguments, as shapes."""
    whole, divided = replicated(mesh), split_batch(mesh)

    def abstract(shape, dtype, sharding=whole):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    carried = jax.tree.map(lambda leaf: abstract(leaf.shape, leaf.dtype), (state, jax.eval_shape(Progress.zero)))
    if config.data.pipeline == "resident":
        count = data.examples
        split = ResidentData(abstract((count, *data.image_shape), jnp.uint8), abstract((count,), jnp.int32))
        return (*carried, abstract((), jnp.int32), split, abstract((2 * count,), jnp.int32), abstract((), jnp.int32))
    size = config.train.batch_size
    images = abstract((size, *data.image_shape), jnp.uint8, divided)
    return (*carried, images, abstract((size,), jnp.int32, divided), abstract((size,), jnp.float32, divided))
