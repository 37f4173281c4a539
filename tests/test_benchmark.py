"""`resnet-jax benchmark`: rates and ratios from windows, measurements of small nets, and what a table makes of them."""

import json

import jax
import pytest

from resnet_jax.benchmark import measuring, subjects, suite
from resnet_jax.benchmark.ceilings import ceilings
from resnet_jax.benchmark.plot import plot_record
from resnet_jax.benchmark.synthetic import synthetic_parts
from resnet_jax.benchmark.table import shares, table
from resnet_jax.benchmark.windows import rate, ratio
from resnet_jax.cli import main
from resnet_jax.config_files import load_config
from resnet_jax.models.summary import summarize

SMALL = {"model.name": "cifar_resnet8", "train.batch_size": 16, "evaluate.batch_size": 16, "model.bn_group_size": None}


def small_config(**overrides):
    return load_config("digits", {**SMALL, **overrides})


def windows(*seconds, images=256):
    return [{"images": images, "seconds": value} for value in seconds]


def test_images_per_second_are_all_images_by_all_seconds():
    found = rate([*windows(1.0, 4.0), *windows(1.0, images=512)], batch=128)
    # A mean of the windows' rates would be 277, their median 256.
    assert found["images_per_second"] == pytest.approx(1024 / 6)
    assert found["batch_seconds"] == {"median": 0.5, "min": 0.25, "max": 2.0}
    assert found["windows"][2] == {"images": 512, "seconds": 1.0}


def test_a_ratio_is_of_times_for_an_image_pair_by_pair():
    found = ratio(windows(2, 3, 8), windows(1, 2, 2))
    assert (found["median"], found["min"], found["max"], found["pairs"]) == (2, 1.5, 4, 3)
    # Twice the images in the same time.
    assert ratio(windows(2, images=512), windows(2))["median"] == 0.5
    for above, below in (((1.0,), ()), ((), ())):
        with pytest.raises(ValueError, match="are no pairs"):
            ratio(windows(*above), windows(*below))


@pytest.mark.parametrize(
    ("count", "ends"),
    # Twice the chance that fewer than k of n coins show heads: n = 5, k = 1: 6 %; 6, 1: 3 %; 9, 2: 4 %; 12, 3: 4 %.
    [(1, None), (5, None), (6, (1, 6)), (8, (1, 8)), (9, (2, 8)), (12, (3, 10)), (15, (4, 12))],
)
def test_the_interval_holds_the_median_with_95_percent(count, ends):
    found = ratio(windows(*range(count, 0, -1)), windows(*[1.0] * count))
    assert found["interval"] == (None if ends is None else [float(end) for end in ends])


def test_windows_are_as_long_as_asked_and_take_turns_there_and_back(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now[0])

    def runs(name, seconds):
        def run(batches):
            now[0] += seconds * batches
            calls.append((name, batches))
            return 10 * batches

        return run

    timed = measuring.in_turns({"a": runs("a", 0.1), "b": runs("b", 0.01)}, windows=3, seconds=1.0)
    assert calls[-6:] == [("a", 10), ("b", 100), ("b", 100), ("a", 10), ("a", 10), ("b", 100)]
    assert [window["images"] for window in timed["b"]] == [1000] * 3
    assert timed["a"][0]["seconds"] == pytest.approx(1.0)


@pytest.mark.slow
def test_synthetic_training_is_the_training_of_the_config():
    parts = synthetic_parts(small_config())
    subject = subjects.train(parts)
    assert subject.run(3) == 3 * 16
    assert subject.said["batch"] == 16
    # Forward, and backward to inputs and weights, a multiplication and an addition each.
    counted = summarize("cifar_resnet8", image_size=8, num_classes=10).multiply_adds
    assert subject.said["flop_per_image"] == 6 * counted
    # At least the parameters and their momentum, and the images, have to be there.
    assert subject.said["planned_bytes"] > 8 * 75_000 + 1437 * 64
    assert subject.said["bytes_per_image"] > 8 * 75_000 / 16


def test_a_streamed_config_trains_on_one_batch_that_lies_on_the_devices():
    overrides = {**SMALL, "model.name": "resnet18", "data.image_size": 32, "schedule.warmup_start": 0.0}
    parts = synthetic_parts(load_config("imagenet:goyal90,resnet18", {**overrides, "model.num_classes": 7}))
    first, second = parts.feed.arguments(0), parts.feed.arguments(1)
    assert all(a is b for a, b in zip(first, second, strict=True))
    images, labels, weights = first
    assert images.shape == (16, 32, 32, 3) and len(images.sharding.device_set) == jax.device_count()
    assert labels.max() < 7 and len(set(images.ravel()[:1000].tolist())) > 100
    assert weights.tolist() == [1.0] * 16


def test_a_test_counts_every_image_and_stands_beside_the_net_alone():
    parts = synthetic_parts(small_config())
    assert subjects.evaluate(parts).run(4) == len(parts.splits["test"]) == 4 * 16
    alone = subjects.forward(parts)
    assert alone.run(2) == 32 and alone.said["flop_per_image"] * 3 == subjects.train(parts).said["flop_per_image"]


def test_whole_images_at_one_scale_stand_beside_the_net_on_as_many_pixels():
    overrides = {"model.name": "resnet18", "data.image_size": 32, "schedule.warmup_start": 0.0, "model.width": 4}
    parts = synthetic_parts(load_config("imagenet:goyal90,resnet18", {**SMALL, **overrides}))
    whole, alone = subjects.dense(parts), subjects.dense_forward(parts)
    assert whole.said["dense_shape"] == [32, 64, 3]
    # A batch of images and their mirror images.
    assert whole.run(2) == alone.run(2) == 2 * 8 == 2 * whole.said["batch"]


