"""Makes all records of speed on an accelerator, in calls as short as one likes.

    python experiments/benchmarks/everything.py --records=DIR --minutes=9

The same command again goes on; its exit code is 1 while something is left. What fails is said, and is tried again then.
"""

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
IMAGENET = ("resnet50", "resnet18", "resnet101", "resnet152")
CIFAR = ("cifar_resnet20", "cifar_resnet56", "cifar_resnet110")


class Part(NamedTuple):
    """A record, and how it is made.

    Attributes:
      name: of the record's file.
      command: without the file.
      minutes: that a record takes which is made in one go; None where rows are stored as they end, see `rows.in_time`.
    """

    name: str
    command: tuple[str, ...]
    minutes: float | None = None


def parts(scale: str) -> list[Part]:
    """All of them, the most informative first; of the small scale, likenesses for a try."""
    small = scale == "small"
    nets = ("cifar_resnet8",) if small else (*IMAGENET, *CIFAR)
    compare = ("nets/compare.py", f"--scale={scale}", f"--nets={','.join(nets)}")
    speed = ("cifar10/speed.py", f"--scale={scale}")
    if small:
        compare += ("--compiled=resnet18", "--image_size=32", "--batch_sizes=8")
        speed += ("--parts=b", "--nets=cifar_resnet8")
    detection = ("detection/full_size.py", f"--scale={scale}")
    found = [Part("nets", compare), Part("cifar10", speed), Part("detection", detection)]
    for net in nets:
        is_cifar = net.startswith("cifar_")
        sizes = "32,16" if small else "128,512,2048" if is_cifar else "64,128,256,512"
        kinds = ("train", "eval") if is_cifar else ("train", "eval", "multi_scale")
        found += [Part(f"{net}_{kind}", measured(kind, net, sizes, small=small), minutes=5) for kind in kinds]
    return found


def measured(kind: str, net: str, sizes: str, *, small: bool) -> tuple[str, ...]:
    """The library's own command."""
    dtype = "float32" if small else "bfloat16"
    command = ("-m", "resnet_jax", "benchmark", kind, f"--models={net}", f"--batch_sizes={sizes}")
    return (*command, f"--config.model.dtype={dtype}", *(("--windows=2", "--seconds=0.1") if small else ()))


def make(part: Part, records: Path, left: float) -> bool:
    """Whether the record is there, complete, after at most so many minutes, or those that the part takes."""
    output = records / f"{part.name}.json"
    if part.minutes is None:
        script, *flags = part.command
        limit = () if math.isinf(left) else (f"--minutes={left:.2f}",)
        command = [str(HERE / script), *flags, f"--output={output}", *limit]
    else:
        command = [*part.command, f"--output={output}", f"--plot={output.with_suffix('.png')}"]
    print(f"{part.name} ...", flush=True)
    done = subprocess.run([sys.executable, *command], check=False).returncode
    print(f"{part.name}: {'there' if done == 0 else f'not complete, exit code {done}'}", flush=True)
    return done == 0


def main(argv: Sequence[str] | None = None) -> int:
    begun = time.monotonic()
    flags = parse_flags(argv)
    flags.records.mkdir(parents=True, exist_ok=True)
    first, complete = True, True
    for part in parts(flags.scale):
        # Written beside each other as a part ends.
        mark = flags.records / f"{part.name}.done"
        if mark.is_file():
            continue
        left = flags.minutes - (time.monotonic() - begun) / 60
        if not first and left < (part.minutes or 1):
            print(f"there is no time for {part.name}; the same command goes on with it", flush=True)
            return 1
        first = False
        if make(part, flags.records, left):
            mark.touch()
        else:
            complete = False
    return int(not complete)


def parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--records", type=Path, required=True, help="a folder for records and plots")
    parser.add_argument("--scale", choices=("full", "small"), default="full", help="(%(default)s)")
    help = "begin nothing that would take longer; the same command again goes on (no limit)"
    parser.add_argument("--minutes", type=float, default=math.inf, help=help)
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
