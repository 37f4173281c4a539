"""The experiment on costs: rows are measured once each, tables and figure come from them alone."""

import json
from pathlib import Path

import pytest
from experiment_modules import experiment_modules
from test_records import a_record

from resnet_jax import load_config
from resnet_jax.analysis.costs import net_of
from resnet_jax.records import write_record

EXPERIMENT = Path(__file__).resolve().parent.parent / "experiments" / "cost"


@pytest.fixture
def cost(monkeypatch):
    """The script, with a stand-in for the measurement: an image takes as many milliseconds as the net is deep."""
    with experiment_modules(EXPERIMENT) as load:
        module = load("cost")
        monkeypatch.setattr(module, "surroundings", lambda dtype: {"devices": "one", "cpu": "two"})
        monkeypatch.setattr(module, "cost_of", lambda config, **timing: row_of(config))
        yield module


def row_of(config, **train):
    depth = int("".join(filter(str.isdecimal, config.model.name)))
    factor = 2 if config.model.shortcut == "C" else 1
    measured = {
        **{"batch": 4, "images_per_second": 1000 / depth / factor, "trace_seconds": 1.0, "compile_seconds": 2.0},
        **{"planned_bytes": 1e6 * factor, "peak_bytes": 2e9},
    }
    return {
        "net": net_of(config.to_dict()),
        **{"parameters": 10**6 * factor, "multiply_adds": 10**9, "activation_bytes": 10**6},
        **{"train": {**measured, **train}, "test": measured},
    }


def configs(*nets):
    return [load_config("cifar10", {"model.name": f"cifar_resnet{n}", "model.shortcut": s}) for n, s in nets]


def test_every_net_of_the_paper_is_measured_with_its_own_shortcuts(cost):
    for scale in ("small", "full"):
        names = {(config.model.name, config.model.shortcut) for config in cost.wanted(scale)}
        assert names >= {(f"resnet{depth}", "B") for depth in (18, 34, 50, 101, 152)}
        assert names >= {(f"cifar_resnet{depth}", "A") for depth in (20, 32, 44, 56, 110, 1202)}
        assert {shortcut for name, shortcut in names if name == "resnet50"} == {"A", "B", "C"}


def test_rows_that_are_there_are_not_measured_again_and_time_is_kept(cost, tmp_path):
    output, timing = tmp_path / "costs.json", {"windows": 1, "seconds": 0.1}
    nets = configs((20, "A"), (32, "A"), (44, "A"))
    assert not cost.measure_all(nets, output, minutes=0, **timing)
    assert [row["net"]["model.name"] for row in json.loads(output.read_text())["rows"]] == ["cifar_resnet20"]
    assert cost.measure_all(nets, output, minutes=1, **timing)
    assert len(json.loads(output.read_text())["rows"]) == 3
    output.write_text(json.dumps(json.loads(output.read_text()) | {"cpu": "another"}))
    with pytest.raises(ValueError, match="measured with another cpu"):
        cost.measure_all(nets, output, minutes=1, **timing)


def test_tables_have_a_line_a_net_and_shares_are_of_option_a(cost, tmp_path):
    rows = [row_of(config) for config in configs((20, "A"), (20, "C"), (32, "B"))]
    table, shares = cost.table(rows).splitlines(), cost.share_table(rows).splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == [
        "| cifar_resnet20 A",
        "| cifar_resnet20 C",
        "| cifar_resnet32 B",
    ]
    assert "| 20.00 | 20.00 |" in table[2] and "J an image" not in table[0]
    # Nothing to compare ResNet-32 with.
    assert shares[2:] == ["| cifar_resnet20 C | 2.000 | 1.000 | 2.000 | 2.000 | 2.000 |"]
    with_energy = [row_of(config, joules_per_image=3.5) for config in configs((20, "A"))]
    assert cost.table(with_energy).splitlines()[2].endswith("| 3.50 |")
    cost.plot(rows, tmp_path / "costs.png")
    assert (tmp_path / "costs.png").read_bytes().startswith(b"\x89PNG")


def test_an_experiment_s_nets_are_measured_once_each(cost, tmp_path):
    for seed, width in enumerate((8, 8, 16)):
        config = load_config("digits", {"model.width": width, "seed": seed})
        record = {**a_record(), "config": config.to_dict(), "model": config.model.name, "seed": seed}
        write_record(tmp_path / "records" / f"run{seed}.json", record)
    assert [config.model.width for config in cost.of_experiment(tmp_path)] == [8, 16]
    assert cost.main(["--of", str(tmp_path)]) == 0
    assert [row["net"]["model.width"] for row in json.loads((tmp_path / "costs.json").read_text())["rows"]] == [8, 16]
