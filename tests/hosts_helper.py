"""Real processes for tests of runs of several: they join through the loopback, and none outlives its test."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parent.parent

JOIN = "from resnet_jax.hosts.launch import join\nassert join()\n"


class Ended(NamedTuple):
    """A process that has ended: its exit code (negative: a signal) and what it wrote, stderr included."""

    code: int
    output: str
    seconds: float


def free_port() -> int:
    """A port of the loopback that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def clean_environment(*, devices: int = 1) -> dict[str, str]:
    """This process's, without what makes it a test process or one of several."""
    dropped = ("XLA_FLAGS", "PYTHONWARNINGS")
    kept = {
        key: value
        for key, value in os.environ.items()
        if key == "RESNET_JAX_CACHE" or key not in dropped and "_JAX_" not in key
    }
    # Without a fixed number of threads the results depend on the machine.
    return kept | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "NPROC": "2"}


def run_processes(
    snippet: str | Sequence[str],
    count: int,
    logs: Path,
    *,
    devices: int = 1,
    seconds: float = 60,
    indices: Sequence[int] | None = None,
    environment: dict[str, str] | None = None,
) -> list[Ended]:
    """Runs a piece of Python in each process of a run and waits until all have ended.

    Args:
      snippet: the Python code; or one for each process that is started.
      count: processes that the run is said to have.
      logs: folder that keeps each process's output as process_N.log.
      devices: CPU devices of each process.
      seconds: after these a process is killed: SIGTERM does not end one that jax has joined.
      indices: the processes that are really started; None starts all.
      environment: more variables.

    Returns:
      How each process ended, in the order of `indices`.
    """
    indices = range(count) if indices is None else indices
    snippets = [snippet] * len(indices) if isinstance(snippet, str) else snippet
    variables = clean_environment(devices=devices) | {
        "RESNET_JAX_COORDINATOR": f"127.0.0.1:{free_port()}",
        "RESNET_JAX_PROCESS_COUNT": str(count),
    }
    started = time.monotonic()
    processes = [
        start(code, logs / f"process_{number}.log", variables | {"RESNET_JAX_PROCESS_INDEX": str(index)}, environment)
        for number, (index, code) in enumerate(zip(indices, snippets, strict=True))
    ]
    ended: dict[int, float] = {}
    try:
        while len(ended) < len(processes) and time.monotonic() < started + seconds:
            for number, process in enumerate(processes):
                if process.poll() is not None:
                    ended.setdefault(number, time.monotonic() - started)
            time.sleep(0.02)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [
        Ended(process.returncode, (logs / f"process_{number}.log").read_text(), ended.get(number, seconds))
        for number, process in enumerate(processes)
    ]


def start(
    code: str, log: Path, variables: dict[str, str], more: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """One process that runs a piece of Python."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=CHECKOUT,
            env=variables | (more or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
