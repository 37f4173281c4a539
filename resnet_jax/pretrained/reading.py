"""Weight files of every kind that is known, recognised from what is in them."""

import difflib
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
_STRIDES = ("1x1", "3x3")

# An error may quote what a file holds.
_LONGEST_MESSAGE = 1000
_LARGEST_JSON_BYTES = 4 * 2**20
# What the libraries call the weights in a net's folder.
_IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")
_SHARDED = "model.safetensors.index.json"
_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
# Keys that tell timm's and Hugging Face's config.json from others.
_CONFIG_KEYS = ("architecture", "model_type", "architectures")


def load_weights(path: str | os.PathLike, *, format: str | None = None, stride_in: str | None = None) -> WeightFile:
    """Reads a net from a weight file, which may be from anywhere.

    Read are: this library's own files; torchvision's and timm's ResNets, state dicts as .pth or .safetensors; folders
    of timm and Hugging Face (config.json beside the weights); the public CIFAR nets (.th); the authors' .caffemodel
    files. Which it is shows in the content, and so do depth, shortcuts and classes. Nothing in a file is run or
    followed, sizes are checked before an array is read, and PyTorch, TensorFlow or Caffe are not needed.

    A state dict beside a config.json of timm or Hugging Face is read as that folder's net, whatever the file's name:
    some of their nets have the same tensors as ours and compute something else, which only config.json says.

    Args:
      path: the file or folder, or the name of a net in the catalogue, see `list_pretrained`.
      format: one of `FORMATS`, which the content must then agree with. It decides where content cannot: a bare state
        dict has torchvision's and timm's names alike, and is taken for torchvision's, which were tested with
        another resizing.
      stride_in: the layer of a bottleneck that takes the stride, "1x1" or "3x3", where the file does not say it, as
        no state dict does; None is "3x3", as in all of those libraries. Where it is said, the two must agree.

    Raises:
      FileNotFoundError: there is no such file, and no net of that name.
      ConnectionError: a net of the catalogue can neither be downloaded nor is it in the cache.
      ValueError: it is something else, damaged, or a net that cannot be expressed here, or the arguments or the
        catalogue contradict it; the message names the file and the first thing that is wrong.
    """
    for name, value, allowed in (("format", format, FORMATS), ("stride_in", stride_in, _STRIDES)):
        if value is not None and value not in allowed:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")
    if not Path(path).exists():
        if os.fspath(path) in list_pretrained():
            return _from_catalogue(os.fspath(path), format, stride_in)
        raise FileNotFoundError(f"{path}: no such file, and no net of that name; {_names_like(os.fspath(path))}")
    return _load(Path(path), format, stride_in, alone=False)


def _names_like(text: str) -> str:
    close = difflib.get_close_matches(text, list_pretrained(), n=3)
    return f"did you mean {' or '.join(close)}?" if close else "see resnet_jax.list_pretrained()"


def _from_catalogue(name: str, format: str | None, stride_in: str | None) -> WeightFile:
    entry = catalogue_entry(name)
    if format not in (None, entry.format):
        raise ValueError(f"{name}: its format is {entry.format}, not {format}")
    # Beside it in the cache lies nothing that the catalogue vouches for.
    file = _load(fetch(name), entry.format, stride_in, alone=True)
    found = (name_of(file.model), file.model.num_classes)
    if found != (entry.model, len(entry.input.class_names)):
        raise ValueError(
            f"{name}: the catalogue says {entry.model} with {len(entry.input.class_names)} classes; the file holds "
            f"{found[0] or 'a net without a name'} with {found[1] or 'no'} classes"
        )
    source, metrics = f"{entry.source}, {entry.file.url}", dict(entry.metrics)
    return replace(file, input=entry.input, name=entry.model, metrics=metrics, source=source, license=entry.license)


def _load(path: Path, format: str | None, stride_in: str | None, *, alone: bool) -> WeightFile:
    before = _state_of(path)
    try:
        found, file = _read(path, format, stride_in, alone=alone)
        if _state_of(path) != before:
            raise ValueError("it was changed while it was read; once more, when whoever writes it is done")
        if format not in (None, found):
            raise ValueError(f"its format is {found}, not {format}")
        if stride_in is not None and file.model.block == "basic":
            raise ValueError(f"stride_in={stride_in!r}: its blocks are basic; leave stride_in out")
        if stride_in not in (None, file.model.stride_in):
            raise ValueError(f"stride_in={stride_in!r}: the file says {file.model.stride_in!r}")
    except ValueError as error:
        reason = _printable(str(error).removeprefix(f"{path}: ")[:_LONGEST_MESSAGE])[:_LONGEST_MESSAGE]
        raise ValueError(f"{path} is no weight file that can be used: {reason}") from error
    return file


