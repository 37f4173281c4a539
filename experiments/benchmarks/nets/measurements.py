"""The rows of the record: this library beside a plain Flax trainer and PyTorch, net by net."""

import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from flax_trainer import NETS as FLAX_NETS

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from rows import TimedRow  # noqa: E402
from worker import OutOfMemory, Worker, WorkerFailed, compare  # noqa: E402

from resnet_jax.benchmark.windows import ratio  # noqa: E402

SCRIPT = HERE / "subjects.py"
OURS, SCANNED, FLAX = "resnet_jax", "resnet_jax, scanned", "Flax trainer"
WHATS = ("train", "inference", "compile")
# What torch.compile is given, see `torch_nets`.
MODES = {"eager": None, "torch.compile": "default", "CUDA graphs": "reduce-overhead"}
# At most so many times the comparator's time: a training step on a CPU in float32; resnet50's on a GPU in bfloat16 by
# torch.compile's; other training steps on a GPU; a compilation.
_ON_CPU, _RESNET50, _NO_SLOWER, _COMPILATION = 1.5, 0.87, 1.0, 0.5


class Size(NamedTuple):
    """How much is measured: windows of each subject, seconds of one, compilations of each."""

    rounds: int
    seconds: float
    compilations: int


SIZES = {"full": Size(9, 2.0, 3), "small": Size(2, 0.05, 1)}


class Setting(NamedTuple):
    """What a row is about.

    Attributes:
      what: one of `WHATS`.
      net: as torchvision names it, or a net for CIFAR.
      batch_size: images.
      image_size: pixels, their height and width.
      dtype: of the computation.
    """

    what: str
    net: str
    batch_size: int
    image_size: int
    dtype: str

    @property
    def row(self) -> str:
        """The row's name."""
        return f"{self.what} {self.net}, {self.batch_size} of {self.image_size} pixels, {self.dtype}"


def specs(setting: Setting, modes: Sequence[str], platform: str) -> dict[str, dict[str, Any]]:
    """The subjects of a row by name, see `subjects`; this library's is the first."""
    what, net, batch_size, image_size, dtype = setting
    shared = {"net": net, "batch_size": batch_size, "image_size": image_size}
    found = {OURS: _ours(setting)}
    if what == "compile":
        overrides = {**found[OURS]["overrides"], "model.scan": True}
        found[SCANNED] = {**found[OURS], "overrides": overrides}
    if what != "inference" and net in FLAX_NETS:
        kind = "flax_train" if what == "train" else "flax_compilation"
        found[FLAX] = {"kind": kind, **shared, "dtype": dtype}
    if what != "compile":
        own = {"bf16": dtype == "bfloat16", "device": "cpu" if platform == "cpu" else "cuda"}
        found |= {
            f"PyTorch, {mode}": {"kind": f"pytorch_{what}", **shared, **own, "mode": MODES[mode]} for mode in modes
        }
    return found


def _ours(setting: Setting) -> dict[str, Any]:
    """Statistics are of the whole batch, and bottlenecks have the stride in the 3x3, as in the others' nets."""
    overrides: dict[str, Any] = {"model.bn_group_size": None, "model.dtype": setting.dtype}
    overrides |= {"train.batch_size": setting.batch_size, "evaluate.batch_size": setting.batch_size}
    config = "cifar10:resnet20"
    if setting.net.startswith("cifar_"):
        overrides["model.name"] = setting.net
    else:
        config = f"imagenet:goyal90,{setting.net}"
        overrides |= {"data.image_size": setting.image_size, "schedule.warmup_start": 0}
    kind = "compilation" if setting.what == "compile" else setting.what
    return {"kind": kind, "config": config, "overrides": overrides}


def wanted(setting: Setting, name: str, platform: str) -> float | None:
    """The most that the ratio of this library's time by a comparator's should be; None: nothing is promised."""
    if setting.what == "compile":
        return _COMPILATION
    if setting.what == "inference":
        return None
    if platform == "cpu":
        return _ON_CPU if setting.dtype == "float32" and name == "PyTorch, eager" else None
    promised = ("resnet50", "bfloat16", "PyTorch, torch.compile")
    return _RESNET50 if (setting.net, setting.dtype, name) == promised else _NO_SLOWER


class Bench(NamedTuple):
    """How rows are measured: how much, PyTorch's modes, and the devices' platform."""

    size: Size
    modes: Sequence[str]
    platform: str

    def rows(self, settings: Sequence[Setting]) -> list[TimedRow]:
        """A row each, see `timed`."""
        kinds = {"compile": self.compiled}
        return [(setting.row, partial(kinds.get(setting.what, self.timed), setting)) for setting in settings]

    def timed(self, setting: Setting, *, until: float, whole: bool) -> dict[str, Any]:
        """Times all subjects in turns, with half of the batch while memory does not suffice for it.

        Args:
          setting: of the row.
          until: when there is no more time, by `time.monotonic`.
          whole: rather have no row than one with fewer rounds.

        Raises:
          WorkerFailed: there was no time or no memory, or this library or Flax's trainer failed.
        """
        subjects = specs(setting, self.modes, self.platform)
        pairs = [(OURS, name, wanted(setting, name, self.platform)) for name in subjects if name != OURS]
        options: dict[str, Any] = {"rounds": self.size.rounds, "seconds": self.size.seconds, "until": until}
        try:
            found = compare(SCRIPT, subjects, pairs, **options)
        except OutOfMemory:
            half = setting.batch_size // 2
            if not half:
                raise
            found = self.timed(setting._replace(batch_size=half), until=until, whole=whole)
            return found | {"notes": [*found["notes"], f"for {setting.batch_size} images memory did not suffice"]}
        _check(len(found["rates"][OURS]["windows"]), self.size.rounds, whole)
        return found

    def compiled(self, setting: Setting, *, until: float, whole: bool) -> dict[str, Any]:
        """Compiles training steps in turns, each time in a new process; arguments and errors as of `timed`."""
        subjects = specs(setting, self.modes, self.platform)
        said: dict[str, list] = {name: [] for name in subjects}
        for number in range(self.size.compilations):
            begun = time.monotonic()
            for name in list(subjects) if number % 2 == 0 else reversed(subjects):
                worker = Worker(SCRIPT, subjects[name], {})
                worker.close()
                said[name].append(worker.said)
            if 2 * time.monotonic() - begun > until:
                break
        _check(len(said[OURS]), self.size.compilations, whole)
        keys = (("compile_seconds",), ("trace_seconds", "compile_seconds"))
        mine = [name for name in (OURS, SCANNED) if FLAX in said]
        ratios = [_compiled_ratio(said, name, each) for name in mine for each in keys]
        return {"subjects": subjects, "compilations": said, "ratios": ratios, "notes": []}


def _check(done: int, rounds: int, whole: bool) -> None:
    if whole and done < rounds:
        raise WorkerFailed(f"there was time for {done} of {rounds} rounds; the same command makes it anew")


def _compiled_ratio(said: Mapping[str, Sequence[Mapping[str, Any]]], mine: str, keys: Sequence[str]) -> dict[str, Any]:
    """Of this library's seconds, one way or the other, by the Flax trainer's."""
    above, below = (
        [{"images": 1, "seconds": sum(found[key] for key in keys)} for found in said[name]] for name in (mine, FLAX)
    )
    return {"of": list(keys), "above": mine, "below": FLAX, **ratio(above, below), "wanted": _COMPILATION}
