"""What befalls a run of one process: signals, disks that fail, damage, stuck code; nothing lost or silently wrong."""

import itertools
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from test_loop import SMALL, StopAt, assert_same_run, digits, finished, small  # noqa: F401  (fixtures)

from resnet_jax import build, exit_codes
from resnet_jax.checkpoints import CheckpointError, Checkpoints
from resnet_jax.data.arrays import ImageArrays
from resnet_jax.records import read_metrics
from resnet_jax.training import loop
from resnet_jax.training.loop import train
from resnet_jax.training.preemption import Preempted
from resnet_jax.training.saving import ReplicasDiffer, Saver
from resnet_jax.training.workdir_lock import lock_workdir
from resnet_jax.workdir import Workdir


def steps_saved(workdir):
    with Checkpoints(Workdir(workdir).checkpoints, read_only=True) as checkpoints:
        return checkpoints.steps()


class SignalAt:
    """A writer that sends the process SIGTERM at the first metrics from a step on."""

    def __init__(self, step):
        self.step = step

    def write_scalars(self, step, scalars):
        if step >= self.step:
            self.step = float("inf")
            os.kill(os.getpid(), signal.SIGTERM)

    def flush(self):
        pass

    def close(self):
        pass


@pytest.fixture
def preempt_at(monkeypatch):
    """Makes a run be asked to stop after a step; every step is a call of its own here."""

    def at(step):
        calls = itertools.count(1)
        monkeypatch.setattr(loop.Preemption, "requested", lambda self: next(calls) == step)

    return at


def test_sigterm_saves_and_the_run_goes_on_bit_for_bit(finished, small, tmp_path):  # noqa: F811
    with pytest.raises(Preempted, match="stopped by SIGTERM and saved at step") as preempted:
        train(small(), tmp_path, writers=[SignalAt(3)])
    assert steps_saved(tmp_path)[-1] == preempted.value.step < 12
    assert not Workdir(tmp_path).record.exists()
    train(small(), tmp_path)
    assert_same_run(tmp_path, finished[0])


def test_a_signal_at_the_end_lets_the_run_finish(finished, small, tmp_path):  # noqa: F811
    assert train(small(), tmp_path, writers=[SignalAt(12)])["steps"] == 12
    assert_same_run(tmp_path, finished[0])


@pytest.fixture(scope="module")
def whole_plateau(small, tmp_path_factory):  # noqa: F811
    """A run whose learning rate depends on every evaluation before."""
    config = small(schedule__name="plateau", schedule__patience="1", schedule__min_improvement="0.9")
    workdir = tmp_path_factory.mktemp("plateau")
    train(config, workdir)
    assert len(set(read_metrics(workdir / "metrics.jsonl")["train/learning_rate"][1])) > 1
    return config, workdir


# Of metrics; of evaluation and checkpoint; of nothing.
@pytest.mark.parametrize("step", [6, 8, 7])
def test_what_is_due_at_the_last_step_is_done_before_the_stop(step, whole_plateau, preempt_at, tmp_path, monkeypatch):
    config, workdir = whole_plateau
    preempt_at(step)
    with pytest.raises(Preempted):
        train(config, tmp_path)
    assert steps_saved(tmp_path)[-1] == step
    monkeypatch.undo()
    train(config, tmp_path)
    assert_same_run(tmp_path, workdir)


@pytest.fixture
def failing_saves(monkeypatch):
    """Makes the saves of some steps fail, as on a full disk."""
    save = Checkpoints.save

    def fail_at(*steps):
        def failing(self, step, *arguments):
            if step in steps:
                raise CheckpointError(step, OSError("no space left"))
            save(self, step, *arguments)

        monkeypatch.setattr(Checkpoints, "save", failing)

    return fail_at


def test_training_goes_on_without_a_checkpoint_that_fails(finished, small, tmp_path, failing_saves, caplog):  # noqa: F811
    failing_saves(4)
    train(small(), tmp_path)
    assert steps_saved(tmp_path) == [8, 12]
    assert "the checkpoint of step 4 could not be saved: no space left" in caplog.text
    assert_same_run(tmp_path, finished[0])


def test_a_run_whose_last_checkpoint_fails_is_not_done(finished, small, tmp_path, failing_saves, monkeypatch):  # noqa: F811
    failing_saves(12)
    with pytest.raises(CheckpointError, match="step 12 could not be saved"):
        train(small(), tmp_path)
    assert not Workdir(tmp_path).record.exists()
    monkeypatch.undo()
    assert train(small(), tmp_path)["resumed_from_step"] == 8
    assert_same_run(tmp_path, finished[0])


