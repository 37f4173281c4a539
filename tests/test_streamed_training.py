"""Runs on images from disk: they go on bit for bit after a stop, count every image, and refuse what cannot be meant."""

import numpy as np
import pytest
from colored_images import build_colored_images
from test_loop import StopAt, assert_same_run, everything

from resnet_jax.build import build
from resnet_jax.config_files import load_config
from resnet_jax.data.input_description import InputDescription
from resnet_jax.data.statistics import measure
from resnet_jax.records import read_metrics
from resnet_jax.training.loop import train
from resnet_jax.workdir import Workdir

SMALL = {
    "data.name": "colors",
    "data.image_size": 32,
    "data.short_sides": (32, 48),
    "data.workers": 0,
    "data.test_split": "test",
    "evaluate.image_size": 32,
    "evaluate.short_side": 36,
    "evaluate.batch_size": 16,
    "evaluate.train_split": "train[:20]",
    "evaluate.every": 4,
    "checkpoint.every": 4,
    # A small net that compiles quickly; nothing here depends on which it is.
    "model.name": "cifar_resnet8",
    "model.width": 4,
    "model.bn_group_size": 4,
    "train.batch_size": 32,
    "train.duration": 12,
    "train.log_every": 3,
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_colored_images(folder, classes=4, train=44, test=21)
    build_colored_images(folder, "broken", classes=4, broken=(3, 30), train=44, test=21)
    for name in ("colors", "broken"):
        measure(name, data_dir=folder, split="test[4:]", image_size=32, short_side=36, workers=0)
    return folder


@pytest.fixture(scope="module")
def small(data_dir):
    def make(reference="imagenet:paper,resnet18", **changes):
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        return load_config(reference, {**SMALL, "data.data_dir": str(data_dir), **changes})

    return make


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    return workdir, train(small(), workdir)


def test_a_run_counts_every_image_and_says_what_its_net_expects(finished):
    workdir, record = finished
    assert record["test"]["count"] == 21 and record["train"]["count"] == 20
    assert (record["steps"], record["unreadable_images"], record["pixel_statistics"]) == (12, 0, "measured")
    input = InputDescription.load(Workdir(workdir).input)
    assert (input.image_shape, input.short_side, input.source) == ((32, 32, 3), 36, "measured")
    assert input.mean.shape == (32, 32, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "workers"), [(6, 2), (12, 0)])
def test_a_stopped_run_goes_on_and_ends_bit_for_bit_like_one_that_was_not(stop, workers, finished, small, tmp_path):
    workdir = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        train(small(), workdir, writers=[StopAt(stop)])
    # Where and how the images are decoded is no part of the run.
    train(small(data__workers=workers), workdir)
    assert_same_run(workdir, finished[0])


@pytest.mark.slow
def test_accumulation_gives_the_parameters_of_the_large_step(small, tmp_path):
    # One step: later ones multiply what rounding leaves.
    train(small(train__duration=1, model__bn_group_size=1), tmp_path / "one")
    train(small(train__duration=1, model__bn_group_size=1, train__accumulation_steps=4), tmp_path / "four")
    one, four = everything(tmp_path / "one"), everything(tmp_path / "four")
    assert one.keys() == four.keys()
    for name, value in one.items():
        scale = max(np.abs(value).max(), 1e-6)
        np.testing.assert_allclose(four[name] / scale, value / scale, atol=2e-5, err_msg=name)


