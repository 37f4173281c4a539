"""The command that makes all records of speed: it goes on where it was, and begins nothing that does not fit."""

import subprocess
import sys
from pathlib import Path

import pytest
from experiment_modules import experiment_modules

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "benchmarks"


@pytest.fixture(scope="module")
def everything():
    with experiment_modules(FOLDER) as imported:
        yield imported("everything")


@pytest.fixture
def machine(everything, monkeypatch):
    """Notes each command, which takes `minutes` and ends with `codes` of its record's name, or 0."""
    found = {"now": 0.0, "minutes": 2.0, "codes": {}, "made": []}

    def run(command, check):
        (name,) = (Path(word.partition("=")[2]).stem for word in command if word.startswith("--output="))
        found["made"].append((name, command))
        found["now"] += 60 * found["minutes"]
        return subprocess.CompletedProcess(command, found["codes"].get(name, 0))

    monkeypatch.setattr(everything.subprocess, "run", run)
    monkeypatch.setattr("time.monotonic", lambda: found["now"])
    return found


def names(machine):
    made = [name for name, _ in machine["made"]]
    machine["made"].clear()
    return made


def test_a_call_begins_what_fits_and_the_next_goes_on(everything, machine, tmp_path):
    command = ["--scale=small", f"--records={tmp_path}", "--minutes=5.5"]
    # Three that store rows, the last in 1.5 minutes, in which one made in one go would not have been begun.
    assert everything.main(command) == 1 and names(machine) == ["nets", "cifar10", "detection"]
    assert everything.main(command) == 1 and names(machine) == ["cifar_resnet8_train"]
    assert everything.main(command) == 0 and names(machine) == ["cifar_resnet8_eval"]
    assert everything.main(command) == 0 and names(machine) == []


def test_what_is_not_complete_is_tried_again_and_the_rest_is_made(everything, machine, tmp_path):
    machine["codes"]["nets"] = 1
    command = ["--scale=small", f"--records={tmp_path}"]
    every = ["nets", "cifar10", "detection", "cifar_resnet8_train", "cifar_resnet8_eval"]
    assert everything.main(command) == 1 and names(machine) == every
    machine["codes"].clear()
    assert everything.main(command) == 0 and names(machine) == ["nets"]


def test_rows_that_are_stored_as_they_end_are_told_how_much_time_is_left(everything, machine, tmp_path):
    everything.main(["--scale=small", f"--records={tmp_path}", "--minutes=5.5"])
    limits = [word for _, command in machine["made"] for word in command if word.startswith("--minutes")]
    assert limits == ["--minutes=5.50", "--minutes=3.50", "--minutes=1.50"]


@pytest.mark.slow
def test_the_flags_are_those_that_the_commands_have(everything, machine, tmp_path):
    everything.main(["--scale=full", f"--records={tmp_path}"])
    for name, (python, script, *flags) in machine["made"]:
        if script == "-m":
            continue
        given = {flag.partition("=")[0] for flag in flags}
        help = subprocess.Popen([python, script, "--help"], stdout=subprocess.PIPE, text=True).communicate()[0]
        assert python == sys.executable and all(flag in help for flag in given), name
    assert [name for name, _ in machine["made"]][:4] == ["nets", "cifar10", "detection", "resnet50_train"]
