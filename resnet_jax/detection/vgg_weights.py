"""VGG-16's parameters from torchvision's files, for the paper's baseline detector."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from resnet_jax.data.input_description import InputDescription
from resnet_jax.pretrained.pytorch.safe_torch import read_torch
from resnet_jax.pretrained.safetensors_file import is_safetensors, read_safetensors
from resnet_jax.pretrained.stored_tensor import StoredTensor

# Of torchvision's `features`, ReLU and maxima counted, by stage.
_CONVOLUTIONS = {
    f"conv{stage}_{number}": f"features.{index}"
    for stage, indices in enumerate(((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)), 1)
    for number, index in enumerate(indices, 1)
}
_DENSE = {"fc6": "classifier.0", "fc7": "classifier.3"}
# Of the images that torchvision's nets were trained on, of pixels from 0 to 255.
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def load_vgg16(path: str | os.PathLike) -> tuple[dict, dict, InputDescription]:
    """Reads torchvision's vgg16, a `.pth` or a safetensors file of its state dict; nothing in it is run.

    Returns:
      The parameters of `VggTrunk` and of `VggTail`, and what they expect of their input, without classes.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is another net's, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    tensors = read_safetensors(path)[0] if is_safetensors(path) else read_torch(path)
    trunk = {ours: _layer(tensors, path, theirs, rank=4) for ours, theirs in _CONVOLUTIONS.items()}
    tail = {ours: _layer(tensors, path, theirs, rank=2) for ours, theirs in _DENSE.items()}
    tail["fc6"]["kernel"] = rows_last(tail["fc6"]["kernel"], channels=trunk["conv5_3"]["bias"].size)
    mean, std = np.array(_MEAN, np.float32), np.array(_STD, np.float32)
    return trunk, tail, InputDescription((224, 224, 3), mean, std, (), source="stated: torchvision's vgg16")


def rows_last(kernel: Float32[np.ndarray, "i o"], *, channels: int) -> Float32[np.ndarray, "i o"]:
    """A dense kernel of maps that were flattened channel by channel, for maps that are flattened pixel by pixel."""
    side = round((kernel.shape[0] / channels) ** 0.5)
    if channels * side * side != kernel.shape[0]:
        raise ValueError(f"fc6 has {kernel.shape[0]} inputs, which are no square of {channels} channels")
    return kernel.reshape(channels, side * side, -1).swapaxes(0, 1).reshape(kernel.shape)


def _layer(tensors: Mapping[str, StoredTensor], path: Path, name: str, *, rank: int) -> dict[str, np.ndarray]:
    found = {}
    for ours, theirs, dimensions in (("kernel", "weight", rank), ("bias", "bias", 1)):
        tensor = tensors.get(f"{name}.{theirs}")
        if tensor is None or len(tensor.shape) != dimensions:
            raise ValueError(f"{path} is not torchvision's vgg16: it has no {name}.{theirs} of {dimensions} dimensions")
        value = tensor.read().astype(np.float32)
        found[ours] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    return found
