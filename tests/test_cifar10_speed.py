"""The benchmark of the CIFAR nets: its arithmetic, what goes into one record, and that its tables are the record's."""

import copy
import json
import statistics
from pathlib import Path

import pytest
from experiment_modules import experiment_modules

from resnet_jax.benchmark import windows as timed

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "benchmarks" / "cifar10"
RECORD = FOLDER / "record.json"


@pytest.fixture(scope="module")
def modules():
    """Imports the benchmark's modules by name."""
    with experiment_modules(FOLDER, FOLDER.parent) as imported:
        yield imported


def test_a_power_law_is_found_and_continued(modules):
    found = modules("growth").power_law([10, 20, 40], [3 * size**1.5 for size in (10, 20, 40)], 100)
    assert found == {"exponent": pytest.approx(1.5), "size": 100, "value": pytest.approx(3000)}


class FakeWorker:
    """Takes 0.1 s a batch, and notes when it is asked."""

    def __init__(self, name, asked, batches_per_call=1):
        self.name, self.asked, self.said = name, asked, {"batches_per_call": batches_per_call}

    def measure(self, batches):
        self.asked.append((self.name, batches))
        return {"images": 128 * batches, "seconds": 0.1 * batches}


def test_subjects_take_turns_there_and_back_with_windows_of_the_length_asked_for(modules, monkeypatch):
    worker = modules("worker")
    monkeypatch.setattr(FakeWorker, "batches_in", worker.Worker.batches_in, raising=False)
    asked: list = []
    subjects = {"x": FakeWorker("x", asked), "y": FakeWorker("y", asked)}
    found = worker.in_turns(subjects, rounds=3, seconds=2.0)
    tries, timed = asked[:-6], asked[-6:]
    # A try must take a quarter of the window: 1, 2, 4 and then 8 batches.
    assert [batches for name, batches in tries if name == "x"] == [1, 2, 4, 8]
    assert [name for name, _ in timed] == ["x", "y", "y", "x", "x", "y"] and {batches for _, batches in timed} == {20}
    assert found["y"] == [{"images": 2560, "seconds": 2.0}] * 3


def test_no_subject_has_fewer_batches_than_another_s_call(modules, monkeypatch):
    worker = modules("worker")
    monkeypatch.setattr(FakeWorker, "batches_in", worker.Worker.batches_in, raising=False)
    asked: list = []
    worker.in_turns({"50": FakeWorker("50", asked, 50), "1": FakeWorker("1", asked)}, rounds=1, seconds=0.4)
    assert asked[-2:] == [("50", 50), ("1", 50)]


def test_a_process_that_fails_says_why(modules):
    worker = modules("worker")
    spec = {"kind": "train", "net": "cifar_resnet9", "data_dir": "nowhere", "overrides": {}}
    with pytest.raises(worker.WorkerFailed, match="6n . 2 layers"):
        worker.Worker(FOLDER / "subjects.py", spec, {"JAX_PLATFORMS": "cpu"})


def test_pytorch_may_be_missing_and_this_library_may_not(modules, monkeypatch):
    worker = modules("worker")

    def start(script, spec, variables):
        if spec["net"] == "broken":
            raise worker.WorkerFailed("ended with 1:\nTraceback\nImportError: no compiler\n")
        return FakeWorker(spec["net"], [])

    monkeypatch.setattr(worker, "Worker", start)
    monkeypatch.setattr(FakeWorker, "close", lambda self: None, raising=False)
    ours, theirs = {"kind": "train", "net": "fine"}, {"kind": "pytorch", "net": "broken"}
    with worker.working(FOLDER, {"ours": ours, "theirs": theirs}) as (workers, failed):
        assert list(workers) == ["ours"] and failed == {"theirs": "ImportError: no compiler"}
    with pytest.raises(worker.WorkerFailed), worker.working(FOLDER, {"ours": ours | {"net": "broken"}}):
        pass


def a_record(*names, **changes):
    header = {"config": {"scale": "full"}, "source": "abc", "devices": {"platform": "cpu"}}
    return header | changes | {"rows": [{"row": name, "value": 1} for name in names]}


