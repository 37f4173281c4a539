"""Processes that hang in every way end themselves and say where; those that make progress live."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resnet_jax.exit_codes import DONE, STUCK
from resnet_jax.training.signal_actions import get_action
from resnet_jax.training.watchdog import Watchdog

CHECKOUT = Path(__file__).resolve().parent.parent

# One second, so that a busy machine's hiccups are no hangs.
PRELUDE = """
import ctypes, os, threading, time
from resnet_jax.training import watchdog
watchdog._GRACE = 1.0
dog = watchdog.Watchdog({"step": 1, "evaluation": 4, "save": 0, "compile": None}, process_index=3)
def beats(seconds):
    for _ in range(int(seconds / 0.05)):
        dog.beat()
        time.sleep(0.05)
print("ready", flush=True)
"""


def start(code: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, float, str]:
    """Exit code, seconds since it was ready, stderr."""
    with process:
        try:
            process.stdout.readline()
            begun = time.monotonic()
            # Its stdin stays open, so that a read of it hangs.
            return process.wait(60), time.monotonic() - begun, process.stderr.read()
        finally:
            process.kill()


def run(code: str) -> tuple[int, float, str]:
    return finish(start(code))


STUCK_IN = {
    "a sleep": "def stuck(): time.sleep(60)",
    "a lock": "def stuck():\n  lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "a C call": "def stuck(): ctypes.CDLL(None).read(0, ctypes.create_string_buffer(1), 1)",
}


@pytest.mark.parametrize("where", STUCK_IN)
def test_a_stuck_phase_ends_the_process_and_names_the_place(where):
    code, seconds, errors = run(STUCK_IN[where] + "\nwith dog.phase('step'): stuck()")
    assert code == STUCK
    assert 1 <= seconds < 3
    line, tracebacks = errors.split("\n", 1)
    assert re.search("process 3: no progress in phase 'step' for 1 seconds.*Start the same command again", line)
    assert re.search(r'File "<string>", line \d+ in stuck', tracebacks)
    assert "in _watch" in tracebacks  # every thread


def test_a_call_that_holds_the_interpreter_is_ended_by_the_alarm():
    stuck = "def stuck(): ctypes.PyDLL(None).read(0, ctypes.create_string_buffer(1), 1)"
    code, seconds, errors = run(stuck + "\nwith dog.phase('step'): stuck()")
    assert code == -signal.SIGALRM
    assert 3 <= seconds < 6
    assert re.search(r'File "<string>", line \d+ in stuck', errors)


def test_a_process_whose_messages_nobody_reads_is_ended_by_the_alarm():
    code, _, _ = run("with dog.phase('step'): os.write(2, bytes(1_000_000))")
    assert code == -signal.SIGALRM


def test_progress_and_phases_without_a_limit_are_left_alone():
    codes = [
        "with dog.phase('step'): beats(2.5)",
        "time.sleep(2)",  # in no phase
        "with dog.phase('save'): time.sleep(2)",
        "with dog.phase('compile'): time.sleep(2)",
        "with dog.phase('step'): pass\ntime.sleep(2)",
        "with dog.phase('step'):\n  dog.close(); dog.close(); time.sleep(4)",
        # The inner limit holds inside, and the outer one starts afresh: 1.6 s in all without a beat.
        "with dog.phase('step'):\n  time.sleep(.8)\n  with dog.phase('evaluation'): time.sleep(2.5)\n  time.sleep(.8)",
        "try:\n  with dog.phase('step'): raise KeyError\nexcept KeyError: time.sleep(2)",
    ]
    processes = [start(code) for code in codes]
    assert {code: finish(process)[::2] for code, process in zip(codes, processes, strict=True)} == {
        code: (DONE, "") for code in codes
    }


def test_the_innermost_phase_is_watched():
    cases = [
        ("with dog.phase('evaluation'):\n  with dog.phase('step'): time.sleep(9)", "step"),
        ("with dog.phase('step'):\n  with dog.phase('evaluation'): time.sleep(2)\n  time.sleep(9)", "step"),
        ("with dog.phase('step'):\n  with dog.phase('evaluation'): time.sleep(9)", "evaluation"),
        ("with dog.phase('step'):\n  beats(2)\n  time.sleep(9)", "step"),
    ]
    processes = [start(code) for code, _ in cases]
    for (code, phase), process in zip(cases, processes, strict=True):
        exit_code, _, errors = finish(process)
        assert (code, exit_code) == (code, STUCK) and f"phase {phase!r}" in errors


@pytest.mark.parametrize("code", [STUCK, -signal.SIGALRM])
def test_a_stopped_process_goes_on_and_is_still_watched(code):
    """SIGSTOP for longer than the limit and both graces; then the thread catches a hang, or else the alarm."""
    library = "CDLL" if code == STUCK else "PyDLL"
    hang = f"ctypes.{library}(None).read(0, ctypes.create_string_buffer(1), 1)"
    # It is stopped while nothing beats, 0.6 seconds out of the one, and so long must it be counted.
    quiet = "for _ in range(12): time.sleep(.05)"
    with start(f"with dog.phase('step'):\n  {quiet}\n  beats(1.5)\n  print('alive', flush=True); {hang}") as process:
        process.stdout.readline()
        time.sleep(0.3)
        process.send_signal(signal.SIGSTOP)
        time.sleep(6)
        process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == "alive\n"
        assert process.wait(20) == code
        # Once as the stop ended, and once for the hang.
        assert process.stderr.read().count("Current thread") == 2


def test_what_is_wrong_is_named():
    with Watchdog({"step": 60, "evaluation": 600.0}) as watchdog:
        with pytest.raises(ValueError, match="unknown phase 'evaluate'.*step, evaluation"), watchdog.phase("evaluate"):
            pass
    for limit in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"phase 'step': {limit} seconds"):
            Watchdog({"step": limit})


def test_the_alarm_is_put_back():
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    try:
        with Watchdog({"step": 60}) as watchdog, watchdog.phase("step"):
            assert get_action(signal.SIGALRM).handler != signal.SIG_IGN
            assert 60 < signal.getitimer(signal.ITIMER_REAL)[0] < 90
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
        assert get_action(signal.SIGALRM).handler == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_beat_costs_less_than_two_microseconds():
    """As the package runs without the tests' type checks."""
    code = "import timeit; assert min(timeit.repeat(dog.beat, number=10000, repeat=5)) < 0.02"
    assert run(code)[::2] == (DONE, "")
