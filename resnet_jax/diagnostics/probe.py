"""The images that a run is diagnosed on: the first so many of its training split, the same all the time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from resnet_jax.data.datasets import dataset_info
from resnet_jax.data.decode import UndecodableImage, decode
from resnet_jax.data.device_augment import normalize
from resnet_jax.data.examples import Examples
from resnet_jax.data.input_description import InputDescription
from resnet_jax.data.views import CenterView
from resnet_jax.distributed import split_batch

Probe = tuple[Float[Array, "n h w c"], Int[Array, " n"]]


def load_probe(config: Any, input: InputDescription, mesh: Mesh) -> Probe:
    """Normalised images and labels, divided among the devices; every process reads all of them.

    Without augmentation: as they are stored, or of a streamed set the centre crop, as in a test. With
    data.unreadable=skip the next ones stand for those that cannot be decoded.

    Args:
      config: resolved, of classification.
      input: what the net expects of its input.
      mesh: the devices, which `diagnostics.images` is a multiple of.

    Raises:
      UndecodableImage: for an image that cannot be decoded; the message names it.
      ValueError: the split has not so many images that can.
    """
    info = dataset_info(config.data.name, data_dir=config.data.data_dir)
    wanted = config.diagnostics.images
    images, labels = _first(
        Examples(info, config.data.train_split), wanted, _view(input), skip=config.data.unreadable == "skip"
    )
    normal = jax.jit(partial(normalize, mean=input.mean, std=input.std))
    return normal(_divided(images, mesh)), _divided(labels, mesh)


def _view(input: InputDescription) -> Callable[[bytes], np.ndarray]:
    height, _, channels = input.image_shape
    if input.short_side is None:
        return partial(decode, channels=channels)
    return CenterView(height, input.short_side, resize=input.resize, channels=channels)


def _first(
    examples: Examples, wanted: int, view: Callable[[bytes], np.ndarray], *, skip: bool
) -> tuple[np.ndarray, np.ndarray]:
    found: list[tuple[np.ndarray, int]] = []
    for place in range(len(examples)):
        if len(found) == wanted:
            break
        try:
            found.append(examples.decoded(place, view))
        except UndecodableImage:
            if not skip:
                raise
    if len(found) < wanted:
        raise ValueError(f"diagnostics.images={wanted}: split {examples.split!r} has {len(found)} that can be decoded")
    images, labels = zip(*found, strict=True)
    return np.stack(images), np.asarray(labels, np.int32)


def _divided(array: np.ndarray, mesh: Mesh) -> Array:
    return jax.make_array_from_callback(array.shape, split_batch(mesh), lambda rows: array[rows])
