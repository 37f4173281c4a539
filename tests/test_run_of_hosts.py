"""Whole runs of two real processes: one result, one end, and checkpoints that any number of hosts can go on from."""

import re
import shutil
import signal
import time

import numpy as np
import pytest
from colored_images import build_colored_images
from hosts_helper import clean_environment, free_port, start
from test_loop import assert_same_run
from test_streamed_training import SMALL

from resnet_jax import exit_codes
from resnet_jax.checkpoints import Checkpoints
from resnet_jax.config_files import load_config
from resnet_jax.data.statistics import measure
from resnet_jax.records import read_metrics, read_record
from resnet_jax.training.loop import train
from resnet_jax.workdir import Workdir

STEPS = 40
OVERRIDES = {**SMALL, "train.duration": STEPS, "data.short_sides": "(32,48)"}
DIVIDED = {"train.sharding": "parameters", "train.slices": 1}
SECONDS = 240


class Hosts:
    """Two processes that run `resnet-jax train` as two hosts would."""

    def __init__(self, workdir, data_dir, logs, *, changes=({}, {})):
        logs.mkdir(parents=True, exist_ok=True)
        self.logs = [logs / f"process_{index}.log" for index in range(2)]
        variables = clean_environment() | {
            "RESNET_JAX_COORDINATOR": f"127.0.0.1:{free_port()}",
            "RESNET_JAX_PROCESS_COUNT": "2",
        }
        self.processes = []
        for index, (log, more) in enumerate(zip(self.logs, changes, strict=True)):
            overrides = {**OVERRIDES, "data.data_dir": data_dir, **more}
            words = [f"--config.{key}={value}" for key, value in overrides.items()]
            words = ["resnet-jax", "train", "--config=imagenet:paper,resnet18", f"--workdir={workdir}", *words]
            code = f"import sys\nfrom resnet_jax.cli import program\nsys.argv = {words!r}\nprogram()"
            self.processes.append(start(code, log, variables | {"RESNET_JAX_PROCESS_INDEX": str(index)}))

    def wait(self):
        """The exit codes."""
        try:
            deadline = time.monotonic() + SECONDS
            return [process.wait(max(0.1, deadline - time.monotonic())) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def wait_for(self, path):
        """Until something is there."""
        deadline = time.monotonic() + SECONDS
        while not path.exists():
            assert all(process.poll() is None for process in self.processes), self.outputs()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def outputs(self):
        """What each wrote."""
        return [log.read_text() for log in self.logs]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_colored_images(folder, classes=4, train=44, test=21)
    measure("colors", data_dir=folder, split="test[4:]", image_size=32, short_side=36, workers=0)
    return folder


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """The workdir of a run of two hosts that nothing befell, and what they wrote."""
    folder = tmp_path_factory.mktemp("finished")
    hosts = Hosts(folder / "run", data_dir, folder)
    assert hosts.wait() == [0, 0], hosts.outputs()
    return folder / "run", hosts.outputs()


@pytest.fixture(scope="module")
def preempted(data_dir, tmp_path_factory):
    """The workdir of a run of which one process was sent SIGTERM."""
    folder = tmp_path_factory.mktemp("preempted")
    hosts = Hosts(folder / "run", data_dir, folder)
    hosts.wait_for(folder / "run" / "checkpoints" / "4")
    hosts.processes[1].send_signal(signal.SIGTERM)
    assert hosts.wait() == [exit_codes.PREEMPTED] * 2, hosts.outputs()
    steps = {re.search(r"stopped by SIGTERM and saved at step (\d+)", output)[1] for output in hosts.outputs()}
    assert len(steps) == 1
    return folder / "run", int(steps.pop())


@pytest.mark.slow
def test_one_process_writes_and_the_record_counts_both(finished):
    workdir, outputs = finished
    record = read_record(workdir / "record.json")
    assert record["devices"]["processes"] == 2 and record["devices"]["count"] == 2
    assert record["test"]["count"] == 21 and record["train"]["count"] == 20
    steps = read_metrics(workdir / "metrics.jsonl")["test/error_top1"][0]
    np.testing.assert_array_equal(steps, range(4, STEPS + 1, 4))
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    assert f"step {STEPS}/{STEPS}" in outputs[0] and "step " not in outputs[1]


@pytest.mark.slow
def test_two_hosts_see_the_same_images_and_the_loss_is_that_of_one(finished, data_dir, tmp_path):
    overrides = {**OVERRIDES, "data.short_sides": (32, 48), "data.data_dir": str(data_dir)}
    train(load_config("imagenet:paper,resnet18", overrides), tmp_path)
    one, two = (read_metrics(workdir / "metrics.jsonl")["train/loss"] for workdir in (tmp_path, finished[0]))
    np.testing.assert_array_equal(one[0], two[0])
    # Sums are added in another order; what that changes grows with the steps.
    np.testing.assert_allclose(one[1][:2], two[1][:2], rtol=1e-4)
    np.testing.assert_allclose(one[1], two[1], rtol=5e-2)


@pytest.mark.slow
def test_a_signal_to_one_stops_both_at_one_step_and_the_run_goes_on_bit_for_bit(
    preempted, finished, data_dir, tmp_path
):
    workdir, step = preempted
    copy = shutil.copytree(workdir, tmp_path / "run")
    with Checkpoints(Workdir(copy).checkpoints, read_only=True) as checkpoints:
        assert checkpoints.steps()[-1] == step < STEPS
    hosts = Hosts(copy, data_dir, tmp_path)
    assert hosts.wait() == [0, 0], hosts.outputs()
    assert read_record(copy / "record.json")["resumed_from_step"] == step
    assert_same_run(copy, finished[0])


@pytest.mark.slow
def test_another_number_of_hosts_goes_on_with_the_next_image(preempted, finished, data_dir, tmp_path):
    workdir, step = preempted
    copy = shutil.copytree(workdir, tmp_path / "run")
    overrides = {**OVERRIDES, "data.short_sides": (32, 48), "data.data_dir": str(data_dir)}
    record = train(load_config("imagenet:paper,resnet18", overrides), copy)
    assert record["resumed_from_step"] == step and record["devices"]["processes"] == 1
    one, two = (read_metrics(folder / "metrics.jsonl")["train/loss"] for folder in (copy, finished[0]))
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_allclose(one[1], two[1], rtol=5e-2)


@pytest.mark.slow
def test_hosts_that_disagree_do_not_start(data_dir, tmp_path):
    # Divided parameters would be put together of both processes' own.
    changes = ({"seed": 1, **DIVIDED}, {"seed": 2, "data.data_dir": tmp_path / "data", **DIVIDED})
    shutil.copytree(data_dir, tmp_path / "data")
    hosts = Hosts(tmp_path / "run", data_dir, tmp_path, changes=changes)
    assert hosts.wait() == [exit_codes.BAD_INPUT] * 2, hosts.outputs()
    for output in hosts.outputs():
        # The parameters follow from the seed, and where the data lies may differ.
        assert "disagree on initial parameters: " in output
        assert "seed: 1 on process 0; 2 on process 1" in output and "data_dir" not in output
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_what_stops_one_host_stops_the_other_with_its_reason(data_dir, tmp_path):
    changes = (DIVIDED, {"data.data_dir": tmp_path / "empty", **DIVIDED})
    hosts = Hosts(tmp_path / "run", data_dir, tmp_path, changes=changes)
    assert hosts.wait() == [exit_codes.BAD_INPUT] * 2, hosts.outputs()
    for output in hosts.outputs():
        assert "start: ready on process 0; no data set 'colors'" in output and "Traceback" not in output


@pytest.mark.slow
def test_the_others_end_soon_after_a_killed_one_and_say_so(data_dir, tmp_path):
    hosts = Hosts(tmp_path / "run", data_dir, tmp_path)
    hosts.wait_for(tmp_path / "run" / "checkpoints" / "4")
    hosts.processes[1].kill()
    killed = time.monotonic()
    codes = hosts.wait()
    assert codes[0] == exit_codes.PEER_LOST, hosts.outputs()
    assert time.monotonic() - killed < 15
    assert "another process of the run is gone" in hosts.outputs()[0]
