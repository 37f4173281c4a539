"""The training loop: step, write, evaluate, checkpoint; from the last checkpoint if there is one."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from resnet_jax import config as configs
from resnet_jax.analysis.curves import plot_curves
from resnet_jax.build import Parts, build
from resnet_jax.checkpoints import Checkpoints
from resnet_jax.distributed import replicate
from resnet_jax.environment import environment, peak_memory
from resnet_jax.evaluation.evaluator import Evaluate, make_evaluator
from resnet_jax.records import read_record, write_record
from resnet_jax.training.metrics_log import MetricsLog
from resnet_jax.training.state import Progress, TrainState
from resnet_jax.workdir import Workdir
from resnet_jax.writers import JsonLinesWriter, MultiWriter, ProgressWriter, TensorBoardWriter


def train(config: Any, workdir: str | os.PathLike, *, writers: Sequence[Any] | None = None) -> dict:
    """Trains, evaluates and records one net; goes on from the workdir's latest checkpoint if it has one.

    A run that has its record is finished: the record is returned as it is.

    Args:
      config: from `config_files.load_config`.
      workdir: folder for all that the run leaves behind, see `Workdir`.
      writers: more places for the scalars, each with clu's `write_scalars(step, scalars)`, `flush()` and `close()`.

    Returns:
      The record, as in record.json.

    Raises:
      ValueError: if the config is not possible, or the workdir belongs to another one.
      FileNotFoundError: if the data set is not there.
      FloatingPointError: at a loss that is not finite, unless the config says to skip such updates.
    """
    started = time.perf_counter()
    files = Workdir(workdir)
    configs.check(config)
    files.refuse_other_config(config)
    if files.record.is_file():
        # It is written last: the run is finished, and its record is not for another process to change.
        return read_record(files.record)
    parts = build(config)
    files.claim(parts.config, parts.input)
    keep = parts.config.checkpoint
    with Checkpoints(files.checkpoints, keep_latest=keep.keep_latest, keep_best=keep.keep_best) as checkpoints:
        run = _Run(parts, files, checkpoints, writers or (), started=started)
        try:
            run.to_the_end()
        finally:
            parts.feed.close()
            run.writer.close()
        checkpoints.wait()
        record = run.record()
    plot_curves(files.metrics, files.curves)
    write_record(files.record, record)
    return read_record(files.record)


class _Run:
    """One process's part of a run."""

    def __init__(
        self,
        parts: Parts,
        files: Workdir,
        checkpoints: Checkpoints,
        writers: Sequence[Any],
        *,
        started: float,
    ):
        self.parts, self.config, self.checkpoints = parts, parts.config, checkpoints
        self.started = started
        self.compile_seconds = self.other_seconds = self.training_seconds = 0.0
        self.state: TrainState = parts.initial_state()
        self.progress = self.fresh_progress()
        self.first_step = 0
        if checkpoints.latest_step() is not None:
            self.first_step, (self.state, self.progress) = checkpoints.restore("latest", (self.state, self.progress))
        self.step = self.first_step
        resume = self.first_step or None
        self.writer = MultiWriter(
            [
                JsonLinesWriter(files.metrics, resume_step=resume),
                TensorBoardWriter(files.tensorboard, resume_step=resume),
                ProgressWriter(self.total, batch_size=self.batch_size, resume_step=self.first_step),
                *writers,
            ]
        )
        self.evaluate: Evaluate = make_evaluator(
            parts.model,
            parts.mesh,
            protocol="center",
            batch_size=self.config.evaluate.batch_size,
            input=parts.input,
            workers=self.config.data.workers,
        )
        self.after_evaluation = jax.jit(parts.schedule.after_evaluation)
        self.calls: dict[int, Any] = {}
        self.held_out: dict[str, dict[str, float]] = {}
        self.log = MetricsLog(
            self.writer,
            batch_size=self.batch_size,
            stop_at_non_finite=self.config.train.non_finite == "stop",
            start_step=self.first_step,
        )

    @property
    def total(self) -> int:
        return self.config.steps.total

    @property
    def batch_size(self) -> int:
        return self.config.train.batch_size

    def fresh_progress(self) -> Progress:
        return replicate(Progress.zero(), self.parts.mesh)

    def to_the_end(self) -> None:
        """Runs all steps that are left."""
        steps, log_every = self.config.steps, self.config.train.log_every
        intervals = (log_every, steps.evaluate_every, steps.checkpoint_every)
        begun = time.perf_counter()
        while self.step < self.total:
            self.advance(min(self.total, *(self.step + every - self.step % every for every in intervals)))
            log_due, evaluation_due, checkpoint_due = (
                self.step % every == 0 or self.step == self.total for every in intervals
            )
            if log_due:
                self.log.push(self.step, self.progress)
                self.progress = self.fresh_progress()
            if evaluation_due or checkpoint_due:
                # Both at either: a checkpoint without errors could never be the best. And a checkpoint must not
                # hide a step that the run has to stop at.
                self.log.drain()
                self.log.check(self.progress)
                with self.not_training():
                    errors = self.evaluate_held_out(steer=evaluation_due)
                    if checkpoint_due:
                        self.checkpoints.save(self.step, (self.state, self.progress), errors)
        self.training_seconds = time.perf_counter() - begun - self.other_seconds

    @contextlib.contextmanager
    def not_training(self) -> Iterator[None]:
        """Leaves the time of its block out of the training speed."""
        begun = time.perf_counter()
        yield
        seconds = time.perf_counter() - begun
        self.other_seconds += seconds
        self.log.leave_out(seconds)

    def advance(self, stop: int) -> None:
        """Dispatches steps up to `stop`; nothing here waits for the device."""
        while self.step < stop:
            per_call = self.parts.steps_per_call
            length = per_call if self.step + per_call <= stop else 1
            arguments = (self.state, self.progress, *self.parts.feed.arguments(self.step))
            if length not in self.calls:
                self.calls[length] = self.compile(length, arguments)
            self.state, self.progress = self.calls[length](*arguments)
            self.step += length

    def compile(self, length: int, arguments: tuple) -> Any:
        begun = time.perf_counter()
        with self.not_training():
            compiled = self.parts.make_call(length).lower(*arguments).compile()
        self.compile_seconds += time.perf_counter() - begun
        return compiled

    def test_errors(self) -> dict[str, dict[str, float]]:
        """Loss and errors of the validation and test splits, by split."""
        held_out = {split: data for split, data in self.parts.splits.items() if split != "train"}
        return {split: self.evaluate(self.state.evaluated_variables, data) for split, data in held_out.items()}

    def evaluate_held_out(self, *, steer: bool) -> dict[str, float]:
        """Tests and writes; the best checkpoint goes by the validation error, or else the test error.

        So does the schedule, if it is to `steer`: not at a checkpoint that comes between evaluations, because a plateau
        is so many evaluations long.
        """
        self.held_out = self.test_errors()
        for split, errors in self.held_out.items():
            scalars = {f"{split}/{name}": value for name, value in errors.items() if name != "count"}
            self.writer.write_scalars(self.step, scalars)
        error = self.held_out.get("validation", self.held_out["test"])["error_top1"]
        if steer:
            schedule_state = self.after_evaluation(self.state.schedule_state, error)
            self.state = self.state.replace(schedule_state=replicate(schedule_state, self.parts.mesh))
        return {"error_top1": error}

    def record(self) -> dict:
        """The record of the finished run; all splits are evaluated whole, without augmentation."""
        # What training leaves out cannot be tested either; the count says how many are left.
        train = self.evaluate(
            self.state.evaluated_variables, self.parts.splits["train"], unreadable=self.config.data.unreadable
        )
        tested = {
            split: {key: errors[key] for key in ("error_top1", "error_top5", "count")} | {"protocol": "center"}
            for split, errors in (self.held_out or self.test_errors()).items()
        }
        steps = self.step - self.first_step
        speed = steps * self.batch_size / self.training_seconds if steps else None
        return {
            "config": configs.without_places(self.config),
            "model": self.config.model.name,
            "seed": self.config.seed,
            **environment(),
            "steps": self.step,
            "resumed_from_step": self.first_step or None,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self.state.params)),
            "train": {"loss": train["loss"], "error": train["error_top1"], "count": train["count"]},
            **tested,
            "wall_seconds": time.perf_counter() - self.started,
            "images_per_second": speed,
            "compile_seconds": self.compile_seconds,
            "unreadable_images": int(self.state.unreadable),
            "pixel_statistics": self.parts.input.source,
            **peak_memory(),
        }
