"""Measures the memory that loading a ResNet-152 takes, from a file of every kind, each in a process of its own.

    python experiments/pretrained/memory.py --output=experiments/pretrained/records/memory.json

What counts is how far the resident memory rises at most above what it is once jax and the library are imported and the
device is there. `load_weights` reads the values, `load_pretrained` also hands them to the device. A net of the same
layers with next to no values shows how much of it does not depend on the file's size. It needs Linux.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.atomic_files import write_text_atomically
from resnet_jax.environment import environment
from resnet_jax.models.registry import create_model
from resnet_jax.pretrained.caffe.msra_layout import read_msra
from resnet_jax.pretrained.pytorch.torch_layout import torchvision_spelling
from resnet_jax.pretrained.pytorch.torch_variables import torch_tensors
from resnet_jax.pretrained.weights import save_pretrained

# The files are written as those of the tests are.
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
import torch_files  # noqa: E402
from caffe_files import MsraNet  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

STAGE_SIZES = (3, 8, 36, 3)
WIDTHS = {"resnet152": 64, "narrow": 1}
LOADERS = ("load_weights", "load_pretrained")
WANTED_RATIO = 2.0
REPEATS = 3


def write_files(folder: Path, width: int) -> dict[str, Path]:
    """The same net in a file of every kind, by the kind's name."""
    caffe = folder / "net.caffemodel"
    net = MsraNet(STAGE_SIZES, width, 1000, conv1_bias=False).net
    caffe.write_bytes(net.SerializeToString())
    _, variables = read_msra(caffe)
    model = create_model("resnet152_v1_5", width=width)
    own, torchvision = folder / "own.safetensors", folder / "torchvision.safetensors"
    save_pretrained(own, model, variables)
    tensors = torch_tensors(model, variables, torchvision_spelling())
    save_file(tensors, torchvision)
    return {
        "state dict (.pth)": write_state_dict(folder / "net.pth", tensors),
        "torchvision's names (.safetensors)": torchvision,
        "this library's (.safetensors)": own,
        "Caffe (.caffemodel)": caffe,
    }


def write_state_dict(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """What torch.save would write of a state dict."""
    kinds = {"float32": "torch.FloatStorage", "int64": "torch.LongStorage"}
    items, storages = {}, {}
    for index, (name, array) in enumerate(tensors.items()):
        strides = tuple(step // array.itemsize for step in array.strides)
        items[name] = torch_files.tensor(str(index), array.size, array.shape, strides, kind=kinds[array.dtype.name])
        storages[str(index)] = array.tobytes()
    return torch_files.write_zip(path, torch_files.mapping(items), storages)


def rise_in_new_process(path: Path, loader: str) -> int:
    """Bytes by which the resident memory of a process rises at most while it loads a file."""
    command = [sys.executable, __file__, f"--measure={path}", f"--loader={loader}"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def rise(path: Path, loader: str) -> int:
    """The same in this process."""
    import jax

    import resnet_jax

    load = getattr(resnet_jax, loader)
    jax.block_until_ready(jax.device_put(np.zeros(1, np.float32)))
    # The highest mark goes down to what is in use now.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    loaded = load(path)
    if loader == "load_pretrained":
        jax.block_until_ready(loaded[1])
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """A number of this process's memory in bytes, as Linux calls it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def measure() -> dict[str, Any]:
    """Of every kind the files' sizes and the rises, the median of `REPEATS` processes."""
    kinds: dict[str, Any] = {}
    for net, width in WIDTHS.items():
        with tempfile.TemporaryDirectory() as folder:
            for kind, path in write_files(Path(folder), width).items():
                size = path.stat().st_size
                result: dict[str, Any] = {"file_bytes": size}
                for loader in LOADERS:
                    rises = sorted(rise_in_new_process(path, loader) for _ in range(REPEATS))
                    result[loader] = {"rise_bytes": rises[REPEATS // 2], "range_bytes": [rises[0], rises[-1]]}
                    if net == "resnet152":
                        result[loader]["ratio_to_file"] = round(rises[REPEATS // 2] / size, 3)
                kinds.setdefault(kind, {})[net] = result
                print(kind, net, result, flush=True)
    return kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="the record, a JSON file")
    parser.add_argument("--measure", type=Path, help="only load this file, and print the rise in bytes")
    parser.add_argument("--loader", choices=LOADERS, default="load_pretrained")
    flags = parser.parse_args()
    if flags.measure:
        print(rise(flags.measure, flags.loader))
        return
    if not flags.output:
        parser.error("--output is missing")
    kinds = measure()
    highest = max(kind["resnet152"]["load_pretrained"]["ratio_to_file"] for kind in kinds.values())
    record = {"repeats": REPEATS, "wanted_ratio": WANTED_RATIO, "highest_ratio": highest, "kinds": kinds}
    write_text_atomically(flags.output, json.dumps({**record, **environment()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
