"""Compiles training steps for a device that is not here, and writes what is known of the programs into one record.

python experiments/benchmarks/compiled/compiled.py --target=h200.txtpb --output=RECORD.json --readme=README.md
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from resnet_jax.analysis.collectives import collectives_of
from resnet_jax.analysis.lowered_step import Data, lower_step
from resnet_jax.analysis.program import kernels, planned_bytes
from resnet_jax.atomic_files import write_text_atomically
from resnet_jax.config import resolve
from resnet_jax.config_files import load_config
from resnet_jax.distributed import data_mesh
from resnet_jax.environment import environment

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parents[1] / "reliability"), str(HERE.parent / "cifar10")]
from growth import power_law  # noqa: E402
from marked import publish  # noqa: E402

CIFAR, IMAGENET = Data((32, 32, 3), 10, 50_000), Data((224, 224, 3), 1000, 1_281_167)
KINDS = ("convolutions", "reductions", "copies")
BF16 = {"model.dtype": "bfloat16"}
_GIBIBYTE = 2**30


class Step(NamedTuple):
    """A training step.

    Attributes:
      name: of the net.
      config: see `load_config`.
      changes: its overrides.
      data: what it trains on.
    """

    name: str
    config: str
    changes: Mapping[str, Any]
    data: Data


def _cifar(depth: int, changes: Mapping[str, Any]) -> Step:
    return Step(f"cifar_resnet{depth}", "cifar10:resnet20", {"model.name": f"cifar_resnet{depth}", **changes}, CIFAR)


def _imagenet(net: str) -> Step:
    return Step(net, f"imagenet:goyal90,{net}", {**BF16, "train.batch_size": 256}, IMAGENET)


DEEPEST = 1202
STEPS = [
    *(_cifar(depth, BF16) for depth in (20, 56, 110)),
    *(_imagenet(net) for net in ("resnet18", "resnet50", "resnet152")),
    *(
        _cifar(DEEPEST, {"model.scan": True, "model.remat": remat, "model.dtype": dtype})
        for dtype in ("bfloat16", "float32")
        for remat in (False, True)
    ),
]


def described_device(target: str) -> Any:
    """A GPU by the file that describes it, or the first device of a TPU topology such as "v5e:2x2"."""
    # Before the description: a device that is here has no part in it.
    jax.config.update("jax_platforms", "cpu")
    jax.devices()
    file = Path(target)
    if file.suffix != ".txtpb":
        # Else libtpu asks the host, which has none, about its TPUs.
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
        return topologies.get_topology_desc(target, "tpu").devices[0]
    described = file.read_text(encoding="utf-8")
    return topologies.get_topology_desc(file.stem, "cuda", target_config=described, topology="1x1x1").devices[0]


def compile_step(step: Step, device: Any) -> dict[str, Any]:
    """An entry of the record: seconds, planned memory in bytes, kernels of the entry computation and their bytes."""
    config = resolve(load_config(step.config, step.changes), train_examples=step.data.examples, device_count=1)
    begun = time.perf_counter()
    platform = "tpu" if device.platform == "tpu" else "cuda"
    lowered = lower_step(config, step.data, data_mesh([device]), platform=platform)
    traced = time.perf_counter()
    # A GPU that is here would tune kernels for itself.
    compiled = lowered.compile({"xla_gpu_autotune_level": 0} if platform == "cuda" else None)
    seconds = {"trace_seconds": traced - begun, "compile_seconds": time.perf_counter() - traced}
    text = compiled.as_text()
    found, temporary = kernels(text), compiled.memory_analysis().temp_size_in_bytes
    # Only for TPUs does XLA count them itself.
    counted = compiled.cost_analysis() or {"bytes accessed": found.bytes}
    return {
        **{"net": step.name, "config": step.config, "changes": dict(step.changes), "dtype": config.model.dtype},
        **{"batch_size": config.train.batch_size, "scan": config.model.scan, "remat": config.model.remat},
        **seconds,
        **{"planned_bytes": planned_bytes(compiled), "temporary_bytes": temporary},
        **{"kernels": found.count, "kernel_kinds": found.kinds, "kernel_bytes": int(counted["bytes accessed"])},
        **{"flops": counted.get("flops"), "collectives": len(collectives_of(text, 1))},
    }


def make_record(target: str, steps: Sequence[Step]) -> dict[str, Any]:
    """Compiles all steps for a described device, and extrapolates what the deepest would take unrolled."""
    device = described_device(target)
    # The first compilation starts threads and reads libraries.
    compile_step(steps[0], device)
    entries = []
    for step in steps:
        entries.append(compile_step(step, device))
        print(json.dumps(entries[-1]), flush=True)
    found = {**environment(), "target": device.device_kind, "rows": entries}
    scanned = [entry["compile_seconds"] for entry in entries if entry["scan"]]
    unrolled = [entry for entry in entries if entry["net"].startswith("cifar") and not entry["scan"]]
    if scanned and len(unrolled) > 1:
        depths = [int(entry["net"].removeprefix("cifar_resnet")) for entry in unrolled]
        guess = power_law(depths, [entry["compile_seconds"] for entry in unrolled], DEEPEST)
        found["unrolled"] = guess | {"times_scanned": guess["value"] / statistics.median(scanned)}
    return found


def table(record: Mapping[str, Any]) -> str:
    """In Markdown."""
    head = ("net", "images", "dtype", "blocks", "kernels", *KINDS, "MB an image", "planned, GiB")
    head += ("tracing, s", "compiling, s")
    lines = [head, ("---",) * 4 + ("---:",) * (len(head) - 4)]
    for entry in record["rows"]:
        blocks = "scanned, remat" if entry["remat"] else "scanned" if entry["scan"] else "unrolled"
        # Of loops the text has the body once.
        counted = ("",) * (2 + len(KINDS)) if entry["scan"] else _counted(entry)
        seconds = (f"{entry['trace_seconds']:.1f}", f"{entry['compile_seconds']:.1f}")
        planned = f"{entry['planned_bytes'] / _GIBIBYTE:.2f}"
        lines.append((entry["net"], str(entry["batch_size"]), entry["dtype"], blocks, *counted, planned, *seconds))
    parts = [f"For {record['target']}, by jax {record['versions']['jax']} on {record['cpu']['count']} CPU cores."]
    parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    if guess := record.get("unrolled"):
        parts.append(
            f"Unrolled, the seconds of compilation grow as the layers to the power of {guess['exponent']:.2f}: "
            f"{guess['size']:,} layers would take {guess['value']:,.0f} s, {guess['times_scanned']:.0f} times as long "
            "as scanned."
        )
    return "\n\n".join(parts)


def _counted(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Kernels, those of the kinds, where the record has them, and megabytes an image."""
    kinds = [f"{entry['kernel_kinds'][kind]:,}" if "kernel_kinds" in entry else "" for kind in KINDS]
    return (f"{entry['kernels']:,}", *kinds, f"{entry['kernel_bytes'] / entry['batch_size'] / 1e6:.1f}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    help = "file with a GPU's description, as XLA's repository has them (target_config/specs/*.txtpb), or TPUs: v5e:2x2"
    parser.add_argument("--target", required=True, help=help)
    parser.add_argument("--nets", help="some of the nets, such as cifar_resnet20,resnet50 (all)")
    parser.add_argument("--output", type=Path, help="the record's file")
    parser.add_argument("--readme", type=Path, help="whose table is made anew")
    flags = parser.parse_args(argv)
    names = flags.nets.split(",") if flags.nets else [step.name for step in STEPS]
    if unknown := set(names) - {step.name for step in STEPS}:
        parser.error(f"--nets: no {', '.join(sorted(unknown))}; there are {', '.join(step.name for step in STEPS)}")
    record = make_record(flags.target, [step for step in STEPS if step.name in names])
    if flags.output:
        write_text_atomically(flags.output, json.dumps(record, indent=1, allow_nan=False) + "\n")
    print(table(record))
    if flags.readme:
        publish(flags.readme, "compiled.py", table(record))


if __name__ == "__main__":
    main()
