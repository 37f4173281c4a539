"""SIGTERM stops a run at a step, of all processes the same one; a second SIGTERM ends it at once."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from resnet_jax.training.preemption import Preempted, Preemption

CHECKOUT = Path(__file__).resolve().parent.parent

# Steps come in tens, from 1000 on, as in a resumed run on an accelerator.
ONE_PROCESS = """
import ctypes, signal, sys, time
take = ctypes.CDLL(None).pthread_mutex_lock
from resnet_jax.training.preemption import Preemption
signal.alarm(100)  # not SIGTERM, which is what is tested
with Preemption() as preemption:
    print("ready", flush=True)
    for step in range(1000, 100_000, 10):
        {step}
        if preemption.requested():
            print(step, flush=True)
            {then}
"""

TWO_PROCESSES = """
import signal, sys, time
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from resnet_jax.training.preemption import Preemption

signal.alarm(100)
port, index = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index, heartbeat_timeout_seconds=20, initialization_timeout=60,
                           coordinator_bind_address=f"127.0.0.1:{port}")
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
split = NamedSharding(mesh, PartitionSpec("data"))
rows = jax.make_array_from_callback((2,), split, lambda rows: np.ones(1, np.float32))
total = jax.jit(jnp.sum)  # each process waits for the other
with Preemption() as preemption:  # an earlier run of the same processes
    for step in range(30):
        assert float(total(rows)) == 2 and not preemption.requested()
with Preemption() as preemption:
    print("ready", flush=True)
    time.sleep(float(sys.argv[3]))  # compiling
    for step in range(1000, 100_000, 10):
        assert float(total(rows)) == 2
        time.sleep(0.002 + 0.004 * index)  # one is behind the other
        if preemption.requested():
            break
print(step, flush=True)
sys.stdin.read(1)
"""


class Processes(ExitStack):
    """Processes that end with the block."""

    def start(self, code: str, *arguments: object) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=CHECKOUT,
            env={**os.environ, "XLA_FLAGS": "", "NPROC": "2"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.enter_context(process)
        self.callback(process.kill)
        return process


def answer(process: subprocess.Popen) -> str:
    """The next line on stdout that is not gloo's, or else what went wrong."""
    lines = (line.strip() for line in process.stdout if not line.startswith("[Gloo]"))
    return next(lines, None) or process.stderr.read()


def run_one(processes: Processes, *, step: str = "time.sleep(0.01)", then: str) -> subprocess.Popen:
    process = processes.start(ONE_PROCESS.format(step=step, then=then))
    assert answer(process) == "ready"
    time.sleep(0.2)
    process.terminate()
    return process


def run_two(processes: Processes, *, compile_seconds: float) -> list[subprocess.Popen]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = [processes.start(TWO_PROCESSES, port, index, compile_seconds) for index in range(2)]
    assert [answer(process) for process in both] == ["ready"] * 2
    return both


def test_one_process_stops_at_a_step():
    with Processes() as processes:
        process = run_one(processes, then="break")
        assert 1000 < int(answer(process)) < 99_000
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    "where",
    [
        {"then": "time.sleep(60)"},  # while it saves
        {"step": "lock = ctypes.create_string_buffer(64); take(lock); take(lock)", "then": ""},  # no handler can run
    ],
    ids=["saving", "stuck"],
)
def test_a_second_sigterm_ends_one_process_at_once(where):
    with Processes() as processes:
        process = run_one(processes, **where)
        time.sleep(1.5)
        assert process.poll() is None
        process.terminate()
        assert process.wait(5) == -signal.SIGTERM


def test_an_echo_is_no_second_sigterm():
    with Processes() as processes:
        process = run_one(processes, step="time.sleep(0.5)", then="time.sleep(3); break")
        for _ in range(10):
            time.sleep(0.05)
            process.terminate()
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


def test_two_processes_stop_at_the_same_step_and_the_second_sigterm_ends_one():
    with Processes() as processes:
        both = run_two(processes, compile_seconds=0)
        time.sleep(1)
        for _ in range(5):
            both[1].terminate()
            time.sleep(0.05)
        steps = [int(answer(process)) for process in both]
        assert steps[0] == steps[1] and 1000 < steps[0] < 99_000
        time.sleep(1.2)
        both[1].terminate()
        assert both[1].wait(5) == -signal.SIGTERM


def test_two_processes_that_are_signalled_while_they_compile_stop_at_the_first_step():
    with Processes() as processes:
        both = run_two(processes, compile_seconds=3)
        both[0].terminate()
        assert [answer(process) for process in both] == ["1000"] * 2


def test_the_handler_from_before_is_put_back():
    def before(signum: int, frame: object) -> None:
        received.append(signum)

    received: list[int] = []
    open_files = os.listdir("/dev/fd")
    original = signal.signal(signal.SIGTERM, before)
    try:
        with Preemption() as preemption:
            assert not preemption.requested()
            signal.raise_signal(signal.SIGTERM)
            assert preemption.requested() and received == []
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM] * 2
        with Preemption() as preemption:
            assert not preemption.requested()
        assert signal.set_wakeup_fd(-1) == -1
        assert len(os.listdir("/dev/fd")) == len(open_files)
    finally:
        signal.signal(signal.SIGTERM, original)


def test_another_thread_leaves_sigterm_alone():
    def body() -> None:
        with Preemption() as preemption:
            seen.append((signal.getsignal(signal.SIGTERM), preemption.requested()))

    seen: list[tuple[object, bool]] = []
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(signal.getsignal(signal.SIGTERM), False)]


def test_preempted_says_what_to_do():
    error = Preempted(120)
    assert error.step == 120
    assert "step 120; start the same command again" in str(error)
