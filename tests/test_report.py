"""Tables and figures come from stored records: means over seeds, a line for each config, nothing made up."""

import json

import pytest
from test_records import a_record

from resnet_jax.analysis.costs import net_of
from resnet_jax.analysis.report import report
from resnet_jax.records import write_record


def store(folder, name, *, model, seed, train, test, errors=(0.9, 0.5)):
    record = {**a_record(), "model": model, "seed": seed}
    record["config"] = {**record["config"], "model": {"name": model}, "seed": seed}
    record["train"] = {"loss": 0.1, "error": train, "count": 100}
    record["test"] = {**record["test"], "error_top1": test}
    write_record(folder / "records" / f"{name}.json", record)
    lines = [{"step": 10 * i, "train/error_top1": error, "test/error_top1": error} for i, error in enumerate(errors, 1)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "records" / f"{name}.metrics.jsonl").write_text(text)


@pytest.fixture
def experiment(tmp_path):
    store(tmp_path, "b0", model="cifar_resnet110", seed=0, train=0.10, test=0.20)
    store(tmp_path, "b1", model="cifar_resnet110", seed=1, train=0.20, test=0.20)
    store(tmp_path, "c0", model="cifar_plain20", seed=0, train=0.50, test=0.60)
    store(tmp_path, "a0", model="cifar_resnet20", seed=0, train=0.30, test=0.40)
    return tmp_path


def test_the_table_has_a_line_per_config_with_mean_and_std_over_seeds(experiment):
    lines = report(experiment).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in cells] == ["cifar_plain20", "cifar_resnet20", "cifar_resnet110"]
    # Sample standard deviation of 10 and 20: 7.07.
    assert cells[2][3:6] == ["2", "15.00 ± 7.07", "20.00 ± 0.00"]
    assert cells[0][3:6] == ["1", "50.00", "60.00"]


def test_the_table_goes_between_the_marks_of_the_readme_and_nowhere_else(experiment):
    readme = experiment / "README.md"
    marks = "<!-- table: made by resnet-jax report -->", "<!-- end of table -->"
    readme.write_text(f"# Question\n{marks[0]}\nold\n{marks[1]}\nanswer\n")
    table = report(experiment)
    assert readme.read_text() == f"# Question\n{marks[0]}\n{table}\n{marks[1]}\nanswer\n"


def test_the_figure_is_drawn_from_the_stored_curves(experiment):
    report(experiment)
    assert (experiment / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no record"):
        report(tmp_path)


def test_finished_runs_are_taken_into_the_records_by_their_folder_s_name(experiment, tmp_path):
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    records = experiment / "records"
    (records / "c0.json").rename(run / "record.json")
    (records / "c0.metrics.jsonl").rename(run / "metrics.jsonl")
    assert "cifar_plain20" not in report(experiment)
    assert "cifar_plain20" in report(experiment, add=[run])
    assert (records / "mine.json").is_file() and (records / "mine.metrics.jsonl").is_file()


def test_seeds_with_different_lines_are_averaged_where_both_have_one(experiment):
    path = experiment / "records" / "b1.metrics.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    report(experiment)


def store_localizer(folder, seed, *, trains, error, proposals_from=None):
    record = {**a_record(), "model": "resnet18", "seed": seed}
    record["config"] = {
        **{"task": "localization", "seed": seed, "data": {"test_sets": ".../shapes:test"}},
        "localizer": {"trains": trains, "proposals_from": proposals_from},
    }
    del record["train"]
    record["test"] = {"error_localization": error, "count": 1200, "protocol": "1-crop"}
    name = f"{trains}_seed{seed}"
    write_record(folder / "records" / f"{name}.json", record)
    lines = [{"step": step, "train/object_error": 0.5, "test/error_localization": error} for step in (10, 20)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "records" / f"{name}.metrics.jsonl").write_text(text)


def test_runs_that_go_on_from_runs_of_other_seeds_are_one_line_and_say_what_set_they_are_tested_on(tmp_path):
    for seed, error in enumerate((0.1, 0.2)):
        store_localizer(tmp_path, seed, trains="proposals", error=2 * error)
        store_localizer(tmp_path, seed, trains="regions", error=error, proposals_from=f"/runs/proposals_seed{seed}")
    lines = report(tmp_path).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| resnet18, proposals", "| resnet18, regions"]
    assert lines[0].endswith("| localization error, true class, % | test images |")
    assert lines[3].endswith("| 2 | 15.00 ± 7.07 | 1,200 of shapes:test |")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_records_of_two_tasks_have_no_table_in_common(experiment):
    store_localizer(experiment, 0, trains="proposals", error=0.1)
    with pytest.raises(ValueError, match="records of classification and localization have no table in common"):
        report(experiment)


def store_with(folder, name, *, seed, error, **model):
    store(folder, name, model="cifar_resnet20", seed=seed, train=error, test=error)
    path = folder / "records" / f"{name}.json"
    record = json.loads(path.read_text())
    own = {"model": {"name": "cifar_resnet20", **model}, "data": {"name": "digits"}, "train": {"batch_size": 128}}
    record["config"] |= own
    write_record(path, record)


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_a_key_in_which_runs_differ_has_a_column_and_others_have_none(tmp_path):
    for seed in range(2):
        store_with(tmp_path, f"a{seed}", seed=seed, error=0.1, shortcut="A", dtype="float32")
        store_with(tmp_path, f"c{seed}", seed=seed, error=0.2, shortcut="C", dtype="float32")
    # As an older version left it, without a key that has its default elsewhere.
    store_with(tmp_path, "own", seed=0, error=0.3)
    header, _, *rows = cells(report(tmp_path))
    assert header[:3] == ["net", "shortcut", "parameters"] and "dtype" not in header
    assert sorted((row[1], row[4]) for row in rows) == [("-", "1"), ("A", "2"), ("C", "2")]


def test_costs_stand_beside_the_net_that_they_were_measured_of(tmp_path):
    store_with(tmp_path, "a", seed=0, error=0.1, shortcut="A")
    store_with(tmp_path, "c", seed=0, error=0.1, shortcut="C")
    config = json.loads((tmp_path / "records" / "c.json").read_text())["config"]
    row = {
        "net": net_of(config),
        "multiply_adds": 40_813_184,
        "train": {"batch_seconds": {"median": 0.32}, "planned_bytes": 65e6},
        "test": {"images_per_second": 500.0},
    }
    (tmp_path / "costs.json").write_text(json.dumps({"rows": [row]}))
    header, _, without, with_costs = cells(report(tmp_path))
    place = header.index("multiply-adds, M")
    assert header[place + 1 : place + 4] == ["ms a step", "ms a test image", "planned MB"]
    assert with_costs[place : place + 4] == ["40.8", "320", "2.00", "65.0"]
    assert without[place : place + 4] == [""] * 4
