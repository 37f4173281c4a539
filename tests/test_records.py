"""A record is whole, strict JSON, tells nothing of the machine, and names every key that is wrong."""

import copy
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import records
from resnet_jax.training.start_times import START_PARTS


def a_record() -> dict:
    return {
        "config": {
            "model": {"name": "cifar_resnet20"},
            "schedule": {"boundaries": (32_000, 48_000)},
            "seed": 0,
        },
        "model": "cifar_resnet20",
        "seed": 0,
        "versions": {"jax": "0.10.2"},
        "devices": {"platform": "cpu", "kind": "cpu", "count": 1, "processes": 1},
        "cpu": {"model": "a processor", "count": 2},
        "commit": None,
        "steps": 64_000,
        "parameters": np.int64(272_474),
        "train": {"loss": jnp.float32(0.25), "error": np.float64(0.001), "count": 50_000},
        "test": {"error_top1": 0.0875, "error_top5": None, "count": 10_000, "protocol": "center"},
        "wall_seconds": 10.5,
        "images_per_second": None,
        "compile_seconds": 1,
        "peak_bytes": 1 << 30,
        "peak_bytes_source": "process",
    }


def changed(path: str, value: object) -> dict:
    record = copy.deepcopy(a_record())
    *sections, key = path.split(".")
    section = record
    for name in sections:
        section = section[name]
    section[key] = value
    return record


def test_a_record_comes_back_as_it_was_written(tmp_path):
    path = records.write_record(tmp_path / "run" / "record.json", a_record())
    read = records.read_record(path)
    wanted = a_record()
    wanted["config"]["schedule"]["boundaries"] = [32_000, 48_000]
    assert read == wanted
    assert list(read) == list(wanted)
    assert isinstance(read["parameters"], int)
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]


def test_a_held_out_split_may_be_recorded_too(tmp_path):
    record = changed("validation", {"error_top1": 0.1, "error_top5": 0.01, "count": 5000, "protocol": "center"})
    assert records.read_record(records.write_record(tmp_path / "r.json", record)) == records.read_record(
        tmp_path / "r.json"
    )


def test_the_parts_of_a_start_are_recorded_all_or_none(tmp_path):
    parts = dict.fromkeys(START_PARTS, 1.5)
    assert records.read_record(records.write_record(tmp_path / "r.json", a_record() | {"start_seconds": parts}))
    del parts["data"]
    with pytest.raises(ValueError, match="start_seconds.data is missing"):
        records.write_record(tmp_path / "r.json", a_record() | {"start_seconds": parts})


def test_missing_and_unknown_keys_are_all_named_and_nothing_is_written(tmp_path):
    record = a_record()
    del record["wall_seconds"], record["test"]["count"]
    record["wall_time"] = 10.5
    record["train"]["error_top1"] = 0.1
    with pytest.raises(ValueError) as caught:
        records.write_record(tmp_path / "record.json", record)
    for words in (
        "record.json is no record",
        "wall_seconds is missing",
        "test.count is missing",
        "wall_time is not a key of a record",
        "train.error_top1 is not a key of a record (there are loss, error, count)",
    ):
        assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("test.error_top1", 8.75),  # per cent
        ("test.error_top1", None),
        ("test.error_top5", -0.1),
        ("train.error", math.nan),
        ("train.count", 100.5),
        ("test.count", True),
        ("steps", -1),
        ("model", None),
        ("train", 0.5),
        ("commit", "abc"),
        ("wall_seconds", "10"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(tmp_path, path, value):
    with pytest.raises(ValueError, match=f"{path} is .*, it must be"):
        records.write_record(tmp_path / "record.json", changed(path, value))


def test_what_json_cannot_hold_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="record.config.mean is array"):
        records.write_record(tmp_path / "record.json", changed("config.mean", np.zeros(3)))


def test_a_diverged_run_has_a_record_in_strict_json(tmp_path):
    def refuse(token: str):
        raise AssertionError(f"{token} is not JSON")

    path = records.write_record(tmp_path / "record.json", changed("train.loss", np.float32("nan")))
    json.loads(path.read_text(), parse_constant=refuse)
    assert math.isnan(records.read_record(path)["train"]["loss"])
    records.write_record(path, changed("train.loss", -math.inf))
    assert records.read_record(path)["train"]["loss"] == -math.inf


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("/home/someone/data/tfds", ".../tfds"),
        ("C:\\Users\\someone\\tfds", ".../tfds"),
        ("sets/tfds", "sets/tfds"),
    ],
)
def test_an_absolute_path_stays_on_its_machine(tmp_path, given, stored):
    path = records.write_record(tmp_path / "record.json", changed("config.data_dir", given))
    assert records.read_record(path)["config"]["data_dir"] == stored
    assert "someone" not in path.read_text()


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = records.write_record(tmp_path / "record.json", a_record())
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(records.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        records.write_record(path, changed("steps", 5))
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_file_that_is_no_record_is_refused_by_name(tmp_path, text):
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(ValueError, match="record.json"):
        records.read_record(tmp_path / "record.json")
    with pytest.raises(FileNotFoundError):
        records.read_record(tmp_path / "other.json")


def test_curves_are_read_by_name_from_a_file_that_still_grows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "train/loss": 2.0, "x": "NaN"}\n{"step": 2, "train/loss": 1}\n{"step": 2, "x": "-Infinity"}\n{"st'
    )
    curves = records.read_metrics(path)
    assert set(curves) == {"train/loss", "x"}
    np.testing.assert_array_equal(curves["train/loss"], [[1, 2], [2.0, 1.0]])
    np.testing.assert_array_equal(curves["x"], [[1, 2], [np.nan, -np.inf]])
    path.write_text("")
    assert records.read_metrics(path) == {}


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1.0}', '{"step": 1.5}', '{"step": null}'])
def test_a_broken_line_is_refused_by_number(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "x": 1.0}}\n{line}\n{{"step": 2, "x": 1.0}}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2"):
        records.read_metrics(path)
