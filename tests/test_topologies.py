"""One run on one to four hosts and one to eight devices: the same images in the same order, and the same losses."""

import hashlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from colored_images import build_colored_images
from hosts_helper import JOIN, run_processes

from resnet_jax import build
from resnet_jax.config_files import load_config
from resnet_jax.data.augment import TrainView
from resnet_jax.data.datasets import dataset_info
from resnet_jax.data.examples import Examples
from resnet_jax.data.feeds import ResidentFeed, StreamedFeed
from resnet_jax.data.prepare import prepare
from resnet_jax.data.statistics import measure
from resnet_jax.data.streaming import TrainBatches
from resnet_jax.distributed import data_mesh
from resnet_jax.records import read_metrics, read_record
from resnet_jax.training.loop import train

STEPS, RESUMED_AT, BATCH = 100, 40, 16
# Of a step's loss, relative. Sums in another order differ by 1e-7, and losses by no more in the first ten steps.
# Training enlarges that: to 7e-4 by step 100, on other devices of one process as much as on other processes. At ten
# times this learning rate it is 4e-2.
TOLERANCE, AT_FIRST = 5e-3, 1e-5
VIEW = TrainView(image_size=16, crop="inception")
# Each training image has a label of its own, which says in a batch which one it is.
IMAGES, TESTED = 44, 21
COMMON = {
    "model.name": "cifar_resnet8",
    "model.width": 4,
    "train.batch_size": BATCH,
    "train.duration": STEPS,
    "train.unit": "steps",
    "train.log_every": 1,
    "schedule.name": "constant",
    "schedule.learning_rate": 0.001,
    "evaluate.every": 40,
    "checkpoint.every": 40,
    "checkpoint.keep_latest": 5,
}
RESIDENT = {**COMMON, "model.bn_group_size": 4}
STREAMED = {
    **COMMON,
    # Statistics over the whole batch, so that all devices of all processes take part in each.
    "model.bn_group_size": None,
    "data.name": "colors",
    "data.test_split": "test",
    "data.image_size": 16,
    "data.short_sides": (16, 24),
    "data.workers": 0,
    "evaluate.short_side": 18,
    "evaluate.batch_size": 8,
    "evaluate.train_split": "train[:20]",
}


def run(pipeline, workdir, data_dir, batches):
    """Trains, and keeps of each step's batch what this process has of it: row, example and digest of the image."""
    if pipeline == "streamed":
        config = load_config("imagenet:paper,resnet18", {**STREAMED, "data.data_dir": str(data_dir)})
    else:
        config = load_config("digits", {**RESIDENT, "data.data_dir": str(data_dir)})
    seen = {}

    def seeing(arguments):
        def wrapped(self, step):
            found = arguments(self, step)
            # Images of the resident feed, labels of the other; the seed and the orders are each process's own.
            sharding = jax.tree.leaves(found)[1].sharding
            seen[step] = {"devices": len(sharding.device_set), "rows": rows_of(found, step)}
            return found

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for feed in (StreamedFeed, ResidentFeed):
            patch.setattr(feed, "arguments", seeing(feed.arguments))
        train(config, workdir)
    Path(batches).write_text(json.dumps(seen))


def rows_of(arguments, step):
    """Row to example and digest; the resident feed gives all rows to all processes, as an order of examples."""
    if isinstance(arguments[-1], int):
        _, _, orders, start = arguments
        first = step * BATCH - start
        return {row: [int(example), ""] for row, example in enumerate(np.asarray(orders)[first : first + BATCH])}
    images, labels, weights = arguments
    found = {}
    for image, label, weight in zip(*(leaf.addressable_shards for leaf in (images, labels, weights)), strict=True):
        assert np.asarray(weight.data).all()
        for offset, (pixels, example) in enumerate(zip(np.asarray(image.data), np.asarray(label.data), strict=True)):
            found[(label.index[0].start or 0) + offset] = [int(example), hashlib.sha256(pixels.tobytes()).hexdigest()]
    return found


class Outcome:
    """What a run left, put together from its processes."""

    def __init__(self, workdir, files):
        self.workdir, self.record = workdir, read_record(workdir / "record.json")
        self.steps, self.losses = read_metrics(workdir / "metrics.jsonl")["train/loss"]
        self.batches, self.devices = {}, set()
        for file in files:
            for step, batch in json.loads(file.read_text()).items():
                whole = self.batches.setdefault(int(step), {})
                self.devices.add(batch["devices"])
                for row, example in batch["rows"].items():
                    assert whole.setdefault(int(row), example) == example

    def examples(self, first=0):
        """Example and digest at each position of the stream, from a step on."""
        assert sorted(self.batches) == list(range(first, STEPS))
        assert all(sorted(rows) == list(range(BATCH)) for rows in self.batches.values())
        return [tuple(self.batches[step][row]) for step in range(first, STEPS) for row in range(BATCH)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_colored_images(folder, classes=IMAGES, train=IMAGES, test=TESTED)
    measure("colors", data_dir=folder, split="test[4:]", image_size=16, short_side=18, workers=0)
    prepare("digits", data_dir=folder)
    return folder


@pytest.fixture(scope="module")
def on_devices(data_dir, tmp_path_factory):
    """Makes a run of this process alone on some of its devices, from nothing or from a workdir."""

    def make(devices, *, pipeline="streamed", workdir=None):
        folder = tmp_path_factory.mktemp(f"on_{devices}")
        if workdir is not None:
            shutil.copytree(workdir, folder / "run")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "data_mesh", lambda *_, **options: data_mesh(jax.devices()[:devices], **options))
            patch.setattr(jax, "device_count", lambda: devices)
            run(pipeline, folder / "run", data_dir, folder / "batches.json")
        return Outcome(folder / "run", [folder / "batches.json"])

    return make


