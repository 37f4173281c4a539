"""Training metrics, read from the device later than they are made, so that writing them never stalls it."""

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax

from resnet_jax.training.state import Progress


@dataclass
class _Line:
    step: int
    steps: int
    left_out: float
    progress: Progress
    ready: Future[float]


class MetricsLog:
    """Queues what the steps have counted and writes it once the device is sure to be done with it.

    Args:
      writer: has `write_scalars(step, scalars)`.
      batch_size: examples per step.
      most_skipped: raise when more updates than these were left out in a row, because their losses or gradients were
        not finite; 0 raises at the first.
      start_step: steps done before.
    """

    def __init__(self, writer: Any, *, batch_size: int, most_skipped: int, start_step: int):
        self._writer = writer
        self._batch_size = batch_size
        self._most_skipped = most_skipped
        self._pending: deque[_Line] = deque()
        self._last_step = start_step
        self._left_out = 0.0
        self._last_ready = time.perf_counter()
        # A thread of its own sees when a line's last step is done; the host may be far ahead of the device by then.
        self._watcher = ThreadPoolExecutor(max_workers=1)

    def push(self, step: int, progress: Progress) -> None:
        """Hands over the metrics up to `step`; those handed over before are read and written now."""
        ready = self._watcher.submit(_when_ready, progress)
        self._pending.append(_Line(step, step - self._last_step, self._left_out, progress, ready))
        self._last_step, self._left_out = step, 0.0
        while len(self._pending) > 1:
            self._write(self._pending.popleft())

    def drain(self) -> None:
        """Waits for the device and writes all that is queued."""
        while self._pending:
            self._write(self._pending.popleft())

    def leave_out(self, seconds: float) -> None:
        """Takes time that was not spent on training out of the next line's images per second."""
        self._left_out += seconds

    def check(self, progress: Progress) -> None:
        """Raises FloatingPointError if too many updates were skipped in a row; waits for the device."""
        in_a_row = int(progress.skipped_in_a_row)
        if in_a_row <= self._most_skipped:
            return
        if self._most_skipped == 0:
            step, loss, rate = int(progress.bad_step) + 1, float(progress.bad_loss), float(progress.bad_rate)
            raise FloatingPointError(
                f"step {step}: the loss or a gradient is not finite (loss {loss}, learning rate {rate:g}); the update "
                "was not made. Lower schedule.learning_rate, or set train.non_finite=skip to leave such updates out"
            )
        last = int(progress.row_end) + 1
        raise FloatingPointError(
            f"steps {last - in_a_row + 1} to {last}: the losses or gradients are not finite, more often in a row than "
            f"train.most_skipped={self._most_skipped}. None of these updates was made, and with the same config those "
            "to come would not be either: start again in another workdir with a lower schedule.learning_rate"
        )

    def _write(self, line: _Line) -> None:
        ready, progress = line.ready.result(), line.progress
        seconds = ready - self._last_ready - line.left_out
        self._last_ready = ready
        scalars = {"train/learning_rate": float(progress.learning_rate), "train/skipped": float(progress.skipped)}
        if unreadable := int(progress.unreadable):
            scalars["train/unreadable"] = unreadable
        if float(progress.sums.counted):
            scalars |= {f"train/{name}": value for name, value in progress.sums.means().items() if name != "count"}
        if seconds > 0:
            scalars["train/images_per_second"] = line.steps * self._batch_size / seconds
        self._writer.write_scalars(line.step, scalars)
        self.check(progress)


def _when_ready(progress: Progress) -> float:
    jax.block_until_ready(progress)
    return time.perf_counter()
