"""The input benchmark's arithmetic, that its speed limit does the same work, and that its tables are the record's."""

import importlib
import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "benchmarks" / "input"
FLAT = {"mebibytes_by_epoch": [100.0, 150.0, 300.0, *[200.0] * 10]}


@pytest.fixture
def script(monkeypatch):
    """Imports a file of the benchmark, which runs with its own folder first on the path."""
    monkeypatch.syspath_prepend(FOLDER)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def measured(pipeline: str, repeat: int, images: int, *, crop: str = "scale", workers: int = 1) -> dict:
    """A measurement of ten seconds of processor time in five of wall time."""
    which = {"pipeline": pipeline, "crop": crop, "repeat": repeat, "workers": workers}
    return {**which, "images": images, "wall_seconds": 5.0, "cpu_seconds": 10.0}


def test_rates_are_medians_and_ends_over_the_repeats(script):
    found = script("summary").summarize([measured("ours_area", r, n) for r, n in enumerate([500, 100, 200])], FLAT)
    (rate,) = found["rates"]
    assert rate["images_per_cpu_second"] == {"median": 20, "min": 10, "max": 50}
    assert rate["images_per_second"] == {"median": 40, "min": 20, "max": 100}
    assert rate["repeats"] == 3


def test_a_ratio_is_taken_within_each_repeat_with_one_worker(script):
    ours = [measured("ours_bilinear", r, n) for r, n in enumerate([100, 200, 400])]
    theirs = [measured("tf_bilinear", r, n) for r, n in enumerate([100, 250, 200])]
    more_workers = [measured("ours_bilinear", r, 9999, workers=2) for r in range(3)]
    other_crop = [measured("tf_bilinear", r, 9999, crop="inception") for r in range(3)]
    ratio, _ = script("summary").summarize([*ours, *theirs, *more_workers, *other_crop], FLAT)["targets"]
    assert (ratio["min"], ratio["value"], ratio["max"]) == (0.8, 1.0, 2.0)
    assert ratio["met"] and ratio["wanted"] == "at least 1.0"


def test_a_ratio_below_what_is_wanted_is_not_met(script):
    both = [measured("ours_area", 0, 129), measured("tf_antialias", 0, 100)]
    ratio, _ = script("summary").summarize(both, FLAT)["targets"]
    assert ratio["value"] == 1.29 and not ratio["met"]


def test_memory_may_settle_and_must_not_grow(script):
    summarize = script("summary").summarize
    (settled,) = summarize([], FLAT)["targets"]
    (growing,) = summarize([], {"mebibytes_by_epoch": [100 + 2.0 * epoch for epoch in range(20)]})["targets"]
    assert settled["met"] and settled["value"] == 1
    assert not growing["met"]


@pytest.mark.parametrize("crop", ["scale", "inception"])
def test_the_speed_limit_decodes_the_same_boxes_of_the_same_images(script, crop, real_data):
    source = script("pipelines").Source(str(real_data), "imagenet2012", "train", "", {})
    options = {"crop": crop, "batch_size": 6, "resize": "area"}
    expected = script("ours").train_batches(source, **options)[0].image
    with script("bare").open_batches(source, workers=1, **options) as batches:
        for alone, piped in zip(next(batches), expected, strict=True):
            assert np.array_equal(alone, piped) or np.array_equal(alone[:, ::-1], piped)


def test_the_readme_holds_the_record_s_tables(script, tmp_path):
    record_path = FOLDER / "record.json"
    if not record_path.is_file():
        pytest.skip("no record is stored yet")
    record = json.loads(record_path.read_text())
    assert record["commit"] is not None and not record["commit"]["dirty"]
    shutil.copy(FOLDER / "README.md", tmp_path)
    script("report").write_report(record, tmp_path)
    assert (tmp_path / "README.md").read_text() == (FOLDER / "README.md").read_text()
    assert (FOLDER / "throughput.png").is_file()
