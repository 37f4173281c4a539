"""The record of detectors at full size: rows are stored as they end, and the next call makes those that are missing."""

import json
from pathlib import Path

import jax
import pytest
from experiment_modules import experiment_modules

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "benchmarks"


@pytest.fixture(scope="module")
def full_size():
    with experiment_modules(FOLDER, FOLDER / "compiled", FOLDER / "detection") as imported:
        yield imported("full_size")


@pytest.fixture
def machine(full_size, monkeypatch):
    """Notes what is measured, each in a minute, and which of them the device cannot hold."""
    found = {"made": [], "too_large": set(), "now": 0.0}

    def measure(name, changes, device, steps):
        found["made"].append((name, dict(changes), steps))
        found["now"] += 60
        if name in found["too_large"]:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory")
        return {"planned_bytes": 1}

    monkeypatch.setattr(full_size, "measure", measure)
    monkeypatch.setattr("time.monotonic", lambda: found["now"])
    return found


def names(machine):
    made = [name for name, *_ in machine["made"]]
    machine["made"].clear()
    return made


def test_a_call_begins_what_fits_and_the_next_goes_on(full_size, machine, tmp_path):
    every = list(full_size.SCALES["full"])
    command = [f"--output={tmp_path / 'record.json'}"]
    assert full_size.main([*command, "--minutes=2.5"]) == 1 and names(machine) == every[:2]
    assert full_size.main([*command, "--minutes=0.5"]) == 1 and names(machine) == every[2:3]
    assert full_size.main(command) == 0 and names(machine) == every[3:]
    assert full_size.main(command) == 0 and names(machine) == []
    record = json.loads((tmp_path / "record.json").read_text())
    assert {row["config"] for row in record["rows"]} == set(every)


def test_what_the_device_cannot_hold_is_left_out_and_tried_again(full_size, machine, tmp_path, capsys):
    every, command = list(full_size.SCALES["full"]), [f"--output={tmp_path / 'record.json'}"]
    machine["too_large"].add(every[1])
    assert full_size.main(command) == 1 and names(machine) == every
    assert f"{every[1]} on cpu is left out: RESOURCE_EXHAUSTED" in capsys.readouterr().out
    machine["too_large"].clear()
    assert full_size.main(command) == 0 and names(machine) == every[1:2]


def test_rows_of_other_settings_are_others(full_size, machine, tmp_path):
    command = [f"--output={tmp_path / 'record.json'}", "--scale=small"]
    for more in ([], ["--set=train.batch_size=2"], ["--set=train.batch_size=4"]):
        assert full_size.main([*command, *more]) == 0
    assert names(machine) == ["small"] * 3


@pytest.mark.slow
def test_seconds_are_of_an_image_of_the_batch_that_was_asked_for(full_size, monkeypatch):
    """Nothing is compiled: what runs is told how many images a step has."""
    told = {}

    def run(compiled, arguments, steps, images):
        told["images"] = images
        return {"train_seconds_an_image": 1.0}

    monkeypatch.setattr(full_size, "run", run)
    monkeypatch.setattr(full_size, "test", lambda parts, steps: {})
    monkeypatch.setattr(full_size, "planned_bytes", lambda compiled: 1)
    monkeypatch.setattr(full_size.jax.stages.Lowered, "compile", lambda *_: None)
    changes = {"train.batch_size": "16", "model.name": "cifar_resnet8", "model.width": "4", "data.short_side": "32"}
    changes |= {"data.long_side": "64", "detector.roi_size": "4"}
    row = full_size.measure("small", changes, jax.devices()[0], 1)
    assert row["batch_size"] == told["images"] == 16


def test_the_readme_has_the_records_table():
    with experiment_modules(FOLDER / "detection") as load:
        tables, text = load("tables"), (FOLDER / "detection" / "README.md").read_text()
        assert tables.with_table(text) == text
        assert tables.table().count("| paper_coco_resnet101 |") == 2
