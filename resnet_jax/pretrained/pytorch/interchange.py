"""Files for PyTorch's libraries: a net in torchvision's names, or a folder for timm or Hugging Face."""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from resnet_jax.atomic_files import open_atomically, unfinished_path, write_text_atomically
from resnet_jax.data.input_description import InputDescription
from resnet_jax.models.arrangements import NORMALIZING
from resnet_jax.models.resnet import ResNet
from resnet_jax.pretrained.pytorch.huggingface_layout import net_config
from resnet_jax.pretrained.pytorch.torch_input import PILLOW_NUMBERS, describe_view
from resnet_jax.pretrained.pytorch.torch_layout import huggingface_spelling, torchvision_spelling
from resnet_jax.pretrained.pytorch.torch_variables import torch_tensors

_TENSORS = "model.safetensors"
_TIMM_NAMES: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}


def write_torchvision(path: str | os.PathLike, model: ResNet, variables: Mapping[str, Any]) -> Path:
    """Writes a net in torchvision's names, which `load_state_dict(safetensors.torch.load_file(path))` takes.

    The module for it is torchvision's `resnet18` to `resnet152` with `num_classes`, or its `ResNet` with these stage
    sizes. Stacked blocks are written one by one, a frozen batch normalization as an ordinary one.

    Args:
      path: NAME.safetensors.
      model: a net of four stages, width 64, shortcut "B", its bottlenecks with stride_in "3x3".
      variables: its {"params", "batch_stats"}.

    Returns:
      The path written.

    Raises:
      ValueError: another ending, variables that are not the net's, or a net that torchvision has no module for.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"the file must be called NAME.safetensors, found {path.name!r}")
    _check_torchvision(model, "torchvision")
    _write_tensors(path, torch_tensors(model, variables, torchvision_spelling()))
    return path


def write_timm(
    folder: str | os.PathLike, model: ResNet, variables: Mapping[str, Any], *, input: InputDescription
) -> Path:
    """Writes a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` takes.

    It holds config.json, which says what the net expects of its input, and model.safetensors.

    Args:
      folder: a new or an empty one; it appears when it is complete.
      model: a net of 18, 34, 50, 101 or 152 layers of width 64, shortcut "B", its bottlenecks with stride_in "3x3".
      variables: its {"params", "batch_stats"}.
      input: what it expects.

    Returns:
      The folder.

    Raises:
      FileExistsError: a folder that is not empty.
      ValueError: variables that are not the net's, or a net or an input that timm cannot express.
    """
    _check_torchvision(model, "timm")
    architecture = _TIMM_NAMES.get((model.block, tuple(model.stage_sizes)))
    if architecture is None:
        raise ValueError(f"timm has no net of {model.block} blocks with stage_sizes={tuple(model.stage_sizes)}")
    view = describe_view(input, model, library="timm")
    config = {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": 512 if model.block == "basic" else 2048,
        "pretrained_cfg": {
            "input_size": [3, view.side, view.side],
            "interpolation": view.interpolation,
            "crop_pct": view.crop_fraction,
            "crop_mode": "center",
            "mean": view.mean,
            "std": view.std,
            "num_classes": model.num_classes,
            "label_names": list(input.class_names),
            "first_conv": "conv1",
            "classifier": "fc",
            "pool_size": [math.ceil(view.side / model.total_stride)] * 2,
        },
    }
    tensors = torch_tensors(model, variables, torchvision_spelling())
    return _write_folder(folder, {"config.json": config}, tensors)


def write_huggingface(
    folder: str | os.PathLike, model: ResNet, variables: Mapping[str, Any], *, input: InputDescription
) -> Path:
    """Writes a folder that Hugging Face's `ResNetForImageClassification.from_pretrained(FOLDER)` takes.

    It holds config.json with the classes' names, preprocessor_config.json, which `AutoImageProcessor` takes, and
    model.safetensors.

    Args:
      folder: a new or an empty one; it appears when it is complete.
      model: a net with the imagenet stem and shortcut "B", of any width, depth and number of stages.
      variables: its {"params", "batch_stats"}.
      input: what it expects.

    Returns:
      The folder.

    Raises:
      FileExistsError: a folder that is not empty.
      ValueError: variables that are not the net's, or a net or an input that Hugging Face's classes cannot express.
    """
    _check_net(model, "Hugging Face")
    view = describe_view(input, model, library="Hugging Face")
    names = {str(number): name for number, name in enumerate(input.class_names)}
    config = {
        **net_config(model, channels=3),
        "architectures": ["ResNetForImageClassification"],
        "dtype": "float32",
        "id2label": names,
        "label2id": {name: int(number) for number, name in names.items()},
    }
    processor = {
        "image_processor_type": "ConvNextImageProcessor",
        "do_resize": input.short_side is not None,
        "size": {"shortest_edge": view.side},
        "crop_pct": view.crop_fraction,
        "resample": PILLOW_NUMBERS[view.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": view.mean,
        "image_std": view.std,
    }
    tensors = torch_tensors(model, variables, huggingface_spelling())
    return _write_folder(folder, {"config.json": config, "preprocessor_config.json": processor}, tensors)


def check_new_folder(folder: str | os.PathLike) -> None:
    """Raises a FileExistsError unless the folder is empty or not there; a link to one is refused, too."""
    folder = Path(folder)
    if folder.is_symlink() or folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; choose a new folder or an empty one")


def _check_net(model: ResNet, library: str) -> None:
    """What torchvision, timm and Hugging Face all lack."""
    if model.norm not in NORMALIZING:
        allowed = " and ".join(map(repr, NORMALIZING))
        raise ValueError(f"{library} has no nets with norm={model.norm!r}; only {allowed} can be written")
    if model.shortcut is None:
        raise ValueError(f"{library} has no plain nets: shortcut=None cannot be written")
    for name, only in (
        ("activation_order", "post"),
        ("stem", "imagenet"),
        ("shortcut", "B"),
        ("pool_padding", "both"),
    ):
        if (found := getattr(model, name)) != only:
            raise ValueError(f"{library} has no nets with {name}={found!r}; only {only!r} can be written")
    if model.num_classes is None:
        raise ValueError(f"{library} loads nets with a classifier; num_classes=None cannot be written")


def _check_torchvision(model: ResNet, library: str) -> None:
    _check_net(model, library)
    if model.block == "bottleneck" and model.stride_in != "3x3":
        raise ValueError(
            f"{library} has no nets with stride_in={model.stride_in!r}, only '3x3'; Hugging Face's can be written"
        )
    if model.width != 64 or len(model.stage_sizes) != 4:
        raise ValueError(
            f"{library} has only nets of four stages and width 64, found {len(model.stage_sizes)} and {model.width}"
        )


def _write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    # Hugging Face's loading asks for this entry.
    with open_atomically(path) as file:
        file.write(save(dict(tensors), metadata={"format": "pt"}))


def _write_folder(folder: str | os.PathLike, documents: dict[str, dict], tensors: Mapping[str, np.ndarray]) -> Path:
    folder = Path(folder)
    with _new_folder(folder) as unfinished:
        _write_tensors(unfinished / _TENSORS, tensors)
        for name, document in documents.items():
            write_text_atomically(unfinished / name, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return folder


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name at the end of the block, or disappears if the block fails."""
    check_new_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_path(folder)
    unfinished.mkdir()
    try:
        yield unfinished
        try:
            os.replace(unfinished, folder)
        except OSError:
            check_new_folder(folder)  # another may have filled it meanwhile
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