def _state_of(path: Path) -> list[tuple[int, ...]]:
    """What changes if a file, or one of a folder's, is written or replaced; tensors are read from it one by one."""
    files = [path / name for name in (*_IN_FOLDERS, _CONFIG, _PREPROCESSOR)] if path.is_dir() else [path]
    stats = [file.stat() for file in files if file.is_file()]
    return [(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]


def _read(path: Path, format: str | None, stride_in: str | None, *, alone: bool) -> tuple[str, WeightFile]:
    """The format that the content shows, and the net; `alone` without a look at what lies beside the file."""
    if path.is_dir():
        return _read_folder(path, stride_in)
    if not path.is_file():
        raise ValueError("not a file")
    if is_caffemodel(path) and not is_safetensors(path):
        model, variables = read_msra(path)
        return "msra", _file(model, variables, msra_input, channels=3)
    tensors, metadata = _read_tensors(path)
    if METADATA_KEY in metadata:
        return "resnet_jax", read_weights(tensors, metadata)
    if not alone and (path.parent / _CONFIG).is_file():
        try:
            config = _read_json(path.parent / _CONFIG)
            if path.name in _IN_FOLDERS or any(key in config for key in _CONFIG_KEYS):
                return _read_described(tensors, config, path.parent, stride_in)
        except ValueError as error:
            raise ValueError(f"{_CONFIG} lies beside it (if another net's, move the file away): {error}") from error
    net = infer_torch(tensors, stride_in=stride_in)
    if net.model.stem == "cifar":
        return "cifar_th", _file(net.model, read_variables(net, tensors), cifar_input, channels=net.channels)
    if format == "timm":
        stated = timm_input({}, num_classes=net.model.num_classes or 0, channels=net.channels)
        file = _stated_file(net, tensors, stated)
        return "timm", replace(file, input=file.input and replace(file.input, source="assumed: timm's own defaults"))
    return "torchvision", _file(net.model, read_variables(net, tensors), torchvision_input, channels=net.channels)


def _read_folder(folder: Path, stride_in: str | None) -> tuple[str, WeightFile]:
    """A folder in which the weights lie beside a config.json."""
    if (folder / "checkpoints").is_dir():
        raise ValueError("it is the workdir of a run: workdir= (--workdir) takes it")
    if (folder / _SHARDED).is_file():
        raise ValueError(f"its tensors are in several files ({_SHARDED}); save it with a larger max_shard_size")
    config = _read_json(folder / _CONFIG)
    weights = next((folder / name for name in _IN_FOLDERS if (folder / name).is_file()), None)
    if weights is None:
        raise ValueError(f"the folder has neither {' nor '.join(_IN_FOLDERS)}")
    tensors, _ = _read_tensors(weights)
    return _read_described(tensors, config, folder, stride_in)


def _read_described(
    tensors: Mapping[str, StoredTensor], config: dict[str, Any], folder: Path, stride_in: str | None
) -> tuple[str, WeightFile]:
    """The net of these tensors that the folder's config.json describes, as timm does or else Hugging Face."""
    if "architecture" in config:
        net = infer_timm(config, tensors, stride_in=stride_in)
        stated = timm_input(config, num_classes=net.model.num_classes or 0, channels=net.channels)
        return "timm", _stated_file(net, tensors, stated)
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


def _printable(text: str) -> str:
    """The text with escapes for what a terminal would obey or no file could hold: names in it are a file's."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _stated_file(net: TorchNet, tensors: Mapping[str, StoredTensor], stated: StatedInput) -> WeightFile:
    if stated.reason is not None:
        _log.warning("what the net expects of its input is not known: %s", _printable(stated.reason))
    return WeightFile(net.model, read_variables(net, tensors), stated.input, name_of(net.model))


def _file(model: ResNet, variables: dict, input: Callable[[int], InputDescription], *, channels: int) -> WeightFile:
    """A net whose file says nothing of its input, which is taken to be as for others from there, of RGB images."""
    return WeightFile(model, variables, input(model.num_classes or 0) if channels == 3 else None, name_of(model))
