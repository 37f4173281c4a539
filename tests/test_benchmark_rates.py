"""The stored rates of the library's own benchmark: whose tables the README has, and what was wanted of tests."""

import json
from pathlib import Path

import pytest
from experiment_modules import experiment_modules

from resnet_jax.benchmark.windows import rate

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "benchmarks" / "rates"
RECORDS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.json")}


def test_the_readme_has_the_records_tables():
    with experiment_modules(FOLDER, FOLDER.parents[1] / "reliability") as imported:
        tables = imported("tables").tables()
    assert f"<!-- tables: made by tables.py -->\n\n{tables}\n\n" in (FOLDER / "README.md").read_text()
    assert RECORDS.keys() == {"train", "eval", "multi_scale"}


@pytest.mark.parametrize("name", RECORDS)
def test_rates_are_those_of_the_stored_windows_of_committed_code(name):
    assert not RECORDS[name]["commit"]["dirty"]
    for row in RECORDS[name]["rows"]:
        assert rate(row["windows"], batch=row["batch"]).items() <= row.items()


@pytest.mark.parametrize("name", ["eval", "multi_scale"])
def test_a_test_is_within_a_tenth_of_the_bare_net(name):
    tested, bare = (row["batch_seconds"]["median"] / row["batch"] for row in RECORDS[name]["rows"])
    assert tested < 1.1 * bare
