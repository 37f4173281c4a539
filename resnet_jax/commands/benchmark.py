"""resnet-jax benchmark."""

import argparse
import json

from resnet_jax.commands.flags import json_flag, require

# Numbers of a device that can be given, and what their flags' units are in operations, bytes and seconds.
_OWN = {"peak": 1e12, "peak_fraction": 1, "bandwidths": 1e9, "latencies": 1e-6, "cores_per_host": 1}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    help = "plan a run on many devices, without data and devices; needed, as nothing else is there yet"
    parser.add_argument("--plan", action="store_true", help=help)
    help = "a config file, which is run; a workdir's config.json; or an installed config's name"
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help=help)
    parser.add_argument("--hosts", type=int, metavar="N", help="processes of the run")
    parser.add_argument("--devices_per_host", type=int, metavar="N", help="of each (the device's usual number)")
    help = "groups of hosts with a fast network each and a slower one between them (%(default)s)"
    parser.add_argument("--slices", type=int, default=1, metavar="N", help=help)
    help = "h100, h200, tpu_v4, tpu_v5e, tpu_v5p or tpu_v6e (%(default)s)"
    parser.add_argument("--device", default="h200", metavar="NAME", help=help)
    help = "part of the gradients' all-reduce that the backward pass hides, 0 to 1 (%(default)s)"
    parser.add_argument("--overlap", type=float, default=0.0, metavar="PART", help=help)
    help = "images a second that one core decodes (as measured for the config's crops)"
    parser.add_argument("--images_per_core", type=float, metavar="N", help=help)
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
    if not flags.plan:
        raise ValueError("benchmark needs --plan: measuring on devices is not there yet")
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
