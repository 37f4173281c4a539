"""What is published comes from the stored records: tables are what `report` makes of them, whole and unchanged."""

import json
import shutil
from pathlib import Path

import pytest

from resnet_jax.analysis.report import report
from resnet_jax.records import read_record

CHECKOUT = Path(__file__).resolve().parent.parent
# An experiment with a `tables.py` has a test of its own.
RECORDS = [
    path
    for path in sorted((CHECKOUT / "experiments").glob("*/records/*.json"))
    if not (path.parents[1] / "tables.py").is_file()
]
# Of runs: a table, curves and the metrics belong to each. Other experiments have tables of their own.
EXPERIMENTS = sorted({path.parents[1] for path in RECORDS if path.with_suffix(".metrics.jsonl").is_file()})


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.name)
def test_tables_are_made_from_the_records(experiment, tmp_path):
    copy = shutil.copytree(experiment, tmp_path / experiment.name)
    table = report(copy)
    assert (copy / "README.md").read_text() == (experiment / "README.md").read_text()
    assert table in (CHECKOUT / "README.md").read_text()
    assert (experiment / "curves.png").is_file()


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_every_record_names_its_commit_and_was_made_from_a_clean_checkout(path):
    record = read_record(path) if path.parents[1] in EXPERIMENTS else json.loads(path.read_text())
    assert record["commit"] is not None and not record["commit"]["dirty"]
    assert path.with_suffix(".metrics.jsonl").is_file() == (path.parents[1] in EXPERIMENTS)