def test_rows_are_made_anew_or_added(modules):
    with_rows = modules("rows").with_rows
    old = a_record("a cifar_resnet110", "b cifar_resnet20")
    new = a_record("b cifar_resnet20", "a cifar_resnet20")
    new["rows"][0]["value"] = 2
    found = with_rows(old, new)
    assert [(entry["row"], entry["value"]) for entry in found["rows"]] == [
        ("a cifar_resnet20", 1),
        ("a cifar_resnet110", 1),
        ("b cifar_resnet20", 2),
    ]
    assert old == a_record("a cifar_resnet110", "b cifar_resnet20")


@pytest.mark.parametrize("change", [{"source": "other"}, {"config": {"scale": "small"}}, {"devices": {}}, {"new": 1}])
def test_rows_of_other_code_or_another_machine_are_refused(modules, change):
    with pytest.raises(ValueError, match=f"the record there has another {next(iter(change))}; give --output another"):
        modules("rows").with_rows(a_record("a"), a_record("b", **change))


def test_each_row_is_given_as_it_ends_and_one_that_fails_is_left_out(modules):
    rows = modules("rows")

    def fails():
        raise modules("worker").WorkerFailed("out of memory")

    wanted = [("good", lambda: {"value": 1}), ("bad", fails), ("last", lambda: {"value": 2})]
    header = {"source": "abc"}
    records = rows.make_record(header, wanted, lambda: "abc")
    assert next(records) == header | {"rows": [{"row": "good", "value": 1}]}
    assert [record["rows"][0]["row"] for record in records] == ["last"]
    with pytest.raises(rows.SourceChanged, match="were changed while they were measured"):
        next(rows.make_record(header, wanted, lambda: "edited"))


