"""Streamed batches are a function of (seed, position) alone; what cannot be decoded is named, never replaced."""

import collections
import functools
import gc
import hashlib
import io
import logging
import multiprocessing
import multiprocessing.synchronize
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from colored_images import build_colored_images, encoded_image, mean_color
from PIL import Image
from written_records import write_records

from resnet_jax.data.augment import TrainView, example_rng
from resnet_jax.data.datasets import dataset_info
from resnet_jax.data.decode import UndecodableImage
from resnet_jax.data.examples import Examples
from resnet_jax.data.statistics import measure
from resnet_jax.data.stream import Stream, WorkerLost
from resnet_jax.data.streaming import TrainBatches, ViewedExamples
from resnet_jax.data.views import CenterView

COUNT = 11


@pytest.fixture(autouse=True)
def collected():
    """What a caught error still holds of a stream, semaphores among it, must not go in the midst of another test."""
    yield
    gc.collect()


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


def unusual_images() -> dict[str, bytes]:
    """What hand-made records hold besides sound JPEGs of three colours."""
    jpeg, side = encoded_image(0), (30, 20)
    turned = Image.Exif()
    turned[274] = 6
    return {
        "sound": jpeg,
        "truncated": jpeg[: len(jpeg) // 2],
        "empty": b"",
        "PNG": saved(Image.new("RGB", side, "red"), "PNG"),
        "CMYK": saved(Image.new("RGB", side, "red").convert("CMYK"), "JPEG"),
        "grey": saved(Image.new("L", side, 77), "JPEG"),
        "1x1": saved(Image.new("RGB", (1, 1), "red"), "JPEG"),
        # 49 kB that would take 1.2 GB.
        "20k x 20k": saved(Image.new("1", (20_000, 20_000)), "PNG"),
        "turned": saved(Image.new("RGB", side, "red"), "JPEG", exif=turned),
    }


def saved(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def unusual(tmp_path_factory) -> Examples:
    """Each of them under the name of a JPEG."""
    folder, images = tmp_path_factory.mktemp("unusual"), list(unusual_images().values())
    built = build_colored_images(folder, "unusual", train=len(images))
    write_records(built, "train", images, list(range(len(images))))
    return Examples(dataset_info("unusual", data_dir=folder), "train")


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_unusual_images_are_decoded_and_the_rest_left_out_whatever_the_workers(unusual, workers):
    kinds = list(unusual_images())
    source = TrainBatches(unusual, VIEW, seed=0, batch_size=len(kinds), unreadable="skip")
    with source.stream(first_step=0, stop_step=3, workers=workers) as stream:
        seen = list(stream)
    assert [digest(batch) for batch in seen] == [digest(source[step]) for step in range(3)]
    for step, batch in enumerate(seen):
        order = [kinds[source.example_at(step * len(kinds) + row)] for row in range(len(kinds))]
        left_out = {kind for kind, weight in zip(order, batch.weight, strict=True) if weight == 0}
        assert left_out == {"truncated", "empty", "20k x 20k"}


REASONS = {
    "truncated": "Premature end of JPEG file",
    "empty": "no JPEG, PNG, BMP, GIF file",
    "20k x 20k": r"Image size \(400000000 pixels\) exceeds limit of 178956970 pixels",
}


@pytest.mark.parametrize("kind", REASONS)
@pytest.mark.parametrize("view", [VIEW, CenterView(image_size=16, short_side=16)], ids=["train", "test"])
def test_an_image_that_cannot_be_decoded_is_named_with_the_reason(unusual, kind, view):
    index = list(unusual_images()).index(kind)
    named = rf"^data set 'unusual', split 'train', example {index} \(image{index}.jpg\): {REASONS[kind]}"
    if view is VIEW:
        view = functools.partial(VIEW, rng=example_rng(0, 0))
    with pytest.raises(UndecodableImage, match=named):
        unusual.decoded(index, view)


def test_unusual_images_are_tested_whole(unusual):
    kinds = list(unusual_images())
    view = CenterView(image_size=8, short_side=8)
    pixels = {
        kind: unusual.decoded(index, view)[0].mean((0, 1)).round().tolist()
        for index, kind in enumerate(kinds)
        if kind not in REASONS
    }
    assert list(pixels) == ["sound", "PNG", "CMYK", "grey", "1x1", "turned"]
    assert pixels["PNG"] == [255, 0, 0] and pixels["grey"] == [77, 77, 77]
    assert all(pixels[kind] == pytest.approx([254, 0, 0], abs=2) for kind in ("CMYK", "1x1", "turned"))


LEAVE_OUT = """
import sys
sys.path.insert(0, sys.argv[1])
from test_streaming import VIEW
from resnet_jax.data.datasets import dataset_info
from resnet_jax.data.examples import Examples
from resnet_jax.data.streaming import TrainBatches
if __name__ == "__main__":
    examples = Examples(dataset_info("unusual", data_dir=sys.argv[2]), "train")
    source = TrainBatches(examples, VIEW, seed=0, batch_size=len(examples), unreadable="skip")
    with source.stream(first_step=0, stop_step=1, workers=int(sys.argv[3])) as stream:
        list(stream)
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_what_is_left_out_is_named_on_stderr_by_workers_too(unusual, workers):
    folder = str(unusual.info.directory.parent.parent)
    command = [sys.executable, "-c", LEAVE_OUT, str(Path(__file__).parent), folder, workers]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0
    for kind, reason in REASONS.items():
        index = list(unusual_images()).index(kind)
        line = rf"left out: data set 'unusual', split 'train', example {index} \(image{index}.jpg\): {reason}"
        assert len(re.findall(line, finished.stderr)) == 1, finished.stderr


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


@pytest.mark.parametrize(("workers", "read"), [(1, 1), (3, 7)])
def test_a_worker_that_is_killed_is_an_error_that_names_it(workers, read):
    with Stream(Slow(), range(1000), workers=workers) as stream:
        for _ in range(read):
            worker = next(stream)
        os.kill(worker, signal.SIGKILL)
        begun = time.perf_counter()
        with pytest.raises(WorkerLost, match=rf"1 of {workers} data workers: process {worker} \(killed by SIGKILL\)"):
            list(stream)
        seconds = time.perf_counter() - begun
    assert seconds < 5


def test_a_worker_that_is_killed_before_its_first_item_is_an_error_too():
    def kill_one():
        while len(processes := multiprocessing.active_children()) < 2:
            time.sleep(0.01)
        processes[0].kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    message = r"lost 1 of 2 data workers: one that had just started \(killed by SIGKILL\)"
    with Stream(Slow(), range(1000), workers=2) as stream, pytest.raises(WorkerLost, match=message):
        list(stream)
    killer.join()


def test_a_worker_that_ends_itself_is_named_with_its_exit_code():
    with Stream(Ending(), range(100), workers=2) as stream, pytest.raises(WorkerLost, match=r"\(exit code 7\)"):
        list(stream)


class Ending:
    """Items that name the process they were made in; item 10 ends it."""

    def __getitem__(self, key: int) -> int:
        if key == 10:
            os._exit(7)
        return os.getpid()


def test_an_error_of_the_source_is_no_lost_worker():
    with Stream(Failing(), range(100), workers=2) as stream, pytest.raises(RuntimeError, match="^item 10") as error:
        list(stream)
    assert not isinstance(error.value, WorkerLost)


class Failing:
    """Items of which one raises what a lost worker looks like."""

    def __getitem__(self, key: int) -> int:
        if key == 10:
            raise RuntimeError("item 10")
        return key


@pytest.mark.slow
def test_a_run_whose_data_worker_is_killed_ends_within_seconds(tmp_path):
    build_colored_images(tmp_path, classes=4, train=44, test=8)
    measure("colors", data_dir=tmp_path, split="test", image_size=32, short_side=36, workers=0)
    changes = {
        **{"data.name": "colors", "data.data_dir": tmp_path, "data.image_size": 32, "data.short_sides": "32,48"},
        **{"evaluate.short_side": 36, "evaluate.every": 10**6, "checkpoint.every": 10**6, "data.workers": 2},
        **{"data.test_split": "test", "data.normalization": "channel_mean", "model.name": "cifar_resnet8"},
        **{"model.width": 4, "model.bn_group_size": 4, "train.batch_size": 32, "train.duration": 10**6},
        **{"train.log_every": 1, "schedule.name": "constant"},
    }
    command = [sys.executable, "-m", "resnet_jax", "train", "--config=imagenet:paper,resnet18"]
    command += [f"--workdir={tmp_path / 'run'}", *(f"--config.{key}={value}" for key, value in changes.items())]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    ) as run:
        try:
            metrics = tmp_path / "run" / "metrics.jsonl"
            for _ in range(1200):
                if metrics.exists() and metrics.read_text().count("\n") > 20:
                    break
                assert run.poll() is None, run.stderr.read()
                time.sleep(0.1)
            worker = data_workers(run.pid)[0]
            os.kill(worker, signal.SIGKILL)
            begun = time.perf_counter()
            _, said = run.communicate(timeout=30)
            seconds = time.perf_counter() - begun
        finally:
            run.kill()
    assert run.returncode not in (0, None)
    assert f"lost 1 of 2 data workers: process {worker} (killed by SIGKILL)" in said
    # It takes 1.7 on a free machine; this is for one with many tests at once.
    assert seconds < 15


def data_workers(pid: int) -> list[int]:
    """The processes that Python has started from another one to work for it."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    pids = [int(child) for path in {children, *threads} for child in path.read_text().split()]
    return [child for child in pids if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


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


@pytest.mark.slow
def test_closing_leaves_no_process_and_no_shared_memory():
    command = [sys.executable, "-c", READ_AND_CLOSE, str(Path(__file__).parent)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    # Python itself says at its end what shared memory was left.
    assert (finished.returncode, finished.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("read", [3, 100])
def test_closing_leaves_no_semaphore_to_chance(read):
    gc.collect()
    gc.disable()
    try:
        before = semaphores()
        with Stream(Keys(), range(100), workers=2) as stream:
            for _ in range(read):
                next(stream)
            assert semaphores() > before
        assert semaphores() == before
    finally:
        gc.enable()


def semaphores() -> int:
    return sum(isinstance(found, multiprocessing.synchronize.SemLock) for found in gc.get_objects())


class Keys:
    """Items that are their keys."""

    def __getitem__(self, key: int) -> int:
        return key


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
