"""The table of what makes a step's GPU program cheaper is that of its stored figures, which follow on each other."""

import json
from pathlib import Path

import pytest
from experiment_modules import experiment_modules

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "benchmarks"
RECORD = json.loads((FOLDER / "levers.json").read_text(encoding="utf-8"))


def test_the_readme_has_the_table_of_the_stored_figures():
    with experiment_modules(FOLDER) as imported:
        table = imported("levers").table(RECORD)
    assert (
        f"<!-- tables: made by levers.py -->\n\n{table}\n\n<!-- end of tables -->" in (FOLDER / "README.md").read_text()
    )
    assert all(lever["lever"] in table for lever in RECORD["levers"])


@pytest.mark.parametrize("net", ["resnet50", "cifar_resnet20"])
@pytest.mark.parametrize("unit", ["kernels", "MB an image"])
def test_each_kept_lever_begins_where_the_last_one_ended(net, unit):
    kept = [lever["measured"] for lever in RECORD["levers"] if lever["kept"]]
    together, *steps = [
        (figure["before"], figure["after"])
        for measured in kept
        for figure in measured
        if (figure["net"], figure["unit"]) == (net, unit)
    ]
    assert [before for before, _ in steps[1:]] == [after for _, after in steps[:-1]]
    assert together == (steps[0][0], steps[-1][1])
    assert together[1] < together[0]
