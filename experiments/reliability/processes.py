"""Real processes of one run: started through the loopback, watched, struck, waited for; none outlives its block."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

# Nothing here takes so long unless it hangs, which counts as a fault.
PATIENCE_SECONDS = 180.0
_POLL_SECONDS = 0.001
HUNG = "hung"


def free_port() -> int:
    """A port of the loopback that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def clean_environment(*, devices: int = 1) -> dict[str, str]:
    """This process's, without what would make a run another one."""
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS" and "JAX_" not in name}
    # Without a fixed number of threads the results depend on the machine.
    fixed = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "NPROC": "2"}
    cached = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    return kept | fixed | cached


class Run:
    """One process for each command; of several, each knows its place in one run."""

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        logs: Path,
        *,
        devices: int = 1,
        caches: Sequence[Path] | None = None,
        variables: Sequence[Mapping[str, str]] | None = None,
    ):
        """Starts them.

        Args:
          commands: program and arguments of each.
          logs: folder for what they write, `process_N.log`.
          devices: CPU devices of each.
          caches: a folder of compiled programs for each, of its own: jax does not write its entries atomically.
          variables: more of the environment, for each.
        """
        logs.mkdir(parents=True, exist_ok=True)
        environment = clean_environment(devices=devices)
        if len(commands) > 1:
            environment["RESNET_JAX_COORDINATOR"] = f"127.0.0.1:{free_port()}"
            environment["RESNET_JAX_PROCESS_COUNT"] = str(len(commands))
        self.logs = [logs / f"process_{index}.log" for index in range(len(commands))]
        self.begun = time.monotonic()
        self.ended: dict[int, float] = {}
        self.seen: dict[str, float] = {}
        self.processes: list[subprocess.Popen[bytes]] = []
        for index, command in enumerate(commands):
            own = environment | {"RESNET_JAX_PROCESS_INDEX": str(index)} if len(commands) > 1 else dict(environment)
            if caches is not None:
                own["JAX_COMPILATION_CACHE_DIR"] = str(caches[index])
            with self.logs[index].open("wb") as log:
                # A session of its own: data workers are ended with it.
                self.processes.append(
                    subprocess.Popen(
                        command,
                        # Nothing is imported from where this happens to run.
                        cwd=logs,
                        env=own | dict(variables[index] if variables else {}),
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def alive(self) -> list[int]:
        """Which have not ended; when each of the others was seen to have."""
        for index, process in enumerate(self.processes):
            if process.poll() is not None:
                self.ended.setdefault(index, time.monotonic())
        return [index for index in range(len(self.processes)) if index not in self.ended]

    def wait_until(self, condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> bool:
        """Whether it became true while all processes were alive."""
        deadline = time.monotonic() + seconds
        while not condition():
            if len(self.alive()) < len(self.processes) or time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def wait_for_text(self, text: str, *, index: int = 0, seconds: float = PATIENCE_SECONDS) -> float | None:
        """Seconds from the start until a process had written something; None if it never did."""
        if self.wait_until(lambda: text in self.output(index), seconds) or text in self.output(index):
            return self.seen.setdefault(text, time.monotonic() - self.begun)
        return None

    def wait_for_end_of(self, index: int, seconds: float) -> None:
        """Of one process, at most so long; the others may live on or not."""
        deadline = time.monotonic() + seconds
        while index in self.alive() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def wait(self, seconds: float = PATIENCE_SECONDS) -> list[int | str]:
        """The exit codes, -N for signal N; "hung" for a process that had to be killed."""
        deadline = time.monotonic() + seconds
        while (alive := self.alive()) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        self.kill()
        return [HUNG if index in alive else process.returncode for index, process in enumerate(self.processes)]

    def strike(self, index: int, number: signal.Signals) -> float:
        """Sends one process a signal; returns when."""
        self.processes[index].send_signal(number)
        return time.monotonic()

    def kill(self) -> None:
        """Ends what is left of them, and what they started."""
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
            process.wait()

    def output(self, index: int = 0) -> str:
        """What a process has written, stderr included."""
        return self.logs[index].read_text(errors="replace")

    def outputs(self) -> list[str]:
        return [self.output(index) for index in range(len(self.processes))]
