"""Where the scalars of a run go: JSON lines, TensorBoard events, a progress bar.

Every writer has the three methods that clu's `MetricWriter` has too, so either kind serves where the other
does.
"""

import datetime
import io
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, SupportsFloat

import tensorboardX
import tqdm
from tensorboardX.proto import event_pb2, summary_pb2

from resnet_jax import records
from resnet_jax.atomic_files import write_text_atomically

Scalars = Mapping[str, SupportsFloat]

# What a bar has room for.
_SHOWN = ("/error_top1", "/ap", "/ap_50", "/error_localization")


class Writer(Protocol):
    """What the training loop asks of a place for scalars."""

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Takes values by name at an optimizer step; reading a device array here waits for the device."""

    def flush(self) -> None:
        """Puts all that was written where it survives the process."""

    def close(self) -> None:
        """Flushes and lets go of files and threads."""


class JsonLinesWriter:
    """Appends one strict JSON object a line: `{"step": n, name: value, ...}`; `records.read_metrics` reads
    them.

    Each line reaches the operating system before `write_scalars` returns, so a killed run keeps every line.
    """

    def __init__(self, path: str | os.PathLike, *, resume_step: int | None = None):
        """Opens the file.

        Args:
          path: usually `metrics.jsonl` in the workdir; its folder is made.
          resume_step: the step of the checkpoint a run goes on from; lines of later steps will be written
            again and are dropped, and so is a half-written last line. None begins a new file in place of an
            old one.

        Raises:
          ValueError: the file to go on with holds something else than metrics.
        """
        path = Path(path)
        kept = records.read_rows(path) if resume_step is not None and path.exists() else []
        lines = [_json_line(row) for row in kept if row["step"] <= (resume_step or 0)]
        write_text_atomically(path, "".join(lines))
        self._file = path.open("a", encoding="utf-8")

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Appends one line.

        Raises:
          ValueError: a scalar is called "step".
        """
        if "step" in scalars:
            raise ValueError(f'a scalar cannot be called "step", which names the step itself: {dict(scalars)}')
        self._file.write(_json_line({"step": int(step), **scalars}))
        self._file.flush()

    def flush(self) -> None:
        """Puts the lines on the disk, where they outlive a power cut."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoardWriter:
    """Writes TensorBoard event files without TensorFlow."""

    def __init__(self, directory: str | os.PathLike, *, resume_step: int | None = None):
        """Starts a new event file in the folder, which is made.

        Args:
          directory: TensorBoard's log folder; event files of an interrupted run stay in it.
          resume_step: the step of the checkpoint a run goes on from; TensorBoard then hides older events of
            later steps. None hides all older events.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads a folder's files in the order of their names. Microseconds keep a quick restart
        # from writing over the file before it.
        self._file = tensorboardX.RecordWriter(str(directory / f"events.out.tfevents.{time.time():.6f}"))
        purge_step = 0 if resume_step is None else resume_step + 1
        started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(file_version="brain.Event:2"))
        self._write(event_pb2.Event(step=purge_step, session_log=started))
        self.flush()

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Writes one event with all the scalars, through to the disk."""
        values = [summary_pb2.Summary.Value(tag=name, simple_value=float(v)) for name, v in scalars.items()]
        self._write(event_pb2.Event(step=int(step), summary=summary_pb2.Summary(value=values)))
        # A buffered event would be lost in a kill, though the checkpoint of a later step may be kept.
        self.flush()

    def flush(self) -> None:
        """Puts all events on the disk."""
        self._file.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._file.close()

    def _write(self, event: event_pb2.Event) -> None:
        event.wall_time = time.time()
        self._file.write(event.SerializeToString())


class ProgressWriter:
    """Shows how far a run is: a bar on a terminal, one line for every write elsewhere.

    Both give the loss, the errors in %, images per second and the time left; the bar keeps showing the latest
    training and test error. The time left is measured between writes, so it counts evaluations and
    checkpoints in, and compilation (before the first write) out.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        batch_size: int,
        resume_step: int = 0,
        name: str = "",
        stream: io.TextIOBase | None = None,
    ):
        """Starts at a step.

        Args:
          total_steps: optimizer steps of the whole run.
          batch_size: images per optimizer step.
          resume_step: the step a run goes on from.
          name: of the run, before everything else, where several are shown.
          stream: where to show it; standard error if None.

        Raises:
          ValueError: there are no steps or no images in a step.
        """
        for key, value in (("total_steps", total_steps), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{key}={value}: must be at least 1")
        self._total, self._batch_size, self._name = total_steps, batch_size, name
        self._stream = sys.stderr if stream is None else stream
        self._first: tuple[int, float] | None = None
        self._latest: dict[str, str] = {}
        self._bar = None
        if self._stream.isatty():
            self._bar = tqdm.tqdm(
                total=total_steps,
                initial=resume_step,
                file=self._stream,
                desc=name or None,
                dynamic_ncols=True,
                bar_format="{desc}{percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}{postfix}",
            )

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Moves the bar to the step, or writes a line; scalars it has no words for are left out."""
        texts = {name: text for name, value in scalars.items() if (text := _in_words(name, float(value)))}
        speed = self._speed(int(step), scalars)
        if self._bar is None:
            words = [*([self._name] if self._name else []), f"step {step}/{self._total}", *texts.values(), *speed]
            self._stream.write(", ".join(words) + "\n")
            self._stream.flush()
            return
        self._latest |= {name: text for name, text in texts.items() if name.endswith(_SHOWN)}
        self._bar.n = int(step)
        self._bar.set_postfix_str(", ".join([*self._latest.values(), *speed]), refresh=True)

    def flush(self) -> None:
        """Shows all that was written."""
        self._stream.flush()

    def close(self) -> None:
        """Leaves the bar as it is and goes to the next line; the stream stays open."""
        if self._bar is not None:
            self._bar.close()

    def _speed(self, step: int, scalars: Scalars) -> list[str]:
        """Images per second and the time left, as far as they are known."""
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        first_step, first_time = self._first
        steps_per_second = None
        if step > first_step and now > first_time:
            steps_per_second = (step - first_step) / (now - first_time)
        given = scalars.get("train/images_per_second")
        images = float(given) if given is not None else (steps_per_second or math.nan) * self._batch_size
        if not (math.isfinite(images) and images > 0):
            return []
        seconds = (self._total - step) / (steps_per_second or images / self._batch_size)
        return [f"{images:,.0f} images/s", f"{datetime.timedelta(seconds=round(max(0, seconds)))} left"]


class MultiWriter:
    """Hands everything on to several writers, in their order."""

    def __init__(self, writers: Iterable[Any]):
        """Takes writers of this module, of clu, or any other with the three methods."""
        self._writers = tuple(writers)

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Writes the scalars everywhere."""
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def flush(self) -> None:
        """Flushes all writers."""
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        """Closes all writers, also those after one that cannot be closed; its error is raised at the end."""
        with ExitStack() as stack:
            for writer in reversed(self._writers):
                stack.callback(writer.close)


def _json_line(row: Mapping[str, Any]) -> str:
    row = {name: records.strict_number(value) for name, value in row.items()}
    return json.dumps(row, allow_nan=False) + "\n"


def _in_words(name: str, value: float) -> str | None:
    split, _, quantity = name.partition("/")
    if quantity == "loss":
        return f"{split} loss {value:.4f}"
    if quantity in ("error_top1", "error_top5"):
        return f"{split} {'' if quantity == 'error_top1' else 'top-5 '}error {100 * value:.2f} %"
    if quantity in ("ap", "ap_50"):
        return f"{split} {'AP' if quantity == 'ap' else 'AP50'} {100 * value:.2f} %"
    if quantity == "error_localization":
        return f"{split} localization error {100 * value:.2f} %"
    if quantity in ("region_error", "object_error"):
        return f"{split} error of {quantity.removesuffix('_error')}s {100 * value:.2f} %"
    if name == "diagnostics/seconds":
        return f"diagnosed in {value:.1f} s"
    return f"learning rate {value:g}" if quantity == "learning_rate" else None
