"""One measurement, in a process of its own, which leaves the devices free and its peak memory to itself.

    python -m resnet_jax.benchmark.measuring < REQUEST.json

does it; `measure` calls that.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from resnet_jax.config_files import from_json, to_json

# What kinds of measurement are made of: subjects that are timed in turns. Real images where the second entry says so.
KINDS: dict[str, tuple[tuple[str, ...], bool]] = {
    "train": (("train",), False),
    "eval": (("evaluate", "forward"), False),
    "multi_scale": (("dense", "dense_forward"), False),
    "input": (("read",), True),
    "compile": (("compile",), False),
    "end_to_end": (("train",), True),
}
_OUT_OF_MEMORY = 3
# Of a window, that a try must take before its speed says how many batches fill one.
_TRY = 0.25


class OutOfMemory(Exception):
    """The device's memory, or the host's, does not suffice."""


class MeasurementFailed(Exception):
    """The process ended by itself; the message has its last lines."""


def measure(kind: str, config: ConfigDict, *, windows: int, seconds: float | int) -> list[dict[str, Any]]:
    """Times what a kind is made of, for one config.

    Args:
      kind: of `KINDS`.
      config: checked.
      windows: of each subject.
      seconds: that a window should take.

    Returns:
      A row for each subject: "subject", "model", "batch_size", "image_shape", "dtype", what its function says, see
      `subjects`, the rate, see `windows.rate`, and the peak memory of the process.

    Raises:
      OutOfMemory: at this batch size.
      MeasurementFailed: for any other reason.
    """
    request = {"kind": kind, "config": to_json(config), "windows": windows, "seconds": seconds}
    return _answer(request)


def surroundings(dtype: str) -> dict[str, Any]:
    """Versions, devices, processor and commit, and what the device can do at most, see `ceilings`."""
    return _answer({"kind": "surroundings", "dtype": dtype})


def _answer(request: Mapping[str, Any]) -> Any:
    command = [sys.executable, "-m", "resnet_jax.benchmark.measuring"]
    # A program of yesterday would hide what compiling takes.
    variables = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, env=variables)
    if done.returncode == 0:
        return json.loads(done.stdout.rpartition("\n\n")[2])
    last = done.stderr.strip()[-3000:]
    # Where the host's memory ends, the system kills.
    if done.returncode in (_OUT_OF_MEMORY, -9):
        raise OutOfMemory(last.rpartition("\n")[2] or f"the process ended with {done.returncode}")
    raise MeasurementFailed(f"{request['kind']} ended with {done.returncode}:\n{last}")


def in_turns(runs: Mapping[str, Callable[[int], int]], *, windows: int, seconds: float | int) -> dict[str, list[dict]]:
    """Times all once a round, in the reverse order every other one, so that a machine that drifts favours nobody."""
    batches = {name: _batches_in(run, seconds) for name, run in runs.items()}
    found: dict[str, list[dict]] = {name: [] for name in runs}
    for number in range(windows):
        for name in list(runs)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(_window(runs[name], batches[name]))
    return found


def _batches_in(run: Callable[[int], int], seconds: float | int) -> int:
    batches = 1
    while (found := _window(run, batches))["seconds"] < _TRY * seconds:
        batches *= 2
    return max(1, math.ceil(batches * seconds / found["seconds"]))


def _window(run: Callable[[int], int], batches: int) -> dict[str, float | int]:
    from resnet_jax.benchmark.energy import joules

    used, begun = joules(), time.perf_counter()
    images = run(batches)
    found: dict[str, float | int] = {"images": images, "seconds": time.perf_counter() - begun}
    if used is not None and (now := joules()) is not None and now >= used:
        found["joules"] = now - used
    return found


def _rows(kind: str, config: ConfigDict, *, windows: int, seconds: float | int) -> list[dict[str, Any]]:
    from resnet_jax.benchmark import subjects
    from resnet_jax.benchmark.synthetic import synthetic_parts
    from resnet_jax.benchmark.windows import rate
    from resnet_jax.build import build
    from resnet_jax.environment import peak_memory

    functions = {
        **{"train": subjects.train, "compile": subjects.compile_only, "read": subjects.read},
        **{"evaluate": subjects.evaluate, "forward": subjects.forward},
        **{"dense": subjects.dense, "dense_forward": subjects.dense_forward},
    }
    names, real = KINDS[kind]
    parts = build(config) if real else synthetic_parts(config)
    try:
        made = {name: functions[name](parts) for name in names}
        runs = {} if kind == "compile" else {name: subject.run for name, subject in made.items()}
        timed = in_turns(runs, windows=windows, seconds=seconds)
    finally:
        parts.feed.close()
    shared = {
        **{"kind": kind, "model": config.model.name, "dtype": config.model.dtype},
        **{"image_shape": list(parts.input.image_shape), "classes": len(parts.input.class_names)},
        **{"data": config.data.name if real else "synthetic"},
        **peak_memory(),
    }
    return [
        {"subject": name, **shared, **subject.said}
        | (rate(timed[name], batch=subject.said["batch"]) if name in timed else {})
        for name, subject in made.items()
    ]


def _surroundings(dtype: str) -> dict[str, Any]:
    from resnet_jax.benchmark.ceilings import ceilings
    from resnet_jax.environment import environment

    return {**environment(), "xla_flags": os.environ.get("XLA_FLAGS", ""), "ceilings": ceilings(dtype)}


def main() -> int:
    """Answers the request on stdin with JSON, the last paragraph of stdout."""
    import jax

    request = json.load(sys.stdin)
    kind = request.pop("kind")
    try:
        if kind == "surroundings":
            found: Any = _surroundings(**request)
        else:
            found = _rows(kind, from_json(request.pop("config")), **request)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(error, file=sys.stderr)
        return _OUT_OF_MEMORY
    print(f"\n\n{json.dumps(found)}", end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
