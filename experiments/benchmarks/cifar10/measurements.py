"""The rows of the record: what is timed against what, part by part."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from growth import power_law
from noise import make_noise
from subjects import BATCH, CONFIG, DATASET, HERE

sys.path.append(str(HERE.parent))
from rows import TimedRow  # noqa: E402
from worker import WorkerFailed, compare, surrounding_variables, working  # noqa: E402

SCRIPT = HERE / "subjects.py"

# A CPU is to take at most so many times as long for a step as PyTorch.
CPU_TARGET = 1.5
# Several seeds at once are to train 2.5 times the images a second of one on an accelerator.
SEEDS, SEEDS_TARGET = 5, 0.4
_DTYPES = ("float32", "bfloat16")
# Of CIFAR-10's form; so many for training as the longest call takes.
NOISE: dict[str, Any] = {"side": 32, "sizes": {"train": 50 * BATCH, "test": 2000}}
# Another, of which a start reads all, and tests so many at its end.
WHOLE, TESTED = "noise_whole", 100


class Size(NamedTuple):
    """How much is measured.

    Attributes:
      rounds: windows of each subject in parts a and b.
      fewer_rounds: of those of part c.
      long_rounds: of those whose calls take half a minute on a CPU.
      seconds: of a window.
      deep: the net that is scanned and unrolled, by its layers.
      deepest: the net that only a loop can compile.
      unrolled: nets that are compiled without a loop, to extrapolate from.
      unrolled_on_cpu: likewise on a CPU, whose compiler takes longer.
      whole: training images that a start reads.
    """

    rounds: int
    fewer_rounds: int
    long_rounds: int
    seconds: float
    deep: int
    deepest: int
    unrolled: tuple[int, ...]
    unrolled_on_cpu: tuple[int, ...]
    whole: int


_FULL: dict[str, Any] = {"deep": 110, "deepest": 1202, "unrolled": (110, 218, 302), "unrolled_on_cpu": (20, 56, 110)}
_SMALL: dict[str, Any] = {"deep": 14, "deepest": 20, "unrolled": (8, 14), "unrolled_on_cpu": (8, 14)}
SIZES = {
    "full": Size(9, 6, 2, seconds=2.0, whole=50_000, **_FULL),
    "small": Size(2, 1, 1, seconds=0.2, whole=10 * BATCH, **_SMALL),
}


class Bench:
    """The machine at hand, and a folder with data.

    Args:
      folder: for data sets and compiled programs.
      size: how much is measured.
      machine: what `worker.surroundings` says.
    """

    def __init__(self, folder: Path, size: Size, machine: Mapping[str, Any]):
        self.folder, self.size = folder, size
        self.platform = machine["devices"]["platform"]
        self.on_cpu = self.platform == "cpu"
        self.unrolled = size.unrolled_on_cpu if self.on_cpu else size.unrolled
        self.has_pytorch = machine["versions"]["torch"] is not None
        make_noise(folder, name=DATASET, **NOISE)

    def split(self, steps_per_dispatch: int = 1) -> str:
        """Of the training images, as many as calls of that length need; a part, where one thread decodes long."""
        return f"train[:{10 * BATCH}]" if self.on_cpu and steps_per_dispatch <= 10 else "train"

    def ours(
        self, net: str, kind: str = "train", *, steps: int | None = None, seeds: int = 1, **model: Any
    ) -> dict[str, Any]:
        """A subject of this library; steps are those of a dispatch, None as the library chooses."""
        overrides = {f"model.{key}": value for key, value in model.items()}
        overrides |= {"data.train_split": self.split(steps or 1), "train.steps_per_dispatch": steps}
        if seeds > 1:
            overrides["num_seeds"] = seeds
        return {"kind": kind, "net": net, "data_dir": str(self.folder), "overrides": overrides}

    def pytorch(self, net: str, *, bf16: bool, mode: str | None = None, group: int | None = None) -> dict[str, Any]:
        """PyTorch's training step, channels last; without a group it has statistics of the whole batch."""
        device = "cpu" if self.on_cpu else "cuda"
        own = {"bf16": bf16, "mode": mode, "group": group, "device": device, "split": self.split()}
        return {"kind": "pytorch", "net": net, "data_dir": str(self.folder), **own}

    def start(
        self,
        net: str,
        workdir: Path,
        *,
        kept: bool,
        overrides: Mapping[str, Any] = {},
        steps: int = 10,
    ) -> dict[str, float]:
        """Trains for some steps by the command, with as many images as CIFAR-10 has: `start_seconds` of its record.

        Args:
          net: its name.
          workdir: of the run.
          kept: whether compiled programs are kept beside the workdir, and taken from there.
          overrides: of the config.
          steps: that are made.

        Raises:
          WorkerFailed: the command did not end well.
        """
        if not (self.folder / WHOLE).is_dir():
            make_noise(self.folder, name=WHOLE, side=NOISE["side"], sizes={"train": self.size.whole, "test": TESTED})
        config = {
            **{"model.name": net, "data.name": WHOLE, "data.data_dir": self.folder, "train.duration": steps},
            **{"evaluate.train_split": f"train[:{TESTED}]", "evaluate.batch_size": TESTED, "schedule.name": "constant"},
        } | dict(overrides)
        flags = [f"--config.{key}={value}" for key, value in config.items()]
        cache = {
            "JAX_ENABLE_COMPILATION_CACHE": str(int(kept)),
            "RESNET_JAX_CACHE": str(workdir.parent / "cache"),
        }
        done = subprocess.run(
            [sys.executable, "-m", "resnet_jax", "train", f"--config={CONFIG}", f"--workdir={workdir}", *flags],
            env=surrounding_variables() | cache,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise WorkerFailed(f"resnet-jax train ended with {done.returncode}:\n{done.stderr[-2000:]}")
        return json.loads((workdir / "record.json").read_text())["start_seconds"]

    def compare(
        self,
        specs: Mapping[str, Mapping[str, Any]],
        pairs: Sequence[tuple[str, str]],
        *,
        rounds: int,
        wanted: float | None = None,
    ) -> dict[str, Any]:
        """Times subjects in turns: the rates of all, and ratios of their times for an image.

        Args:
          specs: by name.
          pairs: names of two, the first of which is divided by the other.
          rounds: windows of each.
          wanted: the most that the ratios should be.
        """
        wanted_pairs = [(*pair, wanted) for pair in pairs]
        return compare(SCRIPT, specs, wanted_pairs, rounds=rounds, seconds=self.size.seconds)


def against_pytorch(bench: Bench, net: str) -> dict[str, Any]:
    """Part a: a training step of both, augmentation included; PyTorch's with its own statistics of the whole batch."""
    dtype = "float32" if bench.on_cpu else "bfloat16"
    ours = f"resnet_jax, {dtype}"
    if bench.on_cpu:
        theirs = {"": {"bf16": False}, ", groups of 64": {"bf16": False, "group": 64}}
    else:
        modes = {"eager": None, "torch.compile": "default", "CUDA graphs": "reduce-overhead"}
        theirs = {f", {name}": {"bf16": True, "mode": mode} for name, mode in modes.items()}
    specs = {ours: bench.ours(net, dtype=dtype)}
    if bench.on_cpu:
        # By itself the library makes several in a call.
        specs[f"{ours}, 1 step in a call"] = bench.ours(net, steps=1, dtype=dtype)
    mine = list(specs)
    if bench.has_pytorch:
        specs |= {f"PyTorch, {dtype}{name}": bench.pytorch(net, **own) for name, own in theirs.items()}
    pairs = [(own, name) for own in mine for name in specs if name not in mine]
    found = bench.compare(specs, pairs, rounds=bench.size.rounds, wanted=CPU_TARGET if bench.on_cpu else None)
    return found if bench.has_pytorch else found | {"notes": ["PyTorch is not installed, so there is no ratio"]}


def a_loop(bench: Bench, net: str) -> dict[str, Any]:
    """Part b: ten steps in one call by ten calls."""
    specs = {"10 steps in a call": bench.ours(net, steps=10), "1 step in a call": bench.ours(net, steps=1)}
    return bench.compare(specs, [tuple(specs)], rounds=bench.size.rounds)


def dispatches(bench: Bench, net: str) -> dict[str, Any]:
    """Part c: steps in a call. On a CPU, where fifty take half a minute, there are too few pairs for an interval."""
    lengths, one = (50,) if bench.on_cpu else (50, 10), "1 step in a call"
    specs = {f"{length} steps in a call": bench.ours(net, steps=length) for length in lengths}
    pairs = [(name, one) for name in specs]
    rounds = bench.size.long_rounds if bench.on_cpu else bench.size.fewer_rounds
    return bench.compare(specs | {one: bench.ours(net, steps=1)}, pairs, rounds=rounds)


def dtypes(bench: Bench, net: str) -> dict[str, Any]:
    """Part c: bfloat16 by float32."""
    specs = {dtype: bench.ours(net, dtype=dtype) for dtype in reversed(_DTYPES)}
    return bench.compare(specs, [tuple(specs)], rounds=bench.size.fewer_rounds)


def seeds(bench: Bench, net: str) -> dict[str, Any]:
    """Part c: several seeds as one program by one seed, per image; on an accelerator that one leaves idle they gain."""
    specs = {f"{SEEDS} seeds at once": bench.ours(net, seeds=SEEDS), "one seed": bench.ours(net)}
    wanted = None if bench.on_cpu else SEEDS_TARGET
    return bench.compare(specs, [tuple(specs)], rounds=bench.size.fewer_rounds, wanted=wanted)


def scanned(bench: Bench) -> dict[str, Any]:
    """Part c: identical blocks as a loop, by one after the other."""
    net = f"cifar_resnet{bench.size.deep}"
    specs = {"scanned": bench.ours(net, scan=True), "unrolled": bench.ours(net, scan=False)}
    return bench.compare(specs, [tuple(specs)], rounds=bench.size.fewer_rounds)


def evaluated(bench: Bench, net: str) -> dict[str, Any]:
    """Part c: the test of a split by the net alone."""
    specs = {"test of a split": bench.ours(net, "evaluation"), "forward pass alone": bench.ours(net, "forward")}
    return bench.compare(specs, [tuple(specs)], rounds=bench.size.fewer_rounds)


def starts(bench: Bench, net: str) -> dict[str, Any]:
    """Part c: from the start of `resnet-jax train` to the end of its first call, without and with kept programs."""
    with tempfile.TemporaryDirectory(prefix="start_", dir=bench.folder) as folder:
        names = ("no programs kept", "first, which keeps them", "second")
        runs = [bench.start(net, Path(folder) / str(number), kept=number > 0) for number in range(len(names))]
    return {"starts": [{"name": name, "seconds": seconds} for name, seconds in zip(names, runs, strict=True)]}


def deepest(bench: Bench) -> dict[str, Any]:
    """Part d: first step, compilation and memory of the net whose blocks only a loop can compile."""
    layers = bench.size.deepest
    options = [{"scan": True, "remat": remat, "dtype": dtype} for dtype in _DTYPES for remat in (True, False)]
    variants = [bench.ours(f"cifar_resnet{layers}", **own) for own in options]
    variants += [bench.ours(f"cifar_resnet{count}", scan=False) for count in bench.unrolled]
    spec = {"kind": "plans", "data_dir": str(bench.folder)}
    spec["variants"] = [{"net": variant["net"], "overrides": variant["overrides"]} for variant in variants]
    with working(SCRIPT, {"plans": spec}) as (workers, _):
        plans = workers["plans"].said["plans"]
    unrolled = [plan["compile_seconds"] for plan in plans[len(options) :]]
    options = {"model.scan": True, "model.remat": True, "train.steps_per_dispatch": 1}
    with tempfile.TemporaryDirectory(prefix="start_", dir=bench.folder) as folder:
        seconds = bench.start(f"cifar_resnet{layers}", Path(folder) / "run", kept=False, overrides=options, steps=1)
    start = {"name": "scanned, remat, float32, no programs kept", "seconds": seconds}
    return {"plans": plans, "starts": [start], "extrapolated": power_law(bench.unrolled, unrolled, layers)}


def rows(bench: Bench, parts: Sequence[str], nets: Sequence[str]) -> list[TimedRow]:
    """Each row of some parts, which takes its time; all but the first part's are of the first net or of deep ones."""
    first = nets[0]
    every: dict[str, list[tuple[str, Callable[[Bench], dict[str, Any]]]]] = {
        "a": [(f"a {net}", lambda bench, net=net: against_pytorch(bench, net)) for net in nets],
        "b": [(f"b {first}", lambda bench: a_loop(bench, first))],
        "c": [
            (f"c {first}, steps in a call", lambda bench: dispatches(bench, first)),
            (f"c {first}, dtype", lambda bench: dtypes(bench, first)),
            (f"c {first}, seeds", lambda bench: seeds(bench, first)),
            ("c scan", scanned),
            (f"c {first}, test", lambda bench: evaluated(bench, first)),
            (f"c {first}, start", lambda bench: starts(bench, first)),
        ],
        "d": [("d deepest net", deepest)],
    }

    def whole(measure: Callable[[Bench], dict[str, Any]], **limits: Any) -> dict[str, Any]:
        return measure(bench)

    return [(name, partial(whole, measure)) for part in parts for name, measure in every[part]]
