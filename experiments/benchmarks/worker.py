"""Processes that hold one subject each, timed in turns: what the benchmarks of speed share."""

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet_jax.benchmark.windows import Window, rate, ratio

# Of a window, that a try must take before its speed says how many batches fill one.
_TRY = 0.25


_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "OutOfMemoryError", "out of memory")


class WorkerFailed(Exception):
    """A process ended by itself; the message has its last lines."""


class OutOfMemory(WorkerFailed):
    """Its device had no more memory."""


class Worker:
    """A process with a subject, which has done its first call; `said` is what it says of itself.

    Args:
      script: that calls `serving.serve`.
      spec: of the subject, for the script.
      variables: of the environment, besides those of this process.

    Raises:
      WorkerFailed: it could not.
    """

    def __init__(self, script: Path, spec: Mapping[str, Any], variables: Mapping[str, str]):
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8")
        begun = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, str(script), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=surrounding_variables() | dict(variables),
        )
        try:
            self.said = self._answer()
            self.start_seconds = time.perf_counter() - begun
        except BaseException:
            self.close()
            raise

    def measure(self, batches: int) -> dict[str, float]:
        """Times a window of so many batches, or the calls that come nearest."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{batches}\n")
        self.process.stdin.flush()
        return self._answer()

    def batches_in(self, seconds: float) -> int:
        """How many batches take that long, at least one call."""
        batches = self.said["batches_per_call"]
        while (found := self.measure(batches))["seconds"] < _TRY * seconds:
            batches *= 2
        return max(self.said["batches_per_call"], math.ceil(batches * seconds / found["seconds"]))

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            errors = self.errors.read()
            failure = OutOfMemory if any(mark in errors for mark in _OUT_OF_MEMORY) else WorkerFailed
            raise failure(f"{self.process.args[1:]} ended with {code}:\n{errors[-3000:]}")
        return json.loads(line)


def surrounding_variables() -> dict[str, str]:
    """Of the environment: no compiled programs of yesterday, no device memory that others would lack."""
    return os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


@contextlib.contextmanager
def working(script: Path, specs: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[dict[str, Worker], dict[str, str]]]:
    """The workers of some subjects, ended after the block, and why PyTorch's could not be started, by their names.

    PyTorch's are those whose kind begins with its name.

    Raises:
      WorkerFailed: another could not, or the device had no memory for one of PyTorch's.
    """
    with contextlib.ExitStack() as stack:
        workers, failed = {}, {}
        for name, spec in specs.items():
            # PyTorch's process has jax for the reading of files alone.
            theirs = spec["kind"].startswith("pytorch")
            try:
                workers[name] = Worker(script, spec, {"JAX_PLATFORMS": "cpu"} if theirs else {})
            except WorkerFailed as error:
                if not theirs or isinstance(error, OutOfMemory):
                    raise
                failed[name] = str(error).strip().rpartition("\n")[2]
                continue
            stack.callback(workers[name].close)
        yield workers, failed


def in_turns(
    workers: Mapping[str, Worker], *, rounds: int, seconds: float, until: float = math.inf
) -> dict[str, list[Window]]:
    """Times all once a round, in the reverse order every other one, so that a machine that drifts favours nobody.

    Args:
      workers: by name.
      rounds: windows of each, fewer where the next round would not end in time, but at least one.
      seconds: of a window, or of one call where that is longer.
      until: when there is no more time, by `time.monotonic`.
    """
    batches = {name: worker.batches_in(seconds) for name, worker in workers.items()}
    # Of no fewer batches than others' calls have.
    least = max(worker.said["batches_per_call"] for worker in workers.values())
    windows: dict[str, list[Window]] = {name: [] for name in workers}
    for number in range(rounds):
        begun = time.monotonic()
        for name in list(workers) if number % 2 == 0 else reversed(workers):
            windows[name].append(workers[name].measure(max(least, batches[name])))
        if 2 * time.monotonic() - begun > until:
            break
    return windows


def compare(
    script: Path,
    specs: Mapping[str, Mapping[str, Any]],
    pairs: Sequence[tuple[str, str, float | None]],
    *,
    rounds: int,
    seconds: float,
    until: float = math.inf,
) -> dict[str, Any]:
    """Times subjects in turns: the rates of all, and ratios of their times for an image.

    Args:
      script: see `Worker`.
      specs: by name.
      pairs: names of two, the first of which is divided by the other, and the most that this should be.
      rounds: see `in_turns`.
      seconds: likewise.
      until: likewise.
    """
    with working(script, specs) as (workers, failed):
        windows = in_turns(workers, rounds=rounds, seconds=seconds, until=until)
        said = {name: worker.said for name, worker in workers.items()}
    rates = {name: said[name] | rate(found, batch=said[name]["batch"]) for name, found in windows.items()}
    ratios = [
        {"above": above, "below": below, **ratio(windows[above], windows[below]), "wanted": wanted}
        for above, below, wanted in pairs
        if {above, below} <= set(windows)
    ]
    notes = [f"{name} could not be measured: {reason}" for name, reason in failed.items()]
    return {"subjects": specs_without_places(specs), "rates": rates, "ratios": ratios, "notes": notes}


def specs_without_places(specs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The subjects as a record has them: without folders of this machine."""
    return {name: {key: value for key, value in spec.items() if key != "data_dir"} for name, spec in specs.items()}


def surroundings(script: Path) -> dict[str, Any]:
    """Versions, devices, processor and commit, found in a process of its own, which leaves the devices free."""
    worker = Worker(script, {"kind": "surroundings"}, {})
    worker.close()
    return worker.said
