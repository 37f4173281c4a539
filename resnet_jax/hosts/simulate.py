"""A run of several processes on one machine, to try out or test what a run on several hosts will do."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any

from resnet_jax.environment import available_cores
from resnet_jax.hosts.place import COORDINATOR, PROCESS_COUNT, PROCESS_INDEX

FLAG = "--simulate_hosts"

# So long a process may take to heed SIGTERM.
_TERMINATION_SECONDS = 5.0
_POLL_SECONDS = 0.02

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def simulate(count: int, words: Sequence[str], *, devices_per_host: int = 1) -> int:
    """Runs the same command in several processes of this machine, each as if on a host of its own; waits for all.

    They join through a free port of the loopback, use the CPU and talk through gloo. NPROC, the threads of each, stays
    as it is; where it is not set, the machine's cores are shared out, but each process has two at least, because XLA
    rounds otherwise with one. Process 0 writes where this process does; of the others each line has its index in
    front, "[1] ...". SIGINT and SIGTERM are passed on. If a process fails, the others are ended after 15 s. Should
    this process be killed, they are, too (on Linux).

    Args:
      count: processes, at least 1.
      words: of the command line after `resnet-jax`; `--simulate_hosts` is left out of them.
      devices_per_host: CPU devices of each process.

    Returns:
      The exit code of the process that failed first, 128 + N if signal N ended it; 0 if none did.

    Raises:
      ValueError: for a count below 1, or inside a simulated process.
    """
    for name, number in {"simulate_hosts": count, "devices_per_host": devices_per_host}.items():
        if number < 1:
            raise ValueError(f"{name}={number}: at least 1")
    if PROCESS_INDEX in os.environ:
        raise ValueError(f"{FLAG}: this process is one of several already ({PROCESS_INDEX} is set)")
    return run_together([sys.executable, "-m", "resnet_jax", *_without_flag(words)], count, devices_per_host)


def run_together(command: Sequence[str], count: int, devices: int, *, grace_seconds: float = 15) -> int:
    """What `simulate` does, with any command.

    Args:
      command: program and arguments.
      count: processes.
      devices: CPU devices of each.
      grace_seconds: after the first failure the others, who may be about to say what they noticed, have so long to
        end by themselves.
    """
    processes: list[subprocess.Popen[str]] = []
    relays: list[threading.Thread] = []
    with _passing_on_signals(processes):
        try:
            variables = _variables(count, devices)
            for index in range(count):
                processes.append(_start(command, variables | {PROCESS_INDEX: str(index)}, direct=index == 0))
            for index, process in enumerate(processes):
                prefix = f"[{index}] " if index else ""
                for stream, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                    if stream is not None:
                        relays.append(threading.Thread(target=_relay, args=(stream, target, prefix), daemon=True))
                        relays[-1].start()
            return _wait(processes, grace_seconds)
        finally:
            # Their own children, too, such as data workers.
            for process in processes:
                _signal_group(process, signal.SIGKILL)
                process.wait()
            for relay in relays:
                relay.join(_TERMINATION_SECONDS)


def _without_flag(words: Sequence[str]) -> list[str]:
    kept, skip = [], False
    for word in words:
        if not skip and word.partition("=")[0] != FLAG:
            kept.append(word)
        skip = word == FLAG
    return kept


def _variables(count: int, devices: int) -> dict[str, str]:
    variables = dict(os.environ)
    # Where XLA_FLAGS says a number of devices too, jax's own variable holds.
    variables |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "NPROC": os.environ.get("NPROC") or str(max(2, available_cores() // count)),
        PROCESS_COUNT: str(count),
    }
    with socket.create_server(("127.0.0.1", 0)) as free:
        return variables | {COORDINATOR: f"127.0.0.1:{free.getsockname()[1]}"}


def _start(command: Sequence[str], variables: dict[str, str], *, direct: bool) -> subprocess.Popen[str]:
    libc, parent = ctypes.CDLL(None), os.getpid()

    def die_with_parent() -> None:
        if sys.platform == "linux":
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    def output(target: IO[str]) -> int | None:
        # Line by line, so that no process writes into another's line; but a progress bar needs the terminal.
        return None if direct and target.isatty() else subprocess.PIPE

    return subprocess.Popen(
        command,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=output(sys.stdout),
        stderr=output(sys.stderr),
        text=True,
        errors="replace",
        # A session of its own: a terminal's Ctrl-C comes once, passed on, and what it started ends with it.
        start_new_session=True,
        # Before this process has threads of its own.
        preexec_fn=die_with_parent,
    )


def _relay(stream: IO[str], target: IO[str], prefix: str) -> None:
    with stream:
        for line in stream:
            # Whoever read this may have gone, which is no reason to hold up the process.
            with contextlib.suppress(BrokenPipeError):
                target.write(f"{prefix}{line.rstrip()}\n")
                target.flush()


def _wait(processes: Sequence[subprocess.Popen[str]], grace_seconds: float) -> int:
    """Until all have ended, by themselves or after the first has failed; returns the first failure's exit code."""
    failure, failed_at = 0, 0.0
    remedies = [(grace_seconds, signal.SIGTERM), (grace_seconds + _TERMINATION_SECONDS, signal.SIGKILL)]
    running = list(processes)
    while running:
        for process in [one for one in running if one.poll() is not None]:
            running.remove(process)
            if process.returncode and not failure:
                failure, failed_at = process.returncode, time.monotonic()
        if failure and remedies and time.monotonic() - failed_at > remedies[0][0]:
            remedy = remedies.pop(0)[1]
            for process in running:
                _signal_group(process, remedy)
        time.sleep(_POLL_SECONDS)
    return failure if failure >= 0 else 128 - failure


def _signal_group(process: subprocess.Popen[str], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says the latter of one that has ended
        os.killpg(process.pid, number)


@contextlib.contextmanager
def _passing_on_signals(processes: Sequence[subprocess.Popen[str]]) -> Iterator[None]:
    """Sends SIGINT and SIGTERM on to the processes, each of which is left to end in its own way."""

    def pass_on(number: int, _frame: Any) -> None:
        for process in processes:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