RUN = f"""{JOIN}
import sys, jax
sys.path.insert(0, "tests")
from test_topologies import run
jax.config.update("jax_compilation_cache_dir", f"PROGRAMS/{{jax.process_index()}}")
for pipeline, folder in RUNS:
    run(pipeline, folder + "/run", DATA, f"{{folder}}/batches_{{jax.process_index()}}.json")
"""


@pytest.fixture(scope="module")
def on_hosts(data_dir, tmp_path_factory):
    """Makes runs, one after another, of several processes; each a pipeline and None or a workdir to go on from."""

    def make(processes, devices, runs):
        folders = []
        for _, workdir in runs:
            folders.append(tmp_path_factory.mktemp(f"on_{processes}x{devices}"))
            if workdir is not None:
                shutil.copytree(workdir, folders[-1] / "run")
        pairs = [(pipeline, str(folder)) for (pipeline, _), folder in zip(runs, folders, strict=True)]
        code = RUN.replace("RUNS", repr(pairs)).replace("DATA", repr(str(data_dir)))
        # Of each process its own; a run that goes on has the program of the one before.
        code = code.replace("PROGRAMS", str(folders[0]))
        ended = run_processes(code, processes, folders[0], devices=devices, seconds=300)
        assert [process.code for process in ended] == [0] * processes, [process.output[-3000:] for process in ended]
        return [
            Outcome(folder / "run", [folder / f"batches_{index}.json" for index in range(processes)])
            for folder in folders
        ]

    return make


@pytest.fixture(scope="module")
def one(on_devices):
    """A run of one process on four devices."""
    return on_devices(4)


@pytest.fixture(scope="module")
def half_way(one, tmp_path_factory):
    """Its workdir as it was after the checkpoint of one step, and before the next."""
    workdir = shutil.copytree(one.workdir, tmp_path_factory.mktemp("half_way") / "run")
    (workdir / "record.json").unlink()
    for folder in (workdir / "checkpoints").iterdir():
        if folder.name.isdigit() and int(folder.name) > RESUMED_AT:
            shutil.rmtree(folder)
    assert (workdir / "checkpoints" / str(RESUMED_AT)).is_dir()
    return workdir


@pytest.fixture(scope="module")
def two_by_two(on_hosts, half_way):
    """Of two processes with two devices each: streamed, gone on, resident."""
    return on_hosts(2, 2, [("streamed", None), ("streamed", half_way), ("resident", None)])


@pytest.fixture(scope="module")
def four_by_one(on_hosts):
    """Of four processes with one device each."""
    return on_hosts(4, 1, [("streamed", None)])[0]


def assert_same_losses(found, expected):
    np.testing.assert_array_equal(found.steps, range(1, STEPS + 1))
    np.testing.assert_allclose(found.losses[:10], expected.losses[:10], rtol=AT_FIRST)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=TOLERANCE)
    assert found.record["train"]["count"] == expected.record["train"]["count"]
    assert found.record["test"]["count"] == expected.record["test"]["count"]
    # An image of which two scores are nearly the same may fall on either side.
    for key in ("error_top1", "error_top5"):
        differing = found.record["test"]["count"] * abs(found.record["test"][key] - expected.record["test"][key])
        assert differing < 1.5


def assert_goes_on(resumed, one, *, processes, devices):
    assert (resumed.record["devices"]["processes"], resumed.devices) == (processes, {devices})
    assert resumed.record["resumed_from_step"] == RESUMED_AT
    assert resumed.examples(RESUMED_AT) == one.examples()[RESUMED_AT * BATCH :]
    assert_same_losses(resumed, one)


def test_a_run_sees_every_image_once_an_epoch_in_the_order_of_its_seed(one, data_dir):
    source = TrainBatches(Examples(dataset_info("colors", data_dir=data_dir), "train"), VIEW, seed=0, batch_size=BATCH)
    order = [example for example, _ in one.examples()]
    assert order == [source.example_at(position) for position in range(STEPS * BATCH)]
    epochs = [order[start : start + IMAGES] for start in range(0, len(order) - IMAGES, IMAGES)]
    assert len(epochs) == 36 and all(sorted(epoch) == list(range(IMAGES)) for epoch in epochs)
    # Otherwise the steps would not tell one net from another.
    assert one.losses[-5:].mean() < one.losses[:5].mean() - 0.3
    assert one.record["test"]["count"] == TESTED and one.record["train"]["count"] == 20


@pytest.mark.parametrize("devices", [1, *(pytest.param(count, marks=pytest.mark.slow) for count in (2, 8))])
def test_a_checkpoint_of_four_devices_goes_on_with_the_next_image_on_others(devices, one, half_way, on_devices):
    resumed = on_devices(devices, workdir=half_way)
    assert_goes_on(resumed, one, processes=1, devices=devices)


@pytest.mark.slow
def test_two_hosts_and_four_see_the_images_of_one_and_have_its_losses(one, two_by_two, four_by_one):
    for processes, found in ((2, two_by_two[0]), (4, four_by_one)):
        assert found.record["devices"]["processes"] == processes and found.devices == one.devices == {4}
        assert found.examples() == one.examples()
        assert_same_losses(found, one)


@pytest.mark.slow
def test_a_checkpoint_of_one_host_goes_on_with_the_next_image_on_two(one, two_by_two):
    assert_goes_on(two_by_two[1], one, processes=2, devices=4)


@pytest.mark.slow
def test_data_in_device_memory_come_in_one_order_on_two_hosts(on_devices, two_by_two):
    one = on_devices(4, pipeline="resident")
    assert two_by_two[2].examples() == one.examples()
    assert one.record["test"]["count"] == 359
    assert_same_losses(two_by_two[2], one)
