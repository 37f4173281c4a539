"""The table and the bounds of the record of compiled programs."""

import json
from pathlib import Path

import pytest
from experiment_modules import experiment_modules

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "benchmarks" / "compiled"


@pytest.fixture(scope="module")
def modules():
    """Imports the experiment's modules by name."""
    with experiment_modules(FOLDER) as imported:
        yield imported


ROW = {
    **{"net": "resnet50", "batch_size": 256, "dtype": "bfloat16", "scan": False, "remat": False},
    **{"trace_seconds": 2.55, "compile_seconds": 11.6, "planned_bytes": 2**33, "kernel_bytes": 256 * 391_000_000},
    **{"kernels": 1400, "kernel_kinds": {"convolutions": 158, "copies": 213, "reductions": 1028, "others": 1}},
}


def test_the_table_has_a_line_a_net_and_no_kernels_of_loops(modules):
    rows = [ROW, ROW | {"net": "scanned", "scan": True, "remat": True}]
    record = {"target": "TPU", "versions": {"jax": "0.10.2"}, "cpu": {"count": 2}, "rows": rows}
    lines = [line for line in modules("compiled").table(record).splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert {len(line) for line in cells} == {len(cells[0])} and cells[0][4:8] == ["kernels", *modules("compiled").KINDS]
    assert cells[2][4:] == ["1,400", "158", "1,028", "213", "391.0", "8.00", "2.5", "11.6"]
    assert cells[3][3:] == ["scanned, remat", *[""] * 5, "8.00", "2.5", "11.6"]


def test_the_record_keeps_the_bounds_that_were_promised():
    path = FOLDER / "record.json"
    if not path.is_file():
        pytest.skip("no record yet: experiments/benchmarks/compiled/README.md says how it is made")
    record = json.loads(path.read_text())
    assert record["commit"]["dirty"] is False and "H200" in record["target"]
    planned = {
        (row["dtype"], row["remat"]): row["planned_bytes"] / 1e9
        for row in record["rows"]
        if row["net"] == "cifar_resnet1202"
    }
    assert planned["bfloat16", False] < 20 and planned["bfloat16", True] < 4 and planned["float32", True] < 4
    assert record["unrolled"]["times_scanned"] >= 10
