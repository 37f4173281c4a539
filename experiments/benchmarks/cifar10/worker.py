"""Processes that hold one subject each, timed in turns."""

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.benchmark.windows import Window

HERE = Path(__file__).resolve().parent
# Of a window, that a try must take before its speed says how many batches fill one.
_TRY = 0.25


class WorkerFailed(Exception):
    """A process ended by itself; the message has its last lines."""


class Worker:
    """A process with a subject, which has done its first call; `said` is what it says of itself.

    Raises:
      WorkerFailed: it could not.
    """

    def __init__(self, spec: Mapping[str, Any], variables: Mapping[str, str]):
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8")
        begun = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "subjects.py"), json.dumps(spec)],
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
            raise WorkerFailed(f"{self.process.args[1:]} ended with {code}:\n{self.errors.read()[-3000:]}")
        return json.loads(line)


def surrounding_variables() -> dict[str, str]:
    """Of the environment: no compiled programs of yesterday, no device memory that others would lack."""
    return os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


@contextlib.contextmanager
def working(specs: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[dict[str, Worker], dict[str, str]]]:
    """The workers of some subjects, ended after the block, and why PyTorch's could not be started, by their names.

    Raises:
      WorkerFailed: one of this library's could not.
    """
    with contextlib.ExitStack() as stack:
        workers, failed = {}, {}
        for name, spec in specs.items():
            # PyTorch's process has jax for the reading of files alone.
            theirs = spec["kind"] == "pytorch"
            try:
                workers[name] = Worker(spec, {"JAX_PLATFORMS": "cpu"} if theirs else {})
            except WorkerFailed as error:
                if not theirs:
                    raise
                failed[name] = str(error).strip().rpartition("\n")[2]
                continue
            stack.callback(workers[name].close)
        yield workers, failed


def in_turns(workers: Mapping[str, Worker], *, rounds: int, seconds: float) -> dict[str, list[Window]]:
    """Times all once a round, in the reverse order every other one, so that a machine that drifts favours nobody."""
    batches = {name: worker.batches_in(seconds) for name, worker in workers.items()}
    # Of no fewer batches than others' calls have.
    least = max(worker.said["batches_per_call"] for worker in workers.values())
    windows: dict[str, list[Window]] = {name: [] for name in workers}
    for number in range(rounds):
        for name in list(workers) if number % 2 == 0 else reversed(workers):
            windows[name].append(workers[name].measure(max(least, batches[name])))
    return windows


def make_noise(data_dir: Path, *, name: str, side: int, sizes: Mapping[str, int]) -> None:
    """Writes a data set of coloured squares in ten classes, whose pixels and labels are random."""
    import tensorflow_datasets as tfds
    from PIL import Image

    from resnet_jax.data.builders.array_records import SplitExamples, write_data_set

    def split_of(number: int, count: int) -> SplitExamples:
        random = np.random.default_rng(number)
        images, labels = random.integers(0, 256, (count, side, side, 3), np.uint8), random.integers(0, 10, count)

        def example(index: int) -> dict[str, Any]:
            return {"image": Image.fromarray(images[index]), "label": int(labels[index])}

        return SplitExamples([str(index) for index in range(count)], images.nbytes, example)

    features = {
        "image": tfds.features.Image(shape=(side, side, 3), encoding_format="png"),
        "label": tfds.features.ClassLabel(num_classes=10),
    }
    folder = data_dir / name / "1.0.0"
    folder.mkdir(parents=True)
    splits = {split: split_of(number, count) for number, (split, count) in enumerate(sizes.items())}
    options = {"name": name, "version": "1.0.0", "description": "Random pixels and labels."}
    write_data_set(folder, splits, features=tfds.features.FeaturesDict(features), **options)