def test_a_stop_that_cannot_be_saved_says_so(small, tmp_path, failing_saves, preempt_at):  # noqa: F811
    preempt_at(5)
    failing_saves(5)
    with pytest.raises(CheckpointError, match="step 5 could not be saved"):
        train(small(), tmp_path)
    assert steps_saved(tmp_path) == [4]


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_goes_on(finished, small, tmp_path, caplog):  # noqa: F811
    with pytest.raises(KeyboardInterrupt):
        train(small(), tmp_path, writers=[StopAt(9)])
    folder = Workdir(tmp_path).checkpoints / "8"
    data = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    assert train(small(), tmp_path)["resumed_from_step"] == 4
    assert "8.damaged" in caplog.text and (Workdir(tmp_path).checkpoints / "8.damaged").is_dir()
    assert_same_run(tmp_path, finished[0])


def test_with_every_checkpoint_damaged_no_run_starts_from_nothing(small, tmp_path):  # noqa: F811
    with pytest.raises(KeyboardInterrupt):
        train(small(), tmp_path, writers=[StopAt(6)])
    for path in Workdir(tmp_path).checkpoints.glob("*/manifest_0.json"):
        path.unlink()
    for _ in range(2):
        with pytest.raises(ValueError, match="damaged"):
            train(small(), tmp_path)


def test_a_second_run_in_a_workdir_is_refused_while_the_first_lives(small, tmp_path):  # noqa: F811
    with (
        lock_workdir(tmp_path),
        pytest.raises(ValueError, match=f"another run is at work in .*: process {os.getpid()} "),
    ):
        train(small(), tmp_path)


def test_data_in_other_files_is_refused(small, tmp_path):  # noqa: F811
    with pytest.raises(KeyboardInterrupt):
        train(small(), tmp_path, writers=[StopAt(6)])
    Workdir(tmp_path).data.write_text('{"files": "0"}')
    with pytest.raises(ValueError, match="trained on a data set in other files"):
        train(small(), tmp_path)


@pytest.mark.parametrize("changed", ["order", "label", "pixel"])
def test_other_content_in_files_of_the_same_size_is_refused(small, tmp_path, monkeypatch, changed):  # noqa: F811
    with pytest.raises(KeyboardInterrupt):
        train(small(), tmp_path, writers=[StopAt(6)])
    load = build.load_arrays

    def other(info, split):
        images, labels = (array.copy() for array in load(info, split))
        first, second = 0, int(np.flatnonzero(labels != labels[0])[0])
        swapped = [second, first]
        if changed != "label":
            # The mean image stays what it was.
            images[[first, second]] = images[swapped]
        if changed != "pixel":
            labels[[first, second]] = labels[swapped]
        return ImageArrays(images, labels)

    monkeypatch.setattr(build, "load_arrays", other)
    with pytest.raises(ValueError, match="trained on a data set in other files .* pixels, labels or order differ"):
        train(small(), tmp_path)


def test_a_device_that_went_astray_stops_the_run_before_it_is_saved(small, tmp_path, monkeypatch):  # noqa: F811
    save = Saver.save

    def astray(leaf):
        """The same array but for one bit on one device."""
        shards = [np.array(shard.data) for shard in leaf.addressable_shards]
        shards[5].reshape(-1).view(np.uint32)[0] ^= 1
        copies = [jax.device_put(s, shard.device) for s, shard in zip(shards, leaf.addressable_shards, strict=True)]
        return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, copies)

    def with_fault(self, step, state, errors):
        if step == 8:
            leaves, tree = jax.tree.flatten(state)
            state = jax.tree.unflatten(tree, [*leaves[:3], astray(leaves[3]), *leaves[4:]])
        save(self, step, state, errors)

    monkeypatch.setattr(Saver, "save", with_fault)
    with pytest.raises(ReplicasDiffer, match=r"step 8: the state on device 5 \(process 0\) is not that of the other"):
        train(small(), tmp_path)
    assert steps_saved(tmp_path) == [4]


STUCK = """
import sys, time
from resnet_jax import cli
from resnet_jax.training.metrics_log import MetricsLog
MetricsLog._write = lambda *arguments: time.sleep(60)
sys.argv = {words!r}
cli.program()
"""


def test_a_run_that_is_stuck_ends_itself_with_tracebacks(digits, tmp_path):  # noqa: F811
    overrides = {**SMALL, "data.data_dir": digits, "limits.step_seconds": 2}
    words = [f"--config.{key}={value}" for key, value in overrides.items()]
    code = STUCK.format(words=["resnet-jax", "train", "--config=digits", f"--workdir={tmp_path}", *words])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == exit_codes.STUCK, done.stderr
    assert "the watchdog ends process 0: no progress in phase 'step' for 2 seconds" in done.stderr
    assert "raise its limit" in done.stderr and "time.sleep" not in done.stdout
    assert "metrics_log.py" in done.stderr or "<string>" in done.stderr