def test_images_that_cannot_be_decoded_stop_the_run_or_are_left_out_and_counted(small, tmp_path):
    with pytest.raises(ValueError, match=r"data set 'broken', split 'train', example (3|30) \(image(3|30).jpg\)"):
        train(small(data__name="broken"), tmp_path / "stop")
    # 12 batches of 32 are 8 epochs of 44 and 32 images more; the training error is of images that can be decoded.
    changes = {"data__unreadable": "skip", "evaluate__train_split": "train[4:24]", "data__test_split": "test[4:]"}
    record = train(small(data__name="broken", **changes), tmp_path / "skip")
    assert 16 <= record["unreadable_images"] <= 18
    assert "train/unreadable" in (tmp_path / "skip" / "metrics.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["goyal90", "modern_short", "modern_long"])
def test_every_recipe_trains(recipe, small, tmp_path):
    changes = {"train__duration": 3, "train__unit": "epochs", "schedule__unit": "percent", "evaluate__every": 3}
    changes |= {"schedule__warmup_duration": 30, "checkpoint__every": 3, "train__log_every": 2}
    changes |= {"schedule__reference_batch_size": 32}
    if recipe == "goyal90":
        changes["schedule__boundaries"] = (40, 70)
    record = train(small(f"imagenet:{recipe},resnet18", **changes), tmp_path / recipe)
    assert record["steps"] == 4 and np.isfinite(record["train"]["loss"])
    state = everything(tmp_path / recipe)
    assert any("ema" in name for name in state) == (recipe == "modern_long")


def test_averaged_parameters_are_the_ones_that_are_tested(small, tmp_path):
    from resnet_jax.evaluation.run import load_workdir

    train(small(train__ema_decay=0.9, train__duration=4), tmp_path / "ema")
    state = everything(tmp_path / "ema")
    _, variables = load_workdir(tmp_path / "ema")
    kernel = np.asarray(variables["params"]["classifier"]["kernel"])
    averaged, raw = (
        next(value for name, value in state.items() if "classifier" in name and "kernel" in name and test(name))
        for test in (lambda name: "ema" in name, lambda name: "ema" not in name and "opt_state" not in name)
    )
    np.testing.assert_array_equal(kernel, averaged)
    assert np.abs(averaged - raw).max() > 0


def test_another_number_of_classes_than_the_data_has_stops_before_training(small, tmp_path):
    with pytest.raises(ValueError, match="model.num_classes=1000: data set 'colors' has 4 classes"):
        train(small(model__num_classes=1000), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_labels_that_are_no_classes_stop_before_training(data_dir, small, tmp_path):
    import shutil

    copy = tmp_path / "data" / "colors" / "1.0.0"
    shutil.copytree(data_dir / "colors" / "1.0.0", copy)
    features = copy / "features.json"
    text = features.read_text()
    assert '"numClasses": "4"' in text
    features.write_text(text.replace('"numClasses": "4"', '"numClasses": "3"'))
    for path in copy.glob("label.labels.txt"):
        path.write_text("a\nb\nc\n")
    with pytest.raises(ValueError, match=r"example \d+ .* has label 3; allowed is 0 to 2"):
        train(small(data__data_dir=str(tmp_path / "data")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resident_pipeline_refuses_images_of_many_sizes(data_dir, tmp_path):
    config = load_config("digits", {"data.name": "colors", "data.data_dir": str(data_dir), "train.batch_size": 32})
    with pytest.raises(ValueError, match="different sizes have to be streamed: data.pipeline=streamed"):
        train(config, tmp_path / "run")


@pytest.mark.slow
def test_a_run_that_leaves_images_out_ends_with_a_count_and_counts_over_a_stop(small, tmp_path):
    changes = {"data__name": "broken", "data__unreadable": "skip", "data__test_split": "test[4:]"}
    config = small(**changes, evaluate__train_split="train")
    record = train(config, tmp_path / "whole")
    # 384 positions of the stream are 8 epochs of 44 and 32 more; two images of an epoch are broken.
    assert record["train"]["count"] == 42
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "stopped", writers=[StopAt(6)])
    resumed = train(config, tmp_path / "stopped")
    assert resumed["resumed_from_step"] == 4
    assert resumed["unreadable_images"] == record["unreadable_images"]
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_run_that_stopped_at_an_unreadable_image_goes_on_without_it(small, tmp_path):
    changes = {"data__name": "broken", "data__test_split": "test[4:]", "evaluate__train_split": "train[4:24]"}
    with pytest.raises(ValueError, match="data.unreadable=skip leaves such images out"):
        train(small(**changes), tmp_path / "run")
    assert train(small(**changes, data__unreadable="skip"), tmp_path / "run")["steps"] == 12


@pytest.mark.slow
def test_checkpoints_between_evaluations_do_not_hasten_a_plateau(small, tmp_path):
    """The validation error stalls at once: three evaluations without improvement, then the rate falls."""
    changes = {"schedule__patience": 3, "schedule__min_improvement": 0.9, "train__duration": 10, "evaluate__every": 2}
    rates = {}
    for every in (1, 2):
        workdir = tmp_path / str(every)
        train(small(**changes, checkpoint__every=every, train__log_every=1), workdir)
        steps, values = read_metrics(Workdir(workdir).metrics)["train/learning_rate"]
        rates[every] = dict(zip(steps.tolist(), values.tolist(), strict=True))
    assert rates[1] == rates[2]
    assert len(set(rates[1].values())) > 1


def test_another_number_of_images_is_another_run(small, finished, tmp_path):
    import shutil

    copy = shutil.copytree(finished[0], tmp_path / "copy")
    (copy / "record.json").unlink()
    text = Workdir(copy).config.read_text()
    assert '"train_examples": 44' in text
    Workdir(copy).config.write_text(text.replace('"train_examples": 44', '"train_examples": 45'))
    with pytest.raises(ValueError, match="another number of images .steps.train_examples 45 there, 44 now"):
        train(small(), copy)


def test_other_statistics_are_another_run(small, finished, data_dir, tmp_path):
    import shutil

    copy = shutil.copytree(finished[0], tmp_path / "copy")
    (copy / "record.json").unlink()
    other = measure("colors", data_dir=data_dir, image_size=32, short_side=40, output=tmp_path / "other.npz", workers=0)
    with pytest.raises(ValueError, match="was trained on other images"):
        train(small(data__statistics=str(other)), copy)


@pytest.mark.parametrize("key", ["data.test_split", "data.validation_split", "evaluate.train_split"])
def test_an_unknown_split_stops_before_any_is_read(key, data_dir, monkeypatch):
    monkeypatch.setattr("resnet_jax.build.load_arrays", lambda *_: pytest.fail("a split was read"))
    config = load_config("digits", {"data.data_dir": str(data_dir), key: "trian"})
    with pytest.raises(ValueError, match="split='trian' of data set 'digits'"):
        build(config)
