"""Tests the public CIFAR ResNet-20 in PyTorch and here on the same pixels, image by image.

It needs PyTorch besides this library. The net is written out here in plain PyTorch, after the file's own names.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from resnet_jax import evaluate, load_config, load_weights
from resnet_jax.atomic_files import write_text_atomically
from resnet_jax.data.arrays import load_arrays
from resnet_jax.data.datasets import dataset_info
from resnet_jax.environment import environment
from resnet_jax.evaluation.scores import Scores

HERE = Path(__file__).parent
# What the net was trained with, in units of pixels from 0 to 1.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 500


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.new_channels = stride, outputs - inputs

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            half = self.new_channels // 2
            shortcut = F.pad(shortcut, (0, 0, 0, 0, half, half))
        return F.relu(y + shortcut)


class Net(nn.Module):
    """Section 4.2 with 20 layers and shortcut option A, half of the new channels before the old ones."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for stage, (inputs, outputs) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
            first = Block(inputs, outputs, 1 if stage == 1 else 2)
            self.add_module(f"layer{stage}", nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(2))))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def torch_logits(weights: Path, images: np.ndarray) -> np.ndarray:
    """The logits of uint8 images [n, 32, 32, 3]."""
    stored = torch.load(weights, weights_only=True, map_location="cpu")["state_dict"]
    net = Net().eval()
    net.load_state_dict({name.removeprefix("module."): value for name, value in stored.items()})
    normal = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - channels(MEAN)) / channels(STD)
    with torch.no_grad():
        return torch.cat([net(normal[start : start + BATCH]) for start in range(0, len(images), BATCH)]).numpy()


def channels(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values)[None, :, None, None]


def compare(weights: Path, data_dir: Path, scores_file: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Both errors and their differences, and PyTorch's logits."""
    config = load_config("cifar10:resnet20", {"data.data_dir": str(data_dir)})
    ours = evaluate([], weights=[weights], config=config, save_scores=scores_file)["members"][0]
    images, labels = load_arrays(dataset_info("cifar10", data_dir=str(data_dir)), "test")
    expected, found = torch_logits(weights, images), Scores.load(scores_file).logits
    largest = np.abs(expected).max(axis=1, keepdims=True)
    return {
        "resnet_jax": ours,
        "torch": {"error_top1": float((expected.argmax(1) != labels).mean()), "count": len(labels)},
        "predictions_that_agree": int((expected.argmax(1) == found.argmax(1)).sum()),
        "largest_relative_difference_of_logits": float((np.abs(expected - found) / largest).max()),
        "source": load_weights(weights).source,
    }, expected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="cifar_resnet20.th")
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of TFDS data sets with cifar10")
    parser.add_argument("--fixture", type=Path, help="where to keep PyTorch's answers for the tests: NAME.npz")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        comparison, expected = compare(flags.weights, flags.data_dir, Path(folder) / "scores.npz")
    record = {**comparison, **environment(), "reference_versions": {"torch": torch.__version__}}
    write_text_atomically(HERE / "records" / "cifar10.json", json.dumps(record, indent=2) + "\n")
    print(json.dumps(comparison, indent=2))
    if flags.fixture:
        predictions = expected.argmax(1).astype(np.uint8)
        np.savez_compressed(flags.fixture, predictions=predictions, logits=expected[:1000])


if __name__ == "__main__":
    main()
