"""Compares nets with torch, torchvision, timm and transformers, live and value by value, and records the differences.

Nets of numbers that follow from the tensors' names (tests/parity_nets.py) are run there and, read by
`resnet_jax.pretrained`, here; nets are written here and loaded there; and three are trained for three steps in both.

    python experiments/pretrained/parity.py
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT / "tests"), str(CHECKOUT / "tests" / "fixtures")]

import make_parity  # noqa: E402
import parity_nets as nets  # noqa: E402
import safetensors.torch  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402
import transformers  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from resnet_jax.atomic_files import write_text_atomically  # noqa: E402
from resnet_jax.data.input_description import InputDescription  # noqa: E402
from resnet_jax.environment import environment  # noqa: E402
from resnet_jax.pretrained.pytorch.huggingface_layout import infer_huggingface  # noqa: E402
from resnet_jax.pretrained.pytorch.infer_torch import infer_torch  # noqa: E402
from resnet_jax.pretrained.pytorch.interchange import write_huggingface, write_timm, write_torchvision  # noqa: E402
from resnet_jax.pretrained.pytorch.torch_variables import TorchNet, read_variables  # noqa: E402

Arrays = Mapping[str, np.ndarray]
INPUT = InputDescription(
    image_shape=(224, 224, 3),
    mean=np.float32([123.675, 116.28, 103.53]),
    std=np.float32([58.395, 57.12, 57.375]),
    class_names=tuple(f"class {number}" for number in range(1000)),
    short_side=256,
    resize="pillow_bilinear",
    source="published",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "records" / "parity.json")
    flags = parser.parse_args()
    forward, written = {}, {}
    for library, members in nets.NETS.items():
        for name in members:
            key, module = f"{library}/{name}", make_parity.make(library, name)
            net, values = read(library, name, module)
            variables = read_variables(net, nets.stored(values))
            theirs = make_parity.features(library, module, nets.images(library))
            ours = nets.our_features(net, variables, nets.images(library))
            forward[key] = {feature: largest_error(ours[feature], theirs[feature]) for feature in ours}
            print(key, forward[key], flush=True)
            if library != "cifar" and name != "resnet14":
                written[key] = largest_error(logits_of_written(library, name, net, variables), theirs["logits"])
                print(key, "written:", written[key], flush=True)
    record = {
        "forward_error_relative_to_largest_value": forward,
        "logits_error_of_written_nets": written,
        "training": {key: training_errors(key) for key in nets.TRAINED},
        "torch_gradients_float32_against_float64": {key: torch_gradient_errors(key) for key in nets.TRAINED},
        "smallest_activation": {key: make_parity.smallest_activation(key) for key in nets.TRAINED},
        "libraries": {module.__name__: module.__version__ for module in (torch, torchvision, timm, transformers)},
        **environment(),
    }
    write_text_atomically(flags.output, json.dumps(record, indent=2, allow_nan=False) + "\n")


def read(library: str, name: str, module: torch.nn.Module) -> tuple[TorchNet, Arrays]:
    values = {name: value.numpy() for name, value in module.state_dict().items()}
    if library == "huggingface":
        return infer_huggingface(nets.huggingface_config(name), nets.stored(values)), values
    return infer_torch(nets.stored(values)), values


def logits_of_written(library: str, name: str, net: TorchNet, variables: dict) -> np.ndarray:
    """What the library's own module computes that has loaded the net as we write it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net"
        if library == "torchvision":
            file = write_torchvision(path.with_suffix(".safetensors"), net.model, variables)
            module = getattr(torchvision.models, name)()
            module.load_state_dict(safetensors.torch.load_file(file), strict=True)
        elif library == "timm":
            module = timm.create_model(
                f"local-dir:{write_timm(path, net.model, variables, input=INPUT)}", pretrained=True
            )
        else:
            write_huggingface(path, net.model, variables, input=INPUT)
            module, report = transformers.ResNetForImageClassification.from_pretrained(path, output_loading_info=True)
            if any(report.values()):
                raise RuntimeError(f"{name} was not loaded whole: {report}")
        return make_parity.features(library, module.eval(), nets.images(library))["logits"]


def training_errors(key: str) -> dict[str, list[float]]:
    """By kind and step, the median and the largest over all tensors; losses differ in nats."""
    library, name, _ = key.split("/")
    module, (pictures, targets) = make_parity.make(library, name), nets.training_data(key)
    net, values = read(library, name, module)
    values = {name: value.copy() for name, value in values.items() if value.ndim}
    counts = make_parity.values_per_channel(module, pictures)
    ours = nets.our_training(net, values, pictures, targets)
    errors: dict[str, list[float]] = {}
    for step, (theirs, mine) in enumerate(zip(make_parity.train(module, pictures, targets), ours, strict=True), 1):
        errors[f"step {step}: loss"] = [abs(mine[0] - theirs[0])]
        state = {name: nets.unbiased(name, value, values[name], step, counts) for name, value in mine[2].items()}
        if step == 1:
            errors["step 1: gradients"] = relative_errors(mine[1], theirs[1])
        for kind, is_kind in (("parameters", False), ("statistics", True)):
            part = {name: value for name, value in state.items() if ("running" in name) == is_kind}
            errors[f"step {step}: {kind}"] = relative_errors(part, theirs[2])
    print(key, errors, flush=True)
    return errors


def torch_gradient_errors(key: str) -> list[float]:
    """Median and largest difference of PyTorch's own first gradients in float32 from those in float64."""
    gradients = []
    for dtype in (torch.float32, torch.float64):
        module, (pictures, targets) = make_parity.make(*key.split("/")[:2]), nets.training_data(key)
        module.to(dtype).train()
        F.cross_entropy(module(torch.from_numpy(pictures).to(dtype)), torch.from_numpy(targets)).backward()
        gradients.append({name: value.grad.double().numpy() for name, value in module.named_parameters()})
    return relative_errors(*gradients)


def relative_errors(found: Arrays, expected: Arrays) -> list[float]:
    """Median and largest over the tensors of the difference's norm, relative to the tensor's."""
    errors = [
        float(np.linalg.norm(found[name].astype(np.float64) - expected[name]) / np.linalg.norm(expected[name]))
        for name in found
    ]
    return [float(np.median(errors)), max(errors)]


def largest_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    main()
