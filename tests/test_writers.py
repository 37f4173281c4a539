"""What is written can be read back, by a strict reader, after a kill and after a restart."""

import io
import json
import os
import signal
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto import event_pb2

from resnet_jax import records, writers
from resnet_jax.writers import JsonLinesWriter, MultiWriter, ProgressWriter, TensorBoardWriter


def strict_rows(path: Path) -> list[dict]:
    def refuse(token: str):
        raise AssertionError(f"{token} is not JSON")

    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def events(path: Path) -> list[event_pb2.Event]:
    """Reads a TFRecord file of events, every checksum checked."""

    def masked(data: bytes) -> int:
        crc = crc32c(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    data, position, found = path.read_bytes(), 0, []
    while position < len(data):
        header = data[position : position + 8]
        (length,) = struct.unpack("<Q", header)
        assert struct.unpack("<I", data[position + 8 : position + 12]) == (masked(header),)
        body = data[position + 12 : position + 12 + length]
        position += 12 + length + 4
        assert struct.unpack("<I", data[position - 4 : position]) == (masked(body),)
        found.append(event_pb2.Event.FromString(body))
    return found


def scalars_shown(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: files in the order of their names; a start hides steps from its own on."""
    shown: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(directory.iterdir()):
        for event in events(path):
            if event.session_log.status == event_pb2.SessionLog.START:
                shown = {tag: [p for p in points if p[0] < event.step] for tag, points in shown.items()}
            for value in event.summary.value:
                shown.setdefault(value.tag, []).append((event.step, value.simple_value))
    return shown


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that stands still unless it is set."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(writers.time, "monotonic", lambda: self.now)


def test_json_lines_are_strict_json_and_read_back_exactly(tmp_path):
    values = [0.1, 1e-300, np.float32(0.1), jnp.float32(2.5), 3, np.int64(4), float("nan"), np.inf, -jnp.inf]
    writer = JsonLinesWriter(tmp_path / "run" / "metrics.jsonl")
    for step, value in enumerate(values):
        writer.write_scalars(step, {"train/loss": value, "train/error_top1": 0.5})
    writer.close()
    rows = strict_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(len(values)))
    assert [row["train/loss"] for row in rows[-3:]] == ["NaN", "Infinity", "-Infinity"]
    steps, read = records.read_metrics(tmp_path / "run" / "metrics.jsonl")["train/loss"]
    assert steps.dtype == np.int64 and read.dtype == np.float64
    np.testing.assert_array_equal(read, np.array([float(value) for value in values]))


def test_a_resumed_run_drops_later_lines_and_a_torn_one_and_writes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonLinesWriter(path)
    for step in (100, 200, 300):
        writer.write_scalars(step, {"train/loss": step / 7})
        writer.write_scalars(step, {"test/loss": float("nan")})
    writer.close()
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole) + '{"step": 400, "train/lo')
    resumed = JsonLinesWriter(path, resume_step=200)
    assert path.read_text() == "".join(whole[:4])
    resumed.write_scalars(300, {"train/loss": 1.0})
    resumed.close()
    assert path.read_text() == "".join(whole[:4]) + '{"step": 300, "train/loss": 1.0}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_torn_line_at_the_resumed_step_is_dropped_and_a_whole_one_without_its_line_feed_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a": 2.0}')
    JsonLinesWriter(path, resume_step=2).close()
    assert strict_rows(path) == [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}]
    path.write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a": 2.')
    JsonLinesWriter(path, resume_step=2).close()
    assert strict_rows(path) == [{"step": 1, "a": 1.0}]


def test_a_run_from_the_start_begins_a_new_file_and_one_without_a_file_makes_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1.0}\n')
    JsonLinesWriter(path).close()
    assert path.read_text() == ""
    path.unlink()
    JsonLinesWriter(path, resume_step=5).close()
    assert path.read_text() == ""


def test_a_file_that_holds_something_else_is_not_touched(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("hello\n")
    with pytest.raises(ValueError, match="metrics.jsonl, line 1"):
        JsonLinesWriter(path, resume_step=5)
    assert path.read_text() == "hello\n"


def test_a_scalar_called_step_is_refused(tmp_path):
    writer = JsonLinesWriter(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match='called "step"'):
        writer.write_scalars(1, {"step": 2.0})
    writer.close()


def test_a_killed_process_loses_no_line_and_no_event(tmp_path):
    program = textwrap.dedent(
        """
        import os, signal
        from resnet_jax.writers import JsonLinesWriter, MultiWriter, TensorBoardWriter

        writer = MultiWriter([JsonLinesWriter("m.jsonl"), TensorBoardWriter("t")])
        for step in range(5):
            writer.write_scalars(step, {"loss": step / 2})
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=variables, check=False)
    assert done.returncode == -signal.SIGKILL
    points = [(step, step / 2) for step in range(5)]
    assert [(row["step"], row["loss"]) for row in strict_rows(tmp_path / "m.jsonl")] == points
    assert scalars_shown(tmp_path / "t") == {"loss": points}


def test_event_files_hold_every_scalar_at_its_step(tmp_path):
    writer = TensorBoardWriter(tmp_path / "tensorboard")
    writer.write_scalars(10, {"train/loss": 1.5, "train/error_top1": np.float32(0.25)})
    writer.write_scalars(20, {"train/loss": jnp.float32(0.5), "test/loss": float("nan")})
    writer.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert path.name.startswith("events.out.tfevents.")
    assert events(path)[0].file_version == "brain.Event:2"
    shown = scalars_shown(tmp_path / "tensorboard")
    assert shown["train/loss"] == [(10, 1.5), (20, 0.5)]
    assert shown["train/error_top1"] == [(10, 0.25)]
    assert np.isnan(shown["test/loss"][0][1])


def test_a_resumed_run_hides_the_events_it_writes_again_and_only_those(tmp_path):
    for resume_step, steps in ((None, (100, 200, 300)), (200, (300, 400)), (200, (300,))):
        writer = TensorBoardWriter(tmp_path, resume_step=resume_step)
        for step in steps:
            writer.write_scalars(step, {"loss": step + (resume_step or 0)})
        writer.close()
    assert len(list(tmp_path.iterdir())) == 3
    assert scalars_shown(tmp_path) == {"loss": [(100, 100.0), (200, 200.0), (300, 500.0)]}
    TensorBoardWriter(tmp_path).close()
    assert scalars_shown(tmp_path) == {"loss": []}


def test_lines_elsewhere_than_on_a_terminal_say_all_there_is(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    writer = ProgressWriter(1000, batch_size=128, stream=stream)
    writer.write_scalars(100, {"train/loss": 1.23456, "train/error_top1": 0.4567, "train/learning_rate": 0.1})
    clock.now += 50
    writer.write_scalars(200, {"train/loss": 1.0, "train/skipped": 0.0})
    writer.write_scalars(200, {"test/loss": 0.5, "test/error_top1": 0.25, "test/error_top5": 0.0125})
    clock.now += 100
    writer.write_scalars(400, {"train/loss": float("nan"), "train/images_per_second": 5000.4})
    writer.close()
    assert stream.getvalue().splitlines() == [
        "step 100/1000, train loss 1.2346, train error 45.67 %, learning rate 0.1",
        "step 200/1000, train loss 1.0000, 256 images/s, 0:06:40 left",
        "step 200/1000, test loss 0.5000, test error 25.00 %, test top-5 error 1.25 %, 256 images/s, 0:06:40 left",
        "step 400/1000, train loss nan, 5,000 images/s, 0:05:00 left",
    ]


def test_the_time_left_counts_from_the_resumed_step(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    writer = ProgressWriter(10_000, batch_size=1, resume_step=9000, stream=stream)
    writer.write_scalars(9100, {"train/images_per_second": 10.0})
    clock.now += 10
    writer.write_scalars(9200, {})
    assert stream.getvalue().splitlines() == [
        "step 9100/10000, 10 images/s, 0:01:30 left",
        "step 9200/10000, 10 images/s, 0:01:20 left",
    ]


def test_a_terminal_shows_a_bar_with_the_latest_errors(monkeypatch):
    clock, stream = Clock(monkeypatch), Terminal()
    writer = ProgressWriter(400, batch_size=10, resume_step=100, stream=stream)
    assert " 25%|" in stream.getvalue() and "step 100/400" in stream.getvalue()
    writer.write_scalars(200, {"train/error_top1": 0.5, "train/loss": 2.0})
    clock.now += 20
    writer.write_scalars(200, {"test/error_top1": 0.25})
    writer.write_scalars(300, {"train/error_top1": 0.125})
    last = stream.getvalue().split("\r")[-1]
    assert " 75%|" in last
    assert "step 300/400, train error 12.50 %, test error 25.00 %, 50 images/s, 0:00:20 left" in last
    before = stream.getvalue()
    writer.close()
    assert stream.getvalue().endswith("\n") and stream.getvalue().startswith(before)
    assert not stream.closed


def test_progress_goes_to_standard_error(capsys):
    writer = ProgressWriter(10, batch_size=1)
    writer.write_scalars(1, {"train/loss": 1.0})
    writer.close()
    captured = capsys.readouterr()
    assert captured.err == "step 1/10, train loss 1.0000\n" and captured.out == ""


@pytest.mark.parametrize(("total_steps", "batch_size", "name"), [(0, 1, "total_steps=0"), (1, 0, "batch_size=0")])
def test_a_run_without_steps_or_images_has_no_progress(total_steps, batch_size, name):
    with pytest.raises(ValueError, match=f"{name}: must be at least 1"):
        ProgressWriter(total_steps, batch_size=batch_size)


def test_all_writers_get_everything_and_one_that_fails_to_close_keeps_none_open():
    class Recorder:
        def __init__(self, name: str):
            self.name = name

        def write_scalars(self, step, scalars):
            calls.append((self.name, step, dict(scalars)))

        def flush(self):
            calls.append((self.name, "flush"))

        def close(self):
            calls.append((self.name, "close"))
            if self.name == "a":
                raise OSError("disk full")

    calls: list[tuple] = []
    writer = MultiWriter(Recorder(name) for name in "ab")
    writer.write_scalars(1, {"x": 2.0})
    writer.flush()
    with pytest.raises(OSError, match="disk full"):
        writer.close()
    assert calls == [
        *[("a", 1, {"x": 2.0}), ("b", 1, {"x": 2.0})],
        *[("a", "flush"), ("b", "flush"), ("a", "close"), ("b", "close")],
    ]


def test_no_tensorflow_is_imported():
    program = "import sys, resnet_jax.writers; assert not [m for m in sys.modules if m.startswith('tensorflow')]"
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    subprocess.run([sys.executable, "-W", "error", "-c", program], env=variables, check=True)
