"""The experiment that tries faults on real runs: its tables are the record's, and it finds what is silently wrong."""

import json
from pathlib import Path

import pytest
from experiment_modules import experiment_modules

from resnet_jax import checkpoint_files

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "reliability"
RECORD = FOLDER / "records" / "faults.json"
MATRIX = range(1, 27)


@pytest.fixture(scope="module")
def modules():
    """Imports the experiment's modules by name."""
    with experiment_modules(FOLDER) as imported:
        yield imported


@pytest.fixture(scope="module")
def bench(modules, tmp_path_factory):
    return modules("bench").Bench(tmp_path_factory.mktemp("faults"))


def test_every_fault_of_the_matrix_has_a_row(modules):
    rows = modules("rows").ROWS
    assert [row.number for row in rows] == list(MATRIX)
    assert all({"small", "full"} == set(row.library) for row in rows)


@pytest.fixture
def record():
    if not RECORD.exists():
        pytest.skip(f"no record yet: {FOLDER.name}/README.md says how it is made, in some 40 minutes")
    return json.loads(RECORD.read_text())


def test_the_readme_has_the_records_tables(modules, record):
    assert modules("faults").table(record) in (FOLDER / "README.md").read_text()
    assert record["config"]["scale"] == "full"
    # Without root nothing can be mounted, and a published record has all rows.
    assert [entry["row"] for entry in record["rows"]] == list(MATRIX)


def test_no_published_trial_of_the_library_is_silently_wrong(record):
    for entry in record["rows"]:
        assert entry["library"]["silently_wrong"] == 0, entry


def test_sums_say_what_the_trials_say(modules):
    trials = modules("trials")
    good = trials.Trial("a", exact=True, steps_lost=4, codes=[0, 71], named=True)
    bad = trials.Trial("b", exact=False, silently_wrong=True, as_promised=False, note="another state", codes=[0])
    sums = trials.summary([good, good, bad])
    assert (sums["trials"], sums["silently_wrong"], sums["as_promised"]) == (3, 1, 2)
    assert sums["silently_wrong_below"] is None and sums["broken"] == ["b: another state"]
    assert sums["exact"] == {"of": 3, "count": 2} and sums["named"] == {"of": 2, "count": 2}
    assert sums["exit_codes"] == {"0": 3, "71": 2} and sums["steps_lost"] == {"median": 4, "max": 4, "of": 2}
    assert trials.summary([good] * 300)["silently_wrong_below"] == 0.01


def test_no_run_is_started_of_an_edited_package_or_after_the_time(modules, bench, monkeypatch):
    with monkeypatch.context() as late:
        late.setattr(bench, "until", 0.0)
        (row,) = (row for row in modules("rows").ROWS if row.number == 18)
        entry, reasons = modules("faults").try_row(row, "small", bench)
        assert "library" not in entry and reasons == ["library: not tried to the end: the time for all rows is over"]
    # A record of two packages would call every difference between them silently wrong.
    monkeypatch.setattr(modules("bench"), "source_digest", lambda: "another")
    with pytest.raises(modules("bench").SourceChanged):
        modules("faults").try_row(row, "small", bench)


def test_flipped_bits_and_hostile_files_in_a_checkpoint_are_found(modules, bench):
    damaged = modules("stored").bit_flips(bench, modules("trainees").Library(), {1: 11})
    damaged += modules("hostile").hostile_checkpoints(bench, tuple(modules("hostile").CHECKPOINTS))
    for trial in damaged:
        assert trial.as_promised and trial.exact and not trial.silently_wrong, trial


# Orbax leaves threads behind that complain, after reading what is damaged.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_flipped_bits_that_nobody_looks_for_are_silently_wrong(modules, bench, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "_compare_bytes", lambda *arguments: None)
    trials = modules("stored").bit_flips(bench, modules("trainees").Library(), {1: 22})
    assert any(trial.silently_wrong for trial in trials)
    assert not all(trial.as_promised for trial in trials)


def test_a_killed_run_that_goes_on_otherwise_is_silently_wrong(modules, bench, monkeypatch):
    # This kill waits for a checkpoint: a run that is killed before its first one has no momentum to forget.
    def after_a_checkpoint(run, trainee, place, chance):
        return run.wait_until(lambda: trainee.steps(place.workdir) != [])

    kills = modules("kills")
    monkeypatch.setattr(bench, "plant", "forgets_momentum")
    trials = kills.Killing(bench, modules("trainees").Library(), after_a_checkpoint, "after a checkpoint").trials(1)
    assert trials and all(trial.silently_wrong and not (trial.exact or trial.as_promised) for trial in trials), trials


def test_rows_are_added_to_a_record_of_the_same_code_alone(modules):
    def record(commit, *rows):
        entries = [{"row": row, "of": commit + str(len(rows))} for row in rows]
        return {"commit": commit, "rows": entries, "not_covered": [{"row": row, "reason": ""} for row in rows]}

    merged = modules("faults").with_rows(record("a", 1, 2, 4), record("a", 2, 3))
    assert [(entry["row"], entry["of"]) for entry in merged["rows"]] == [(1, "a3"), (2, "a2"), (3, "a2"), (4, "a3")]
    assert [entry["row"] for entry in merged["not_covered"]] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="the record there has another commit"):
        modules("faults").with_rows(record("a", 1), record("b", 2))