def test_the_code_s_digest_covers_the_benchmark_and_the_reference(modules, tmp_path, monkeypatch):
    speed = modules("speed")
    names = ("benchmarks/cifar10/speed.py", "benchmarks/worker.py", "reference/pytorch_reference.py")
    own, _, reference = paths = [tmp_path / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    monkeypatch.setattr(speed, "HERE", own.parent)
    monkeypatch.setattr(speed, "REFERENCE", reference.parent)
    seen = {speed.code_digest()}
    for path in paths:
        path.write_text("2")
        seen.add(speed.code_digest())
    monkeypatch.setattr(modules("rows"), "source_digest", lambda: "another package")
    assert len(seen | {speed.code_digest()}) == 5


@pytest.fixture(scope="module")
def measured(modules, tmp_path_factory):
    """A record of parts a and b with the smallest net on tiny images, made by the command, in windows of one call."""
    output = tmp_path_factory.mktemp("speed") / "record.json"
    measurements, speed = modules("measurements"), modules("speed")
    with pytest.MonkeyPatch.context() as patch:
        # One device, as outside of the tests.
        patch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
        patch.setattr(measurements, "NOISE", {"side": 8, "sizes": {"train": 1280, "test": 8}})
        patch.setitem(measurements.SIZES, "small", measurements.SIZES["small"]._replace(rounds=3, seconds=0.01))
        assert speed.main(["--parts=a,b", "--nets=cifar_resnet8", f"--output={output}"]) == 0
    return json.loads(output.read_text())


def row_of(record, name):
    (row,) = (row for row in record["rows"] if row["row"] == name)
    return row


@pytest.mark.slow
def test_measured_ratios_are_those_of_their_own_timings(measured):
    assert [row["row"] for row in measured["rows"]] == ["a cifar_resnet8", "b cifar_resnet8"]
    for row in measured["rows"]:
        times = {}
        for name, found in row["rates"].items():
            seconds, images = ([window[key] for window in found["windows"]] for key in ("seconds", "images"))
            times[name] = [second / image for second, image in zip(seconds, images, strict=True)]
            assert len(seconds) == 3 and min(seconds) > 0 and all(image % 128 == 0 for image in images)
            assert found["images_per_second"] == pytest.approx(sum(images) / sum(seconds))
            assert found["batch_seconds"]["median"] == pytest.approx(128 * statistics.median(times[name]))
        for ratio in row["ratios"]:
            pairs = zip(times[ratio["above"]], times[ratio["below"]], strict=True)
            assert ratio["median"] == pytest.approx(statistics.median(above / below for above, below in pairs))


@pytest.mark.slow
def test_ten_steps_in_a_call_are_compared_with_ten_calls(measured):
    row = row_of(measured, "b cifar_resnet8")
    (ratio,) = row["ratios"]
    assert (ratio["above"], ratio["below"]) == ("10 steps in a call", "1 step in a call")
    assert [row["rates"][name]["batches_per_call"] for name in (ratio["above"], ratio["below"])] == [10, 1]
    assert row["subjects"]["10 steps in a call"]["overrides"]["train.steps_per_dispatch"] == 10
    windows = [window for found in row["rates"].values() for window in found["windows"]]
    assert {window["images"] for window in windows} == {1280}


@pytest.mark.slow
def test_this_library_is_compared_with_pytorch_where_there_is_one(measured):
    row = row_of(measured, "a cifar_resnet8")
    ours = ["resnet_jax, float32", "resnet_jax, float32, 1 step in a call"]
    assert [row["subjects"][name]["overrides"]["train.steps_per_dispatch"] for name in ours] == [None, 1]
    if measured["versions"]["torch"] is None:
        assert list(row["rates"]) == ours and row["ratios"] == []
        assert row["notes"] == ["PyTorch is not installed, so there is no ratio"]
        return
    theirs = ["PyTorch, float32", "PyTorch, float32, groups of 64"]
    pairs = [(own, name) for own in ours for name in theirs]
    assert [(found["above"], found["below"]) for found in row["ratios"]] == pairs
    assert [row["subjects"][name]["group"] for name in theirs] == [None, 64]
    assert {found["wanted"] for found in row["ratios"]} == {1.5} and row["notes"] == []


@pytest.mark.slow
def test_a_record_names_code_machine_and_what_was_measured_and_no_folder(measured):
    assert {"commit", "versions", "devices", "cpu", "source", "xla_flags"} <= set(measured)
    assert measured["devices"] == {"platform": "cpu", "kind": "cpu", "count": 1, "processes": 1}
    assert measured["xla_flags"] == "--xla_force_host_platform_device_count=1"
    assert "data_dir" not in json.dumps(measured)


@pytest.mark.slow
def test_the_table_has_the_record_s_numbers(modules, measured):
    record = copy.deepcopy(measured)
    row = row_of(record, "b cifar_resnet8")
    row["ratios"][0] |= {"median": 0.8765, "interval": [0.8, 0.91234], "wanted": 0.5}
    row["notes"] = ["something was not measured"]
    text = modules("speed").table(record)
    rate = row["rates"]["10 steps in a call"]["images_per_second"]
    assert f"| {rate:,.0f} | 1 step in a call | 0.876 (0.800 to 0.912) | 3 | at most 0.5: not met |" in text
    assert "b cifar_resnet8: something was not measured." in text


def test_the_readme_holds_the_record_s_tables(modules):
    if not RECORD.is_file():
        pytest.skip(f"no record yet: {FOLDER.name}/README.md says how it is made, in a quarter of an hour")
    record = json.loads(RECORD.read_text())
    assert record["commit"] is not None and not record["commit"]["dirty"] and record["config"]["scale"] == "full"
    assert modules("speed").table(record) in (FOLDER / "README.md").read_text()
    for entry in (entry for entry in record["rows"] if "rates" in entry):
        recounted = {name: timed.rate(found["windows"], batch=found["batch"]) for name, found in entry["rates"].items()}
        assert all(found.items() <= entry["rates"][name].items() for name, found in recounted.items())
        for found in entry["ratios"]:
            again = timed.ratio(*(entry["rates"][found[side]]["windows"] for side in ("above", "below")))
            assert again.items() <= found.items()
