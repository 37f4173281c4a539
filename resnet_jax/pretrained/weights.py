"""Weight files: one net and what it needs to be used, in one file of the safetensors format."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from resnet_jax.atomic_files import open_atomically
from resnet_jax.data.input_description import InputDescription
from resnet_jax.models.blocks import he_normal
from resnet_jax.models.resnet import ResNet
from resnet_jax.pretrained.description import Description, input_settings, plain_metrics
from resnet_jax.pretrained.layout import (
    MEAN,
    STD,
    Layout,
    check_layout,
    check_size,
    image_channels,
    tensor_name,
    variable_shapes,
)
from resnet_jax.pretrained.net_settings import make_net, net_settings

_METADATA_KEY = "resnet_jax"
# 6,000 tensors, those of 1202 layers one by one, take 0.7 MB, and the description at most twice its own size.
_LARGEST_HEADER_BYTES = 16 * 2**20
# An error may quote what a file holds.
_LONGEST_MESSAGE = 1000


@dataclass(frozen=True)
class WeightFile:
    """What a weight file holds.

    Attributes:
      model: the net.
      variables: {"params", "batch_stats"}, arrays of numpy.
      input: what the net expects of its input; None if the file does not say.
      name: what the net is called, e.g. "cifar_resnet20"; None if the file does not say.
      metrics: numbers that were measured, by name.
      source: where the parameters are from; None if the file does not say.
      license: on what terms they may be used; None if the file does not say.
    """

    model: ResNet
    variables: dict
    input: InputDescription | None
    name: str | None
    metrics: dict[str, int | float]
    source: str | None
    license: str | None


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
        _check_statistics(tensors)
    except ValueError as error:
        raise ValueError(f"{path} was not written: {error}") from error
    with open_atomically(path) as file:
        # `save_file` would make it readable to its owner alone, whatever the umask.
        file.write(save(tensors, metadata={_METADATA_KEY: text}))
    return path


def load_weights(path: str | os.PathLike) -> WeightFile:
    """Reads a weight file, which may be from anywhere.

    Nothing in it is run or followed, and all of it is checked before an array is read: the file's own lengths, the
    settings, and that the tensors are the net's, each of its shape and dtype, and no others.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is something else, damaged, or made by a release that writes another format; the message names
        the file and the first thing that is wrong.
    """
    path = Path(path)
    try:
        _check_header_length(path)
        with safe_open(path, framework="np") as file:
            description, layout = _read_header(file)
            check_layout(layout, description)
            tensors = {name: file.get_tensor(name) for name in layout}
        _check_statistics(tensors)
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"{path} is no weight file that can be used: {str(error)[:_LONGEST_MESSAGE]}") from error
    shapes = variable_shapes(description.model, image_channels(description, layout))
    return WeightFile(
        model=description.model,
        variables=jax.tree.map_with_path(lambda place, _: tensors[tensor_name(place)], shapes),
        input=_input(description, tensors),
        name=description.name,
        metrics=description.metrics,
        source=description.source,
        license=description.license,
    )


def load_pretrained(
    path: str | os.PathLike, *, num_classes: int | None = None, key: jax.Array | None = None
) -> tuple[ResNet, dict]:
    """Reads a net from a weight file, to use in one's own code; `load_weights` also reads what it expects as input.

    Args:
      path: what `save_pretrained` wrote.
      num_classes: gives the net a new classifier of that many classes, as it is before training (He initialised, its
        biases 0), and keeps everything else; None keeps the file's.
      key: a PRNG key for the new classifier; None is `jax.random.key(0)`.

    Returns:
      The module and its variables {"params", "batch_stats"}, on the first device.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: num_classes is below 1, or the file is none that can be used, see `load_weights`.
    """
    file = load_weights(path)
    model, variables = file.model, file.variables
    if num_classes is not None:
        model = make_net({**net_settings(model), "num_classes": num_classes})
        channels = variables["params"]["stem"]["conv"]["kernel"].shape[2]
        features = variable_shapes(model, channels)["params"]["classifier"]["kernel"].shape[0]
        head = nn.Dense(num_classes, kernel_init=he_normal)
        new = head.init(jax.random.key(0) if key is None else key, jnp.zeros((1, features)))["params"]
        variables = {**variables, "params": {**variables["params"], "classifier": new}}
    return model, jax.device_put(variables)


def _check_header_length(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise ValueError("not a file")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError(f"the file has {size} bytes, its header claims {length}: it is cut off or of another kind")
    if length > _LARGEST_HEADER_BYTES:
        raise ValueError(f"the header has {length} bytes; allowed are {_LARGEST_HEADER_BYTES}")


def _read_header(file: Any) -> tuple[Description, Layout]:
    metadata = file.metadata() or {}
    if _METADATA_KEY not in metadata:
        raise ValueError(f"its metadata has no {_METADATA_KEY!r}, which save_pretrained writes")
    description = Description.from_json(metadata[_METADATA_KEY])
    layout: Layout = {}
    for name in file.keys():
        tensor = file.get_slice(name)
        dtype = tensor.get_dtype()
        layout[name] = ("float32" if dtype == "F32" else dtype, tuple(tensor.get_shape()))
    check_size(layout, description)
    return description, layout


def _check_statistics(tensors: Mapping[str, np.ndarray]) -> None:
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
