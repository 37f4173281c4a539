"""This library's own weight files: one net and what it needs to be used, in one file of the safetensors format."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save

from resnet_jax.atomic_files import open_atomically
from resnet_jax.data.input_description import InputDescription
from resnet_jax.models.resnet import ResNet
from resnet_jax.pretrained.description import Description, input_settings, plain_metrics
from resnet_jax.pretrained.layout import (
    MEAN,
    STD,
    check_layout,
    check_size,
    image_channels,
    tensor_name,
    variable_shapes,
)
from resnet_jax.pretrained.stored_tensor import StoredTensor
from resnet_jax.pretrained.weight_file import WeightFile

METADATA_KEY = "resnet_jax"


def save_pretrained(
    path: str | os.PathLike,
    model: ResNet,
    variables: Mapping[str, Any],
    *,
    input: InputDescription | None = None,
    name: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    source: str | None = None,
    license: str | None = None,
) -> Path:
    """Writes a net into one weight file, whole or not at all; folders that are missing are made.

    Everything is in the one file, so nothing can be torn apart: the variables under their paths
    ("params/stage1_block1/conv1/kernel"), "input/mean" and "input/std", and under the metadata's key "resnet_jax" a
    JSON document with the rest. A net with `scan=True` is kept stacked, as it is.

    Args:
      path: NAME.safetensors.
      model: the net.
      variables: its {"params", "batch_stats"}; values that are not finite are kept.
      input: what the net expects of its input, as many class names as the net has classes.
      name: what the net is called, e.g. "cifar_resnet20". A label: the net is made from its settings again.
      metrics: numbers that were measured, e.g. {"error_top1": 0.0875}.
      source: where the parameters are from.
      license: on what terms they may be used.

    Returns:
      The path written.

    Raises:
      ValueError: another ending, variables that are not the net's, or a description that cannot be kept.

    Example:
      >>> import tempfile, resnet_jax
      >>> model = resnet_jax.create_model("cifar_resnet8", width=4)
      >>> variables = resnet_jax.initialize(model, jax.random.key(0), (8, 8, 3))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = save_pretrained(f"{folder}/net.safetensors", model, variables, metrics={"error_top1": 0.9})
      ...     same_model, same_variables = resnet_jax.load_pretrained(path)
      >>> same_model == model, jax.tree.all(jax.tree.map(np.array_equal, variables, same_variables))
      (True, True)
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"weights are saved as NAME.safetensors, found {path.name!r}")
    leaves = jax.tree.leaves_with_path(dict(variables))
    # The format takes an array's memory as it lies.
    tensors = {tensor_name(place): np.asarray(leaf, order="C") for place, leaf in leaves}
    if input is not None:
        tensors |= {MEAN: np.asarray(input.mean, order="C"), STD: np.asarray(input.std, order="C")}
    settings = None if input is None else input_settings(input)
    try:
        text = Description(model, settings, name, plain_metrics(metrics or {}), source, license).to_json()
        found = {name: (array.dtype.name, array.shape) for name, array in tensors.items()}
        check_layout(found, Description.from_json(text))
        check_statistics(tensors)
    except ValueError as error:
        raise ValueError(f"{path} was not written: {error}") from error
    with open_atomically(path) as file:
        # `save_file` would make it readable to its owner alone, whatever the umask.
        file.write(save(tensors, metadata={METADATA_KEY: text}))
    return path


def read_weights(stored: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> WeightFile:
    """Makes a net of a file's tensors and metadata, which may be from anywhere.

    Nothing in them is run or followed, and all of it is checked before an array is read: the settings, and that the
    tensors are the net's, each of its shape and dtype, and no others.

    Raises:
      ValueError: it is something else, or made by a release that writes another format; the first thing that is
        wrong is named.
    """
    if METADATA_KEY not in metadata:
        raise ValueError(f"its metadata has no {METADATA_KEY!r}, which save_pretrained writes")
    description = Description.from_json(metadata[METADATA_KEY])
    layout = {name: (tensor.dtype, tensor.shape) for name, tensor in stored.items()}
    check_size(layout, description)
    check_layout(layout, description)
    statistics = {name: stored[name].read() for name in (MEAN, STD) if name in stored}
    check_statistics(statistics)
    shapes = variable_shapes(description.model, image_channels(description, layout))
    return WeightFile(
        model=description.model,
        variables=jax.tree.map_with_path(lambda place, _: stored[tensor_name(place)].read(), shapes),
        input=_input(description, statistics),
        name=description.name,
        metrics=description.metrics,
        source=description.source,
        license=description.license,
    )


def check_statistics(tensors: Mapping[str, np.ndarray]) -> None:
    """Raises a ValueError unless the input's mean and std, where they are among the tensors, can normalise."""
    if MEAN in tensors and not np.isfinite(tensors[MEAN]).all():
        raise ValueError(f"tensor {MEAN} must be finite")
    if STD in tensors and not (np.isfinite(tensors[STD]) & (tensors[STD] > 0)).all():
        raise ValueError(f"tensor {STD} must be finite and above 0")


def _input(description: Description, tensors: Mapping[str, np.ndarray]) -> InputDescription | None:
    if description.input is None:
        return None
    fields = {key: description.input[key] for key in ("short_side", "resize", "source")}
    height, width, channels = description.input["image_shape"]
    names = tuple(description.input["class_names"])
    return InputDescription((height, width, channels), tensors[MEAN], tensors[STD], names, **fields)
