"""Weight files of every kind that is known, recognised from what is in them."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from resnet_jax.data.input_description import InputDescription
from resnet_jax.models.registry import name_of
from resnet_jax.models.resnet import ResNet
from resnet_jax.pretrained.caffe.caffe_file import is_caffemodel
from resnet_jax.pretrained.caffe.msra_layout import read_msra
from resnet_jax.pretrained.inputs import cifar_input, msra_input, torchvision_input
from resnet_jax.pretrained.pytorch.huggingface_layout import infer_huggingface
from resnet_jax.pretrained.pytorch.infer_torch import infer_timm, infer_torch
from resnet_jax.pretrained.pytorch.safe_torch import is_torch, read_torch
from resnet_jax.pretrained.pytorch.torch_variables import TorchNet, read_variables
from resnet_jax.pretrained.safetensors_file import is_safetensors, read_safetensors
from resnet_jax.pretrained.stated_inputs import StatedInput, huggingface_input, timm_input
from resnet_jax.pretrained.stored_tensor import StoredTensor
from resnet_jax.pretrained.weight_file import WeightFile
from resnet_jax.pretrained.weights import METADATA_KEY, read_weights
from resnet_jax.pretrained.zoo import catalogue_entry, fetch, list_pretrained

_log = logging.getLogger(__name__)

FORMATS = ("resnet_jax", "torchvision", "timm", "huggingface", "cifar_th", "msra")

# An error may quote what a file holds.
_LONGEST_MESSAGE = 1000
_LARGEST_JSON_BYTES = 4 * 2**20
# What the libraries call the weights in a net's folder.
_IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")
_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"


def load_weights(path: str | os.PathLike, *, format: str | None = None, stride_in: str | None = None) -> WeightFile:
    """Reads a net from a weight file, which may be from anywhere.

    Read are: this library's own files; torchvision's and timm's ResNets, state dicts as .pth or .safetensors; folders
    of timm and Hugging Face (config.json beside the weights); the public CIFAR nets (.th); the authors' .caffemodel
    files. Which it is shows in the content, and so do depth, shortcuts and classes. Nothing in a file is run or
    followed, sizes are checked before an array is read, and PyTorch, TensorFlow or Caffe are not needed.

    Args:
      path: the file or folder, or the name of a net in the catalogue, see `list_pretrained`.
      format: one of `FORMATS`, which the content must then agree with. It decides where content cannot: a bare state
        dict has torchvision's and timm's names alike, and is taken for torchvision's, which were tested with
        another resizing.
      stride_in: the layer of a bottleneck that takes the stride, where the file does not say it, as no state dict
        does; None is "3x3", as in all of those libraries.

    Raises:
      FileNotFoundError: there is no such file, and no net of that name.
      ConnectionError: a net of the catalogue can neither be downloaded nor is it in the cache.
      ValueError: it is something else, damaged, or a net that cannot be expressed here; the message names the file
        and the first thing that is wrong.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"format={format!r} is not one of {', '.join(FORMATS)}")
    if not Path(path).exists():
        if os.fspath(path) in list_pretrained():
            return _from_catalogue(os.fspath(path))
        raise FileNotFoundError(f"{path}: no such file, and no net of that name; see resnet_jax.list_pretrained()")
    try:
        found, file = _read(Path(path), format, stride_in)
        if format not in (None, found):
            raise ValueError(f"its format is {found}, not {format}")
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}: ")[:_LONGEST_MESSAGE]
        raise ValueError(f"{path} is no weight file that can be used: {reason}") from error
    return file


def _from_catalogue(name: str) -> WeightFile:
    entry = catalogue_entry(name)
    file = load_weights(fetch(name), format=entry.format)
    source, metrics = f"{entry.source}, {entry.file.url}", dict(entry.metrics)
    return replace(file, input=entry.input, name=entry.model, metrics=metrics, source=source, license=entry.license)


def _read(path: Path, format: str | None, stride_in: str | None) -> tuple[str, WeightFile]:
    """The format that the content shows, and the net."""
    if path.is_dir():
        return _read_folder(path, stride_in)
    if path.name in _IN_FOLDERS and (path.parent / _CONFIG).is_file():
        return _read_folder(path.parent, stride_in)
    if not path.is_file():
        raise ValueError("not a file")
    if is_caffemodel(path) and not is_safetensors(path):
        model, variables = read_msra(path)
        return "msra", _file(model, variables, msra_input, channels=3)
    tensors, metadata = _read_tensors(path)
    if METADATA_KEY in metadata:
        return "resnet_jax", read_weights(tensors, metadata)
    net = infer_torch(tensors, stride_in=stride_in)
    if net.model.stem == "cifar":
        return "cifar_th", _file(net.model, read_variables(net, tensors), cifar_input, channels=net.channels)
    if format == "timm":
        stated = timm_input({}, num_classes=net.model.num_classes or 0)
        return "timm", _stated_file(net, tensors, stated)
    return "torchvision", _file(net.model, read_variables(net, tensors), torchvision_input, channels=net.channels)


def _read_folder(folder: Path, stride_in: str | None) -> tuple[str, WeightFile]:
    """A folder in which the weights lie beside a config.json."""
    config = _read_json(folder / _CONFIG)
    weights = next((folder / name for name in _IN_FOLDERS if (folder / name).is_file()), None)
    if weights is None:
        raise ValueError(f"the folder has neither {' nor '.join(_IN_FOLDERS)}")
    tensors, _ = _read_tensors(weights)
    if "architecture" in config:
        net = infer_timm(config, tensors, stride_in=stride_in)
        return "timm", _stated_file(net, tensors, timm_input(config, num_classes=net.model.num_classes or 0))
    net = infer_huggingface(config, tensors)
    if not (folder / _PREPROCESSOR).is_file():
        return "huggingface", _stated_file(net, tensors, StatedInput(None, f"the folder has no {_PREPROCESSOR}"))
    preprocessor = _read_json(folder / _PREPROCESSOR)
    stated = huggingface_input(preprocessor, config, num_classes=net.model.num_classes or 0)
    return "huggingface", _stated_file(net, tensors, stated)


def _read_tensors(path: Path) -> tuple[Mapping[str, StoredTensor], Mapping[str, str]]:
    if is_safetensors(path):
        return read_safetensors(path)
    if is_torch(path):
        return read_torch(path), {}
    if path.suffix == ".safetensors":
        # The content shows nothing; the name says which reader shall say what is wrong with it.
        return read_safetensors(path)
    kinds = "safetensors, a state dict that torch.save wrote, a .caffemodel"
    raise ValueError(f"the content is none of those known ({kinds}), or it is damaged")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"the folder has no {path.name}")
    if path.stat().st_size > _LARGEST_JSON_BYTES:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes; allowed are {_LARGEST_JSON_BYTES}")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} must be a JSON object, found {type(content).__name__}")
    return content


def _stated_file(net: TorchNet, tensors: Mapping[str, StoredTensor], stated: StatedInput) -> WeightFile:
    if stated.reason is not None:
        _log.warning("what the net expects of its input is not known: %s", stated.reason)
    return WeightFile(net.model, read_variables(net, tensors), stated.input, name_of(net.model))


def _file(model: ResNet, variables: dict, input: Callable[[int], InputDescription], *, channels: int) -> WeightFile:
    """A net whose file says nothing of its input, which is taken to be as for others from there, of RGB images."""
    return WeightFile(model, variables, input(model.num_classes or 0) if channels == 3 else None, name_of(model))
