"""Which tensors a net's weight file has to hold: their names, dtypes and shapes."""

import math
from functools import lru_cache

import jax
import jax.numpy as jnp

from resnet_jax.models.arrangements import NORMALIZING
from resnet_jax.models.resnet import ResNet
from resnet_jax.pretrained.description import Description

MEAN, STD, _STEM = "input/mean", "input/std", "params/stem/conv/kernel"

# Of a block without projection: the kernels, and each one's scale, bias, mean and variance, or its bias alone.
_BLOCK_TENSORS = {"basic": 10, "bottleneck": 15}
_BLOCK_TENSORS_UNNORMALIZED = {"basic": 4, "bottleneck": 6}

# Name -> dtype and shape.
Layout = dict[str, tuple[str, tuple[int, ...]]]


def check_layout(found: Layout, description: Description) -> None:
    """Raises a ValueError that names the first tensor that is missing, different, or none of the description's."""
    expected = _expected_layout(description, image_channels(description, found))
    for name, (dtype, shape) in expected.items():
        if name not in found:
            raise ValueError(f"tensor {name} is missing; the net needs it as {dtype} of shape {shape}")
        if found[name] != (dtype, shape):
            raise ValueError(
                f"tensor {name} is {found[name][0]} of shape {found[name][1]}; the net needs {dtype} of shape {shape}"
            )
    for name in sorted(found.keys() - expected.keys()):
        raise ValueError(f"tensor {name!r} is none that the net has")


def check_size(found: Layout, description: Description) -> None:
    """Raises a ValueError if the net cannot fit the tensors, without building it.

    Otherwise a few bytes of settings could ask for a net that takes hours to build.
    """
    model, values = description.model, sum(math.prod(shape) for _, shape in found.values())
    stages, blocks = len(model.stage_sizes), sum(model.stage_sizes)
    stored = sum(min(size, 2) for size in model.stage_sizes) if model.scan else blocks
    of_block = (_BLOCK_TENSORS if model.norm in NORMALIZING else _BLOCK_TENSORS_UNNORMALIZED)[model.block]
    if stored * of_block <= len(found):
        # Each block has a 3x3 convolution between as many filters as its stage has.
        filters = model.width * 2 ** (stages - 1)
        if max(filters**2, blocks, model.num_classes or 0, image_channels(description, found)) <= values:
            return
    raise ValueError(f"{len(found)} tensors of {values} values in all are too few for the net of these settings")


def image_channels(description: Description, found: Layout) -> int:
    """The images' channels, the one thing about the parameters' shapes that the net's settings leave open."""
    if description.input is not None:
        return description.input["image_shape"][2]
    _, shape = found.get(_STEM, ("", ()))
    return shape[2] if len(shape) == 4 and shape[2] > 0 else 3


# The members of an ensemble are often alike.
@lru_cache(maxsize=8)
def variable_shapes(model: ResNet, channels: int) -> dict:
    """Shapes and dtypes of the net's variables, which do not depend on the images' size.

    Tracing 1202 layers takes seconds, and a file may claim more, so two blocks of a stage stand for all of them.
    """
    images = jax.ShapeDtypeStruct((1, 8, 8, channels), jnp.float32)
    short = model if model.scan else model.clone(stage_sizes=tuple(min(size, 2) for size in model.stage_sizes))
    shapes = dict(jax.eval_shape(lambda x: short.init(jax.random.key(0), x, train=False), images))
    if not model.scan:
        for stage, size in enumerate(model.stage_sizes, 1):
            for block in range(3, size + 1):
                for layers in shapes.values():
                    layers[f"stage{stage}_block{block}"] = layers[f"stage{stage}_block2"]
    return shapes


def tensor_name(place: tuple) -> str:
    """The name of a leaf's tensor: its path in the variables, e.g. "params/stem/conv/kernel"."""
    return jax.tree_util.keystr(place, simple=True, separator="/")


def _expected_layout(description: Description, channels: int) -> Layout:
    leaves = jax.tree.leaves_with_path(variable_shapes(description.model, channels))
    layout: Layout = {tensor_name(place): (leaf.dtype.name, leaf.shape) for place, leaf in leaves}
    if description.input is not None:
        layout[MEAN] = ("float32", tuple(description.input["mean_shape"]))
        layout[STD] = ("float32", tuple(description.input["image_shape"][2:]))
    return layout
