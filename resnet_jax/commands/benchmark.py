"""resnet-jax benchmark."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnet_jax.commands.flags import json_flag, require

# Numbers of a device that can be given, and what their flags' units are in operations, bytes and seconds.
_OWN = {"peak": 1e12, "peak_fraction": 1, "bandwidths": 1e9, "latencies": 1e-6, "cores_per_host": 1}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    help = "train, eval, multi_scale, compile: of random images on the device; input, end_to_end: of the config's data"
    parser.add_argument("kind", nargs="?", metavar="KIND", help=help)
    parser.add_argument("--plan", action="store_true", help="instead: plan a run on many devices, without any")
    help = "a config file, which is run; a workdir's config.json; or an installed config's name"
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help=help)
    here = parser.add_argument_group("measuring on the devices at hand")
    help = "nets, such as resnet18,resnet50; without --config by the recipe of their family"
    here.add_argument("--models", type=_names, default=(), metavar="NAME,...", help=help)
    help = "images of a step or of a test's batch (the config's); halved where memory does not suffice"
    here.add_argument("--batch_sizes", type=_numbers, default=(), metavar="N,...", help=help)
    here.add_argument("--windows", type=int, default=5, metavar="N", help="of each measurement (%(default)s)")
    here.add_argument("--seconds", type=float, default=2.0, metavar="S", help="of each window (%(default)s)")
    here.add_argument("--output", metavar="FILE", help="the record, as JSON")
    help = "images/s against the batch, and the device's roofline (.png, .pdf or .svg)"
    here.add_argument("--plot", metavar="FILE", help=help)
    ahead = parser.add_argument_group("planning")
    ahead.add_argument("--hosts", type=int, metavar="N", help="processes of the run")
    ahead.add_argument("--devices_per_host", type=int, metavar="N", help="of each (the device's usual number)")
    help = "groups of hosts with a fast network each and a slower one between them (%(default)s)"
    ahead.add_argument("--slices", type=int, default=1, metavar="N", help=help)
    help = "h100, h200, tpu_v4, tpu_v5e, tpu_v5p or tpu_v6e (%(default)s)"
    ahead.add_argument("--device", default="h200", metavar="NAME", help=help)
    help = "part of the gradients' all-reduce that the backward pass hides, 0 to 1 (%(default)s)"
    ahead.add_argument("--overlap", type=float, default=0.0, metavar="PART", help=help)
    help = "images a second that one core decodes (as measured for the config's crops)"
    ahead.add_argument("--images_per_core", type=float, metavar="N", help=help)
    own = parser.add_argument_group("other numbers than those of the named device")
    own.add_argument("--peak", type=float, metavar="TFLOP/S", help="of bfloat16")
    own.add_argument("--peak_fraction", type=float, metavar="PART", help="that training in bfloat16 reaches of it")
    help = "GB/s that a device sends in its host, in its slice, between slices"
    own.add_argument("--bandwidths", type=_three, metavar="N,N,N", help=help)
    own.add_argument("--latencies", type=_three, metavar="N,N,N", help="of an all-reduce there, in microseconds")
    own.add_argument("--cores_per_host", type=int, metavar="N", help="that decode images")
    json_flag(parser)


def run(flags: argparse.Namespace) -> None:
    """Calls the package and prints what it gives."""
    if flags.plan == (flags.kind is not None):
        raise ValueError(
            "benchmark needs either a KIND to measure (train, eval, multi_scale, compile, input, end_to_end) or --plan"
        )
    if flags.plan:
        _plan(flags)
    else:
        _measure(flags)


def _measure(flags: argparse.Namespace) -> None:
    from resnet_jax.atomic_files import write_text_atomically
    from resnet_jax.benchmark.suite import benchmark
    from resnet_jax.benchmark.table import table

    given = {name: getattr(flags, name) for name in ("models", "batch_sizes", "windows", "seconds")}
    record = benchmark(flags.kind, reference=flags.config, overrides=flags.overrides, tell=_tell, **given)
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    if flags.output:
        write_text_atomically(Path(flags.output), text)
    if flags.plot:
        from resnet_jax.benchmark.plot import plot_record

        plot_record(record, flags.plot)
    print(text if flags.json else table(record))


def _tell(row: Mapping[str, Any]) -> None:
    rate = f", {row['images_per_second']:,.0f} images/s" if "images_per_second" in row else ""
    print(f"{row['model']}, {row['subject']}, batch {row['batch']}{rate}", file=sys.stderr, flush=True)


def _plan(flags: argparse.Namespace) -> None:
    require(flags, "config", "hosts")
    from resnet_jax.analysis.devices import device_named
    from resnet_jax.analysis.plan import plan
    from resnet_jax.config_files import load_config

    config = load_config(flags.config, flags.overrides)
    own = {name: _in_si(getattr(flags, name), scale) for name, scale in _OWN.items()}
    names = ("hosts", "devices_per_host", "slices", "overlap", "images_per_core")
    given = {name: getattr(flags, name) for name in names}
    made = plan(config, device_named(flags.device, **own), **given)
    print(json.dumps(made.to_json(), indent=2) if flags.json else made)


def _in_si(given, scale):
    return tuple(number * scale for number in given) if isinstance(given, tuple) else given and given * scale


def _three(text: str) -> tuple[float, float, float]:
    try:
        first, second, third = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers, such as 450,50,50") from None
    return first, second, third


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers from 1 on, such as 32,64")
    return numbers
