"""Whole runs on the real digits: what they leave behind, going on after a stop, and what must stop them."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from resnet_jax.checkpoints import Checkpoints
from resnet_jax.config import check
from resnet_jax.config_files import load_config
from resnet_jax.data.input_description import InputDescription
from resnet_jax.data.prepare import prepare
from resnet_jax.evaluation.predict import predict
from resnet_jax.evaluation.run import evaluate_workdir, load_workdir
from resnet_jax.records import read_metrics, read_record
from resnet_jax.training.loop import train
from resnet_jax.training.start_times import START_PARTS
from resnet_jax.workdir import Workdir

# A stem and one block per stage; 12 steps with a checkpoint, an evaluation and a line of metrics on the way.
SMALL = {
    "model.name": "cifar_resnet8",
    "model.width": "4",
    "train.batch_size": "64",
    "train.duration": "12",
    "train.unit": "steps",
    "train.log_every": "3",
    "evaluate.every": "4",
    "checkpoint.every": "4",
    "checkpoint.keep_latest": "3",
}


class StopAt:
    """A writer that ends the run like a crash would, at the first metrics from a step on."""

    def __init__(self, step):
        self.step = step

    def write_scalars(self, step, scalars):
        if step >= self.step:
            raise KeyboardInterrupt

    def flush(self):
        pass

    def close(self):
        pass


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepare("digits", data_dir=folder)
    return folder


@pytest.fixture(scope="module")
def small(digits):
    def make(**changes):
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        return load_config("digits", {**SMALL, "data.data_dir": str(digits), **changes})

    return make


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """A workdir whose run went through without a stop, and its record."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    return workdir, train(small(), workdir)


def final_state(workdir):
    """All that the last checkpoint holds, as numpy arrays by path."""
    _, variables = load_workdir(workdir)
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def everything(workdir):
    """The whole saved state, momentum and schedule included, without knowing its structure."""
    from orbax.checkpoint import v1 as ocp

    with Checkpoints(Workdir(workdir).checkpoints, read_only=True) as checkpoints:
        step = checkpoints.steps()[-1]
    folder = Workdir(workdir).checkpoints / str(step)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    described = ocp.metadata(folder).metadata
    tree = ocp.load(
        folder, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), described)
    )
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def lines(workdir):
    rows = [json.loads(line) for line in Workdir(workdir).metrics.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "train/images_per_second"} for row in rows]


def assert_same_run(found, expected):
    left, right = everything(found), everything(expected)
    assert left.keys() == right.keys()
    assert any("trace" in name for name in left), "the momentum is part of what must be equal"
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
    assert lines(found) == lines(expected)


def test_a_run_leaves_record_metrics_events_curves_and_checkpoints(finished):
    workdir, record = finished
    files = Workdir(workdir)
    assert read_record(files.record) == record
    assert record["test"]["count"] == 359 and record["train"]["count"] == 1438
    assert record["steps"] == 12 and record["parameters"] > 0
    start = record["start_seconds"]
    assert tuple(start) == START_PARTS and sum(start.values()) < record["wall_seconds"]
    assert start["imports"] == 0 < start["compilation"]
    curves = read_metrics(files.metrics)
    np.testing.assert_array_equal(curves["train/loss"][0], [3, 6, 9, 12])
    np.testing.assert_array_equal(curves["test/error_top1"][0], [4, 8, 12])
    assert curves["test/error_top1"][1][-1] == pytest.approx(record["test"]["error_top1"])
    assert files.curves.read_bytes().startswith(b"\x89PNG")
    assert list(files.tensorboard.glob("events.out.tfevents.*"))
    with Checkpoints(files.checkpoints, read_only=True) as checkpoints:
        assert checkpoints.steps() == [4, 8, 12]


@pytest.mark.parametrize("stop", [3, 6, 12])
def test_a_stopped_run_goes_on_and_ends_bit_for_bit_like_one_that_was_not(stop, finished, small, tmp_path):
    workdir = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        train(small(), workdir, writers=[StopAt(stop)])
    train(small(), workdir)
    assert_same_run(workdir, finished[0])


@pytest.mark.slow
def test_the_110_layer_rule_survives_a_stop(small, tmp_path):
    config = small(
        schedule__warmup="until_error",
        schedule__warmup_error="0.99",
        schedule__warmup_window="4",
        schedule__name="constant",
        train__duration="11",
        train__log_every="1",
    )
    train(config, tmp_path / "whole")
    rates = read_metrics(tmp_path / "whole" / "metrics.jsonl")["train/learning_rate"][1]
    np.testing.assert_allclose(rates, [0.01] * 4 + [0.1] * 7, rtol=1e-6)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "stopped", writers=[StopAt(10)])
    train(config, tmp_path / "stopped")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def command(workdir, digits):
    overrides = [f"--config.{key}={value}" for key, value in {**SMALL, "data.data_dir": digits}.items()]
    return [
        sys.executable,
        "-m",
        "resnet_jax",
        "train",
        "--config=digits",
        f"--workdir={workdir}",
        *overrides,
    ]


