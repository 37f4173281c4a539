import itertools
import subprocess
import sys
import time

import pytest

from resnet_jax.training import start_times
from resnet_jax.training.start_times import START_PARTS, StartTimes


def test_parts_add_up_to_the_time_since_the_process_began(monkeypatch):
    clock = itertools.count(100.0, 2.0)
    monkeypatch.setattr(start_times.time, "perf_counter", lambda: next(clock))
    times = StartTimes(begun=95.0)
    for part in START_PARTS[1:]:
        assert not times.complete
        times.end(part)
    next(clock)
    times.end("compilation")  # of a second program, which is no part of the start
    assert times.complete
    assert times.seconds == dict.fromkeys(START_PARTS, 2.0) | {"imports": 5.0}
    line = times.summary(10, "somewhere")
    assert line.startswith("first 10 steps after 15.0 s: imports 5.0, devices 2.0, data 2.0, initialization 2.0, ")
    assert line.endswith("first steps 2.0 (programs are kept in somewhere)")
    assert times.summary(1, None).startswith("first step after 15.0 s") and "kept" not in times.summary(1, None)


def test_a_run_that_is_called_from_python_does_not_count_what_came_before():
    assert StartTimes().seconds == {"imports": 0.0}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is not known")
def test_the_age_of_a_process_is_known():
    code = (
        "import time; time.sleep(0.5)\nfrom resnet_jax.training.start_times import process_begun\n"
        "print(time.perf_counter() - process_begun())"
    )
    before = time.perf_counter()
    age = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 0.49 < age < time.perf_counter() - before + 0.02
