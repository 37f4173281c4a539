"""A sweep trains what has no record yet, stores every record, and begins nothing that there is no time for."""

import json
import time

import pytest
from ml_collections import ConfigDict

from resnet_jax import sweep as module
from resnet_jax.sweep import sweep, sweep_command


def runs(*names):
    return {name: ConfigDict({"number": number}) for number, name in enumerate(names, 1)}


@pytest.fixture
def trained(monkeypatch):
    """The workdirs' names in the order in which they were trained, by a stand-in that takes a tenth of a second."""
    names = []

    def train(config, workdir):
        names.append(workdir.name)
        time.sleep(0.1)
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "record.json").write_text(json.dumps(config.number))
        (workdir / "metrics.jsonl").write_text("")

    monkeypatch.setattr(module, "train", train)
    return names


def test_every_run_leaves_its_record_with_the_experiment(trained, tmp_path):
    assert sweep(runs("a", "b"), workdir=tmp_path / "runs", experiment=tmp_path / "e")
    assert trained == ["a", "b"]
    assert [json.loads((tmp_path / "e" / "records" / f"{name}.json").read_text()) for name in "ab"] == [1, 2]


@pytest.mark.parametrize(("minutes", "expected"), [(0, ["a"]), (0.25 / 60, ["a", "b"]), (10, ["a", "b", "c"])])
def test_no_run_begins_that_would_end_too_late(minutes, expected, trained, tmp_path):
    complete = sweep(runs("a", "b", "c"), workdir=tmp_path / "runs", experiment=tmp_path, minutes=minutes)
    assert trained == expected and complete == (len(expected) == 3)


def test_records_of_another_scale_than_the_first_have_a_folder_of_their_own(trained, tmp_path):
    scales = {"small": lambda data_dir: runs("s"), "full": lambda data_dir: runs(data_dir, "second")}
    given = ["--workdir", str(tmp_path / "runs")]
    assert sweep_command("", scales, experiment=tmp_path, argv=given) == 0
    more = ["--scale=full", "--data_dir=f", "--minutes=0"]
    assert sweep_command("", scales, experiment=tmp_path, argv=[*given, *more]) == 1
    assert (tmp_path / "records" / "s.json").is_file() and (tmp_path / "full" / "records" / "f.json").is_file()