@pytest.mark.slow
def test_a_killed_process_goes_on_and_ends_bit_for_bit_like_one_that_was_not(finished, digits, tmp_path):
    """kill -9 as soon as a checkpoint is there, then the same command again."""
    workdir = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command(workdir, digits), env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not (workdir / "checkpoints" / "4").is_dir():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed_before_the_end = not (workdir / "record.json").exists()
    done = subprocess.run(command(workdir, digits), env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert killed_before_the_end
    assert_same_run(workdir, finished[0])


def test_a_finished_run_is_not_trained_again(finished, small):
    workdir, record = finished
    before = lines(workdir)
    again = train(small(), workdir)
    assert lines(workdir) == before
    assert again == record


def test_another_seed_is_another_run(finished, small, tmp_path):
    train(small(seed="1"), tmp_path)
    mine, theirs = final_state(tmp_path), final_state(finished[0])
    assert all(not np.array_equal(mine[name], theirs[name]) for name in mine if "kernel" in name)


def test_another_config_is_refused_by_the_keys_that_differ(finished, small):
    other = small(schedule__learning_rate="0.2", train__batch_size="32")
    with pytest.raises(ValueError, match=r"schedule.learning_rate: 0.1 there, 0.2 now.*train.batch_size: 64 there, 32"):
        train(other, finished[0])


def test_another_data_folder_is_not_another_config_but_other_images_are(small, digits, tmp_path):
    moved = tmp_path / "moved"
    moved.symlink_to(digits)
    with pytest.raises(KeyboardInterrupt):
        train(small(), tmp_path / "run", writers=[StopAt(6)])
    description = InputDescription.load(tmp_path / "run" / "input.npz")
    dataclasses.replace(description, mean=description.mean + 1).save(tmp_path / "run" / "input.npz")
    with pytest.raises(ValueError, match="was trained on other images"):
        train(small(data__data_dir=str(moved)), tmp_path / "run")
    description.save(tmp_path / "run" / "input.npz")
    assert train(small(data__data_dir=str(moved)), tmp_path / "run")["resumed_from_step"] == 4


def test_many_steps_in_one_call_train_alike(finished, small, tmp_path):
    """Up to rounding: 12 steps at rate 0.1 amplify the last bits, so only the losses are compared."""
    train(small(train__steps_per_dispatch="2"), tmp_path)
    mine, theirs = (read_metrics(Workdir(workdir).metrics)["train/loss"] for workdir in (tmp_path, finished[0]))
    np.testing.assert_array_equal(mine[0], theirs[0])
    np.testing.assert_allclose(mine[1], theirs[1], rtol=2e-2)


def test_a_loss_that_is_not_finite_stops_with_its_step_and_leaves_a_finite_state(small, tmp_path):
    config = small(schedule__learning_rate="1e30", schedule__name="constant")
    with pytest.raises(FloatingPointError, match=r"step \d+: the loss or a gradient is not finite \(loss .*\)"):
        train(config, tmp_path)
    with Checkpoints(Workdir(tmp_path).checkpoints, read_only=True) as checkpoints:
        assert checkpoints.steps() == []


def test_skipping_goes_on_to_the_end_and_counts_what_it_left_out(small, tmp_path):
    config = small(schedule__learning_rate="1e30", schedule__name="constant", train__non_finite="skip")
    train(config, tmp_path)
    skipped = read_metrics(tmp_path / "metrics.jsonl")["train/skipped"][1]
    assert skipped.sum() > 0
    assert all(np.isfinite(leaf).all() for leaf in final_state(tmp_path).values())


def test_evaluation_of_a_workdir_equals_its_record_on_any_batch_size(finished, small, tmp_path):
    workdir, record = finished
    result = evaluate_workdir(workdir)
    assert {key: result[key] for key in record["test"]} == pytest.approx(record["test"])
    assert result["step"] == 12
    train_split = evaluate_workdir(workdir, split="train[:100]", checkpoint=8)
    assert (train_split["count"], train_split["step"]) == (100, 8)


def test_recomputed_statistics_change_the_evaluation(finished):
    workdir, record = finished
    result = evaluate_workdir(workdir, recompute_statistics=20)
    # After 12 steps the running averages still lag far behind; the plain average is the better one.
    assert result["count"] == 359
    assert result["loss"] < evaluate_workdir(workdir)["loss"]


def test_prediction_is_the_argmax_with_probabilities_that_fall(finished, digits, tmp_path):
    from PIL import Image

    from resnet_jax.data.arrays import load_arrays
    from resnet_jax.data.datasets import dataset_info

    arrays = load_arrays(dataset_info("digits", data_dir=digits), "test")
    paths = []
    for index in range(3):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(arrays.images[index, :, :, 0]).save(paths[-1])
    text = tmp_path / "text.png"
    text.write_text("no image")
    *found, bad = predict([*paths, text], workdir=finished[0], top=3)
    assert len(found) == 3
    for prediction in found:
        probabilities = [probability for _, probability in prediction.classes]
        assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) <= 1 + 1e-6
        assert all(name in map(str, range(10)) for name, _ in prediction.classes)
    assert bad.path == str(text) and "not an image" in bad.error


def test_what_is_missing_is_named(finished, small, tmp_path):
    with pytest.raises(FileNotFoundError, match="not the workdir of a run"):
        evaluate_workdir(tmp_path)
    with pytest.raises(ValueError, match="protocol='ten' is not one of center"):
        evaluate_workdir(finished[0], protocol="ten")
    with pytest.raises(FileNotFoundError, match="nothing_here"):
        train(small(data__name="nothing_here"), tmp_path / "run")
    check(small())
