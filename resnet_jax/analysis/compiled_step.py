"""The training step of a config, compiled for a few simulated devices, to see what it would send on many.

The state is a copy on every device, so all-reduces are of gradients, statistics and sums, whose sizes depend neither on
the batch nor on how many devices there are; only the way they travel does. So two images a device and four devices are
enough, or eight where a batch-norm group is on several but not all. The step is lowered as for a TPU, because on a CPU
convolutions have gradients of their own.

    python -m resnet_jax.analysis.compiled_step < REQUEST.json

does it in a process of its own, whose number of devices is free; `examine` calls that.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jax.stages import Lowered
from ml_collections import ConfigDict, FrozenConfigDict

from resnet_jax.analysis.collectives import Collective, collectives_of, narrowed
from resnet_jax.analysis.lowered_step import Data, abstract_state, lower_step
from resnet_jax.build import multiply_adds
from resnet_jax.config import flatten, nest
from resnet_jax.config_files import from_json, to_json
from resnet_jax.distributed import data_mesh

_MOST_DEVICES = 4
# Where two share a batch-norm group: so many that neither all devices nor all groups are two.
_PAIRED_DEVICES = 8
# Images of one device, which are one group of batch norm or part of one. Several groups are averaged on the device.
_ROWS = 2


class CompiledStep(NamedTuple):
    """What is known of a step.

    Attributes:
      devices: simulated ones that it was compiled for.
      group_devices: of those, how many share a batch-norm group.
      collectives: of one step; their `devices` are such a group's, or else they span all devices.
      parameters: numbers that are trained.
      state: shape and bytes a number of each array of the training state.
      multiply_adds: of one image's forward pass, counted as for images of three channels.
    """

    devices: int
    group_devices: int
    collectives: tuple[Collective, ...]
    parameters: int
    state: tuple[tuple[tuple[int, ...], int], ...]
    multiply_adds: int


def devices_of_a_group(config: Any, devices: int) -> int:
    """How many devices share one group of batch norm; 1 where each has its groups to itself.

    Raises:
      ValueError: for a group that lies neither within one device's images nor on whole devices, so that activations
        would have to move.
    """
    group, batch = config.model.bn_group_size, config.train.batch_size
    share = batch // (devices * config.train.accumulation_steps)
    if config.model.norm != "batch":
        return 1
    if group is None:
        return devices
    if share % group and group % share:
        raise ValueError(
            f"model.bn_group_size={group}: neither a divisor nor a multiple of the {share} images of one device "
            f"(train.batch_size={batch} on {devices} devices), so that activations would move between devices at every "
            "layer; choose one that is, or another batch size"
        )
    return max(1, group // share)


def examine(config: FrozenConfigDict, data: Data, devices: int) -> CompiledStep:
    """Compiles the training step for a few simulated devices in a process of its own.

    Args:
      config: resolved for all devices of the run.
      data: what it trains on.
      devices: of the run.

    Raises:
      ValueError: as `devices_of_a_group`.
      RuntimeError: the compilation failed; the message has its last lines.
    """
    of_group = devices_of_a_group(config, devices)
    simulated = _PAIRED_DEVICES if 1 < of_group < devices else min(devices, _MOST_DEVICES)
    simulated_group = 2 if 1 < of_group < devices else min(of_group, simulated)
    small = small_config(config, devices=simulated, group_devices=simulated_group)
    variables = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(simulated),
        # A program from the cache leaves no trace of how it was divided.
        "JAX_ENABLE_COMPILATION_CACHE": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "resnet_jax.analysis.compiled_step"],
        input=json.dumps({"config": to_json(small), "data": data, "devices": (simulated, simulated_group)}),
        env=variables,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"the training step could not be compiled:\n{done.stderr[-2000:]}")
    return _from_json(done.stdout.splitlines()[-1])


def examine_here(config: ConfigDict, data: Data, devices: int, group_devices: int) -> CompiledStep:
    """As `examine`, in this process, which has as many CPU devices, for a `small_config`."""
    state = abstract_state(config, data)
    optimized, divided = _compile(config, data, data_mesh(jax.devices("cpu")[:devices]))
    return CompiledStep(
        devices=devices,
        group_devices=group_devices,
        collectives=tuple(narrowed(collectives_of(optimized, devices), divided)),
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
        state=tuple((leaf.shape, leaf.dtype.itemsize) for leaf in jax.tree.leaves(state)),
        multiply_adds=multiply_adds(config, image_size=data.image_shape[0], num_classes=data.num_classes),
    )


def small_config(config: FrozenConfigDict, *, devices: int, group_devices: int) -> ConfigDict:
    """The config with two images a device, batch-norm groups on so many devices, and the whole batch's schedule."""
    values = flatten(config)
    values["train.batch_size"] = _ROWS * devices * config.train.accumulation_steps
    if values["model.bn_group_size"] is not None:
        values["model.bn_group_size"] = _ROWS * group_devices
    return nest(values)


def _compile(config: Any, data: Data, mesh: Mesh) -> tuple[str, str]:
    """The texts of the optimised program, and of that which was just divided ("" where all is float32)."""
    lowered = lower_step(config, data, mesh, platform="tpu")
    # Less of LLVM, which takes half of the time and has nothing to do with collectives.
    options: dict[str, Any] = {"xla_backend_optimization_level": 0}
    if config.model.dtype == "float32" or mesh.size == 1:
        return _text(lowered, options), ""
    with tempfile.TemporaryDirectory(prefix="resnet_jax_") as folder:
        options |= {"xla_dump_to": folder, "xla_dump_hlo_as_text": True, "xla_dump_hlo_pass_re": "spmd-partitioning"}
        optimized = _text(lowered, options)
        [divided] = Path(folder).glob("*.after_spmd-partitioning*.txt")
        return optimized, divided.read_text(encoding="utf-8")


def _text(lowered: Lowered, options: dict[str, Any]) -> str:
    text = lowered.compile(compiler_options=options).as_text()
    assert text is not None
    return text


def _from_json(text: str) -> CompiledStep:
    found = json.loads(text)
    found["collectives"] = tuple(Collective(*entry) for entry in found["collectives"])
    found["state"] = tuple((tuple(shape), itemsize) for shape, itemsize in found["state"])
    return CompiledStep(**found)


def _main() -> None:
    request = json.load(sys.stdin)
    shape, num_classes, examples = request["data"]
    data = Data(tuple(shape), num_classes, examples)
    print(json.dumps(examine_here(from_json(request["config"]), data, *request["devices"])._asdict()))


if __name__ == "__main__":
    _main()