def test_the_input_pipeline_alone_needs_one():
    with pytest.raises(ValueError, match="data.pipeline=resident: such a data set is read once"):
        subjects.read(synthetic_parts(small_config()))


def test_ceilings_are_those_of_a_computer():
    found = ceilings("float32")
    assert 1e8 < found["bytes_per_second"] < 1e14 and 1e8 < found["flop_per_second"] < 1e17


class FakeMeasurements:
    """Of memory for so many images."""

    def __init__(self, largest):
        self.largest, self.tried = largest, []

    def __call__(self, kind, config, *, windows, seconds):
        size = config.evaluate.batch_size if kind == "eval" else config.train.batch_size
        self.tried.append(size)
        if size > self.largest:
            raise measuring.OutOfMemory("RESOURCE_EXHAUSTED: out of memory")
        return [{"subject": kind, "model": config.model.name, "batch": size}]


@pytest.mark.parametrize(("kind", "asked", "tried"), [("train", 100, [100, 50, 25]), ("eval", 32, [32])])
def test_where_memory_does_not_suffice_the_batch_is_halved(monkeypatch, kind, asked, tried):
    fake = FakeMeasurements(largest=40)
    monkeypatch.setattr(suite, "measure", fake)
    monkeypatch.setattr(suite, "surroundings", lambda dtype: {"ceilings": {}})
    record = suite.benchmark(kind, models=["resnet18"], batch_sizes=[asked])
    assert fake.tried == tried
    (row,) = record["rows"]
    assert row["batch"] == tried[-1] and row.get("batch_size_asked") == (asked if len(tried) > 1 else None)


def test_a_net_that_does_not_fit_at_all_says_so(monkeypatch):
    monkeypatch.setattr(suite, "measure", FakeMeasurements(largest=0))
    monkeypatch.setattr(suite, "surroundings", lambda dtype: {"ceilings": {}})
    with pytest.raises(measuring.MeasurementFailed, match="memory does not suffice for train.batch_size=1"):
        suite.benchmark("train", models=["resnet18"], batch_sizes=[3])


def test_a_measurement_without_memory_says_so():
    # More bytes than there are addresses.
    changes = {"train.batch_size": 2**17, "data.image_size": 2**17, "evaluate.short_side": 2**17}
    config = load_config("imagenet:goyal90,resnet18", changes)
    with pytest.raises(measuring.OutOfMemory):
        measuring.measure("train", config, windows=1, seconds=0.1)


def test_a_measurement_that_breaks_off_shows_its_last_lines():
    with pytest.raises(measuring.MeasurementFailed, match="more than the 1437 images"):
        measuring.measure("train", small_config(**{"train.batch_size": 2000}), windows=1, seconds=0.1)


CEILINGS = {"flop_per_second": 1e12, "bytes_per_second": 1e11}


def test_shares_are_of_the_ceilings_and_the_lower_one_bounds():
    row = {"images_per_second": 1000.0, "flop_per_image": 5e8, "bytes_per_image": 2e7}
    found = shares(row, CEILINGS)
    assert found == {
        **{"flop_per_second": 5e11, "of_flop": 0.5, "bytes_per_second": 2e10, "of_bytes": 0.2},
        "bound": 2000.0,
    }
    assert shares({**row, "bytes_per_image": 1e8}, CEILINGS)["bound"] == 1000.0
    assert shares({**row, "bytes_per_image": None}, CEILINGS)["bound"] is None


@pytest.mark.slow
def test_the_command_measures_in_processes_of_their_own_and_writes_record_table_and_plot(tmp_path, capsys):
    words = ["benchmark", "train", "--config=digits", "--batch_sizes=16,32", "--windows=2", "--seconds=0.05"]
    changes = [f"--config.{key}={value}" for key, value in SMALL.items() if key != "train.batch_size"]
    files = {name: tmp_path / name for name in ("record.json", "plot.png")}
    assert main([*words, *changes, f"--output={files['record.json']}", f"--plot={files['plot.png']}"]) == 0
    record = json.loads(files["record.json"].read_text())
    assert [row["batch"] for row in record["rows"]] == [16, 32]
    for row in record["rows"]:
        assert row["images_per_second"] == rate(row["windows"], batch=row["batch"])["images_per_second"]
        assert row["compile_seconds"] > 0 and row["peak_bytes"] > row["planned_bytes"]
    assert capsys.readouterr().out.strip() == table(record)
    assert files["plot.png"].stat().st_size > 10_000


def test_a_table_says_what_was_asked_and_what_went():
    row = {"subject": "train", "model": "resnet18", "batch": 25, "batch_size_asked": 100, "dtype": "float32"}
    machine = {"devices": {"platform": "cpu"}, "cpu": {"count": 2, "model": "X"}, "versions": {"python": 3, "jax": 0}}
    assert "25 (memory does not suffice for 100)" in table({**machine, "ceilings": CEILINGS, "rows": [row]})
    with pytest.raises(ValueError, match="no rate to plot among 1 rows"):
        plot_record({"rows": [row], "ceilings": CEILINGS}, "never.png")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--plan", "train"], "either a KIND"),
        (["trian", "--models=resnet18"], "did you mean 'train'"),
        (["train"], "which nets"),
        (["train", "--models=resnet18", "--batch_sizes=0"], "from 1 on"),
        (["train", "--models=resnet17"], "resnet17"),
    ],
)
def test_the_command_says_what_it_needs(words, message, capsys):
    assert main(["benchmark", *words]) == 2
    assert message in capsys.readouterr().err
