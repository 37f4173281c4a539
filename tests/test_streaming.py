"""Streamed batches are a function of (seed, position) alone; what cannot be decoded is named, never replaced."""

import collections
import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from colored_images import build_colored_images, encoded_image, mean_color

from resnet_jax.data.augment import TrainView
from resnet_jax.data.datasets import dataset_info
from resnet_jax.data.decode import UndecodableImage
from resnet_jax.data.examples import Examples
from resnet_jax.data.stream import Stream
from resnet_jax.data.streaming import TrainBatches, ViewedExamples
from resnet_jax.data.views import CenterView

COUNT = 11


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Examples:
    folder = tmp_path_factory.mktemp("colors")
    build_colored_images(folder)
    return Examples(dataset_info("colors", data_dir=folder), "train")


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Examples:
    folder = tmp_path_factory.mktemp("broken")
    build_colored_images(folder, "broken", broken=(3,))
    return Examples(dataset_info("broken", data_dir=folder), "train")


VIEW = TrainView(image_size=16, crop="inception", policy="trivialaugment")


def batches(examples, **changes) -> TrainBatches:
    return TrainBatches(examples, VIEW, **({"seed": 3, "batch_size": 4} | changes))


def digest(batch) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in batch)).hexdigest()


def digests(source, first, stop, *, workers) -> list[str]:
    with source.stream(first_step=first, stop_step=stop, workers=workers) as stream:
        return [digest(batch) for batch in stream]


def test_an_example_is_read_by_its_index(colors):
    assert len(colors) == COUNT
    assert [colors[index].label for index in range(COUNT)] == list(range(COUNT))
    assert colors[4].image == encoded_image(4)
    assert colors.where(4) == "data set 'colors', split 'train', example 4 (image4.jpg)"


