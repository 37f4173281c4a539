"""The rows of the record: what is timed against what, part by part."""

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from growth import power_law
from noise import make_noise
from subjects import BATCH, DATASET, HERE

sys.path.append(str(HERE.parent))
from rows import Row  # noqa: E402
from worker import Worker, compare, working  # noqa: E402

SCRIPT = HERE / "subjects.py"

# A CPU is to take at most so many times as long for a step as PyTorch.
CPU_TARGET = 1.5
_DTYPES = ("float32", "bfloat16")
# Of CIFAR-10's form; so many for training as the longest call takes.
NOISE: dict[str, Any] = {"side": 32, "sizes": {"train": 50 * BATCH, "test": 2000}}


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
    """

    rounds: int
    fewer_rounds: int
    long_rounds: int
    seconds: float
    deep: int
    deepest: int
    unrolled: tuple[int, ...]
    unrolled_on_cpu: tuple[int, ...]


SIZES = {
    "full": Size(9, 6, 2, seconds=2.0, deep=110, deepest=1202, unrolled=(110, 218, 302), unrolled_on_cpu=(20, 56, 110)),
    "small": Size(2, 1, 1, seconds=0.2, deep=14, deepest=20, unrolled=(8, 14), unrolled_on_cpu=(8, 14)),
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

    def ours(self, net: str, kind: str = "train", *, steps: int | None = None, **model: Any) -> dict[str, Any]:
        """A subject of this library; steps are those of a dispatch, None as the library chooses."""
        overrides = {f"model.{key}": value for key, value in model.items()}
        overrides |= {"data.train_split": self.split(steps or 1), "train.steps_per_dispatch": steps}
        return {"kind": kind, "net": net, "data_dir": str(self.folder), "overrides": overrides}

    def pytorch(self, net: str, *, bf16: bool, mode: str | None = None, group: int | None = None) -> dict[str, Any]:
        """PyTorch's training step, channels last; without a group it has statistics of the whole batch."""
        device = "cpu" if self.on_cpu else "cuda"
        own = {"bf16": bf16, "mode": mode, "group": group, "device": device, "split": self.split()}
        return {"kind": "pytorch", "net": net, "data_dir": str(self.folder), **own}

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
    """Part c: from the start of a process to its first step, without and with the programs of another."""
    spec, found = bench.ours(net, steps=1), []
    with tempfile.TemporaryDirectory(prefix="compiled_", dir=bench.folder) as cache:
        kept = {
            **{"JAX_ENABLE_COMPILATION_CACHE": "1", "JAX_COMPILATION_CACHE_DIR": cache},
            **{"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"},
        }
        for name, variables in (("no cache", {}), ("first, which fills it", kept), ("second", kept)):
            found.append({"name": name, **_start(spec, variables)})
    return {"starts": found}


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
    start = {"name": "scanned, remat, float32", **_start(variants[0], {})}
    return {"plans": plans, "starts": [start], "extrapolated": power_law(bench.unrolled, unrolled, layers)}


def _start(spec: Mapping[str, Any], variables: Mapping[str, str]) -> dict[str, Any]:
    worker = Worker(SCRIPT, spec, variables)
    worker.close()
    return {"seconds_to_first_step": worker.start_seconds, **worker.said}


def rows(bench: Bench, parts: Sequence[str], nets: Sequence[str]) -> list[Row]:
    """Name and function of each row of some parts; all but the first part's are of the first net or of deep ones."""
    first = nets[0]
    every: dict[str, list[tuple[str, Callable[[Bench], dict[str, Any]]]]] = {
        "a": [(f"a {net}", lambda bench, net=net: against_pytorch(bench, net)) for net in nets],
        "b": [(f"b {first}", lambda bench: a_loop(bench, first))],
        "c": [
            (f"c {first}, steps in a call", lambda bench: dispatches(bench, first)),
            (f"c {first}, dtype", lambda bench: dtypes(bench, first)),
            ("c scan", scanned),
            (f"c {first}, test", lambda bench: evaluated(bench, first)),
            (f"c {first}, start", lambda bench: starts(bench, first)),
        ],
        "d": [("d deepest net", deepest)],
    }
    return [(name, partial(measure, bench)) for part in parts for name, measure in every[part]]
