"""What comes out of a net's blocks and 3x3 layers on some images, by their own batch statistics."""

from collections import OrderedDict
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resnet_jax.analysis.block_by_block import parts_of
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.stacking import unstack_blocks


class Activations(NamedTuple):
    """Over all images, positions and channels.

    Attributes:
      means: of each block's output, by the block's name, "stem" and "stage1_block1" and so on, in forward order.
      stds: its standard deviation.
      zeros: share of its elements that are 0, which the last ReLU has let nothing through of.
      responses: standard deviation of what comes out of each 3x3 layer's normalization, before ReLU or addition, by the
        layer's name (the paper's Figure 7); of the nets that `layer_responses` takes alone.
    """

    means: dict[str, float]
    stds: dict[str, float]
    zeros: dict[str, float]
    responses: dict[str, float]


def activations(model: ResNet, variables: dict, images: Float[Array, "n h w c"]) -> Activations:
    """Measures what leaves each block, and each 3x3 layer, while the net trains.

    As in training the images' own statistics normalise; `layer_responses` takes the running ones, which lag behind a
    net that changes, and are none before the first step. Values that are not finite are told as such.

    Args:
      model: the net, of scanned blocks or not.
      variables: its {"params", "batch_stats"}.
      images: normalised images, in one batch; with `bn_group_size` a multiple of it.

    Raises:
      ValueError: images that do not split into groups.
    """
    variables = unstack_blocks(variables)
    names, described, x = [], [], images
    for name, run in parts_of(model.clone(scan=False), use_running_average=False):
        part_variables = {collection: tree.get(name, {}) for collection, tree in variables.items()}
        x, found = run(part_variables, x)
        names.append(name)
        described.append(_describe(x, found))
    *values, layers = zip(*jax.device_get(described), strict=True)
    means, stds, zeros = (dict(zip(names, map(float, own), strict=True)) for own in values)
    if not model.arrangement.last:
        return Activations(means, stds, zeros, {})
    pairs = [
        (f"{name}/{layer}", float(std)) for name, own in zip(names, layers, strict=True) for layer, std in own.items()
    ]
    return Activations(means, stds, zeros, dict(pairs))


@jax.jit
def _describe(x: Array, layers: OrderedDict[str, tuple[Array, Array]]):
    x = x.astype(jnp.float32)
    # Of the means and variances of images and channels, which all have equally many positions.
    of_layers = {name: jnp.sqrt(variance.mean() + mean.var()) for name, (mean, variance) in layers.items()}
    return x.mean(), x.std(), (x == 0).mean(), of_layers