def test_every_epoch_holds_every_example_once_and_each_in_another_order(colors):
    source = batches(colors)
    epochs = [[source.example_at(epoch * COUNT + k) for k in range(COUNT)] for epoch in range(6)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_batches_run_across_the_ends_of_epochs(colors):
    source = batches(colors)
    labels = np.concatenate([source[step].label for step in range(COUNT)])
    assert labels.tolist() == [source.example_at(position) for position in range(4 * COUNT)]
    assert collections.Counter(labels.tolist()) == dict.fromkeys(range(COUNT), 4)


def test_a_row_shows_the_image_of_its_label(colors):
    # Without a policy the colour is left as it is.
    source = TrainBatches(colors, TrainView(image_size=16, crop="inception"), seed=0, batch_size=6)
    batch = source[1]
    expected = [mean_color(label) for label in batch.label.tolist()]
    assert np.abs(batch.image.mean((1, 2)) - np.asarray(expected)).max() < 12


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_do_not_depend_on_workers(colors, workers):
    source = batches(colors)
    assert digests(source, 0, 13, workers=workers) == [digest(source[step]) for step in range(13)]


def test_a_stream_opened_in_the_middle_goes_on_as_if_it_had_run(colors):
    source = batches(colors)
    assert digests(source, 5, 13, workers=2) == [digest(source[step]) for step in range(5, 13)]


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_rows_of_all_hosts_are_the_batch_of_one(colors, hosts):
    whole, share = batches(colors), 4 // hosts
    parts = [batches(colors, rows=range(host * share, (host + 1) * share)) for host in range(hosts)]
    for step in range(5):
        for field in ("image", "label", "weight"):
            rows = np.concatenate([getattr(part[step], field) for part in parts])
            np.testing.assert_array_equal(rows, getattr(whole[step], field))


def test_seed_and_epoch_change_the_augmentation(colors):
    first = batches(colors)[0]
    assert digest(first) != digest(batches(colors, seed=4)[0])
    views = {}
    for position in range(3 * COUNT):
        source = batches(colors, batch_size=1)
        batch = source[position]
        views.setdefault(int(batch.label[0]), set()).add(batch.image.tobytes())
    assert all(len(seen) == 3 for seen in views.values())


def test_opening_a_stream_far_into_training_costs_no_more_than_at_its_start(colors):
    source = batches(colors)
    seconds = {}
    for first in (0, 10**9):
        begun = time.perf_counter()
        with source.stream(first_step=first, stop_step=first + 2, workers=0) as stream:
            next(stream)
        seconds[first] = time.perf_counter() - begun
    assert seconds[10**9] < seconds[0] + 1


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_decoded_stops_with_its_name(broken, workers):
    named = r"data set 'broken', split 'train', example 3 \(image3.jpg\): .*data.unreadable=skip leaves"
    with batches(broken).stream(first_step=0, stop_step=20, workers=workers) as stream:
        with pytest.raises(UndecodableImage, match=named):
            list(stream)


def test_an_image_that_cannot_be_decoded_is_left_out_and_logged_if_wanted(broken, caplog):
    source = batches(broken, unreadable="skip")
    with caplog.at_level(logging.WARNING):
        seen = [source[step] for step in range(COUNT)]
    weights = np.concatenate([batch.weight for batch in seen])
    # 11 batches of 4 are 4 epochs of 11, in each of which the image comes up once.
    examples = np.asarray([source.example_at(position) for position in range(4 * COUNT)])
    np.testing.assert_array_equal(weights == 0, examples == 3)
    assert not np.concatenate([batch.image for batch in seen])[weights == 0].any()
    assert "example 3 (image3.jpg)" in caplog.text


def test_a_test_stops_at_an_image_that_cannot_be_decoded(broken):
    parts = ViewedExamples(broken, CenterView(image_size=16, short_side=16, resize="area"), size=2)
    with parts.stream(workers=0) as stream, pytest.raises(UndecodableImage, match="example 3"):
        list(stream)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_test_sees_every_example_once_in_order(colors, workers):
    parts = ViewedExamples(colors, CenterView(image_size=16, short_side=16, resize="area"), size=4)
    with parts.stream(workers=workers) as stream:
        seen = list(stream)
    assert [len(part) for part in seen] == [4, 4, 3]
    assert [label for part in seen for _, label in part] == list(range(COUNT))


def test_an_unknown_policy_for_unreadable_images_is_refused(colors):
    with pytest.raises(ValueError, match="unreadable='replace' is not one of stop, skip"):
        batches(colors, unreadable="replace")


class Slow:
    """Items that name the process they were made in; item 1 takes long."""

    def __getitem__(self, key: int) -> int:
        time.sleep(0.05 if key != 1 else 0.3)
        return os.getpid()


def test_a_worker_that_is_killed_is_an_error_and_not_a_hang():
    with Stream(Slow(), range(1000), workers=1) as stream:
        os.kill(next(stream), signal.SIGKILL)
        with pytest.raises(RuntimeError):
            list(stream)


ORPHAN = """
import sys, time
sys.path.insert(0, sys.argv[1])
from test_streaming import Slow
from resnet_jax.data.stream import Stream
if __name__ == "__main__":
    stream = Stream(Slow(), range(1000), workers=1)
    print(next(stream), flush=True)
    time.sleep(60)
"""


def test_workers_end_when_the_process_that_reads_is_killed():
    command = [sys.executable, "-c", ORPHAN, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        worker = int(process.stdout.readline())
        os.kill(worker, 0)
        process.kill()
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the worker outlives the process that started it")


READ_AND_CLOSE = """
import sys
sys.path.insert(0, sys.argv[1])
from test_streaming import Large
from resnet_jax.data.stream import Stream
if __name__ == "__main__":
    for stop, read in ((30, 30), (30, 5), (1, 1)):
        stream = Stream(Large(), range(stop), workers=2)
        for _ in range(read):
            next(stream)
        stream.close()
        stream.close()
"""


class Large:
    """Items that cross between processes in shared memory."""

    def __getitem__(self, key: int) -> np.ndarray:
        return np.full(2**20, key % 256, np.uint8)


def test_closing_leaves_no_process_and_no_shared_memory():
    command = [sys.executable, "-c", READ_AND_CLOSE, str(Path(__file__).parent)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    # Python itself says at its end what shared memory was left.
    assert (finished.returncode, finished.stderr) == (0, "")


@pytest.mark.slow
def test_real_batches_of_50_steps_are_the_same_bytes_for_any_workers_hosts_and_restart(real_data):
    examples = Examples(dataset_info("imagenet2012", data_dir=real_data), "train")
    view = TrainView(image_size=64, crop="scale", short_sides=(64, 128))
    source = TrainBatches(examples, view, seed=0, batch_size=32)
    one = digests(source, 0, 50, workers=0)
    assert digests(source, 0, 50, workers=1) == one
    assert digests(source, 0, 50, workers=3) == one
    assert digests(source, 23, 50, workers=3) == one[23:]
    hosts = [TrainBatches(examples, view, seed=0, batch_size=32, rows=range(k * 8, k * 8 + 8)) for k in range(4)]
    streams = [host.stream(first_step=0, stop_step=50, workers=0) for host in hosts]
    for step, parts in enumerate(zip(*streams, strict=True)):
        assert digest([np.concatenate(arrays) for arrays in zip(*parts, strict=True)]) == one[step]
