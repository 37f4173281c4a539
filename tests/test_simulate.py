import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hosts_helper import CHECKOUT, clean_environment

from resnet_jax.hosts.place import PROCESS_INDEX
from resnet_jax.hosts.simulate import _variables, _without_flag, simulate

ME = "import os, signal, sys, time\nme = int(os.environ['RESNET_JAX_PROCESS_INDEX'])\n"
SHORT_TERMINATION = "simulate._TERMINATION_SECONDS = 0.3\n"


def start(child: str, *, count: int = 2, grace_seconds: float = 15) -> subprocess.Popen[str]:
    """A process that runs a piece of Python in several others, and exits with their code."""
    code = (
        f"import sys\nfrom resnet_jax.hosts import simulate\n{SHORT_TERMINATION}"
        f"command = [sys.executable, '-uc', {ME + child!r}]\n"
        f"sys.exit(simulate.run_together(command, {count}, 1, grace_seconds={grace_seconds}))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=CHECKOUT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Exit code and the lines written, in order of their text."""
    try:
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    return process.returncode, sorted(output.splitlines())


def has_ended(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_each_line_says_whose_it_is():
    code, lines = finish(start("print('out', me)\nprint('error', me, file=sys.stderr)\n", count=3))
    assert code == 0
    assert lines == ["[1] error 1", "[1] out 1", "[2] error 2", "[2] out 2", "error 0", "out 0"]


def test_the_first_failure_gives_the_code_and_ends_the_others():
    child = (
        "def heed(*_):\n    print('heeds', me)\n    sys.exit()\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN if me == 0 else heed)\n"
        "if me == 1:\n    time.sleep(0.3); sys.exit(7)\n"
        "time.sleep(1 if me == 2 else 60)\nprint('ends', me)\n"
    )
    begun = time.monotonic()
    code, lines = finish(start(child, count=4, grace_seconds=1.5))
    # Process 2 ended by itself in its time; 3 heeded SIGTERM; 0 did not, and was killed.
    assert (code, lines) == (7, ["[2] ends 2", "[3] heeds 3"])
    assert time.monotonic() - begun < 20


def test_a_signal_is_a_code_of_the_shell():
    code, _ = finish(start("if me == 1:\n    os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)\n", grace_seconds=0))
    assert code == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_passed_on_and_answered_by_each(number):
    child = (
        "def stop(*_):\n    print('stopped', me)\n    time.sleep(0.2)\n    sys.exit(75)\n"
        f"signal.signal({int(number)}, stop)\nprint('ready', me)\ntime.sleep(60)\n"
    )
    process = start(child)
    assert process.stdout is not None
    assert sorted(process.stdout.readline().strip() for _ in range(2)) == ["[1] ready 1", "ready 0"]
    process.send_signal(number)
    assert finish(process) == (75, ["[1] stopped 1", "stopped 0"])


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends children with their parent")
def test_no_orphans_of_a_killed_parent():
    process = start("print(os.getpid())\ntime.sleep(60)\n", count=3)
    assert process.stdout is not None
    children = [int(process.stdout.readline().split()[-1]) for _ in range(3)]
    assert not any(map(has_ended, children))
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 5
    while not all(map(has_ended, children)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert all(map(has_ended, children))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_children_of_the_processes_end_too():
    child = "import subprocess\nprint(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid)\n"
    code, lines = finish(start(child))
    assert code == 0
    sleepers = [int(line.split()[-1]) for line in lines]
    assert len(sleepers) == 2
    assert all(map(has_ended, sleepers))


def test_the_command_is_the_package_without_the_flag():
    code = (
        "import sys\nfrom resnet_jax.hosts.simulate import simulate\n"
        "sys.exit(simulate(2, ['--simulate_hosts=2', '--version', '--simulate_hosts', '2']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, env=clean_environment(), capture_output=True, text=True, timeout=60
    )
    from resnet_jax import __version__

    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == sorted([__version__, f"[1] {__version__}"])


def test_only_the_flag_is_left_out():
    words = ["train", "--simulate_hosts", "2", "--config=a", "--simulate_hosts=3", "--simulate_hosts_other", "2"]
    assert _without_flag(words) == ["train", "--config=a", "--simulate_hosts_other", "2"]


@pytest.mark.parametrize(
    ("given", "count", "cores", "expected"), [(None, 2, 8, "4"), (None, 4, 2, "2"), ("3", 4, 64, "3")]
)
def test_threads_are_shared_and_never_one(monkeypatch, given, count, cores, expected):
    monkeypatch.setattr("resnet_jax.hosts.simulate.available_cores", lambda: cores)
    monkeypatch.delenv("NPROC", raising=False)
    if given:
        monkeypatch.setenv("NPROC", given)
    variables = _variables(count, devices=3)
    assert variables["NPROC"] == expected
    assert (variables["JAX_PLATFORMS"], variables["JAX_NUM_CPU_DEVICES"]) == ("cpu", "3")


def test_impossible_numbers():
    with pytest.raises(ValueError, match="simulate_hosts=0: at least 1"):
        simulate(0, [])
    with pytest.raises(ValueError, match="devices_per_host=0: at least 1"):
        simulate(2, [], devices_per_host=0)


def test_a_simulated_process_simulates_nothing(monkeypatch):
    monkeypatch.setenv(PROCESS_INDEX, "1")
    monkeypatch.setattr(os, "getpid", lambda: pytest.fail("starts a process"))
    with pytest.raises(ValueError, match="--simulate_hosts: this process is one of several already"):
        simulate(2, [])
