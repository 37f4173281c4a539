"""The training loop: step, write, evaluate, checkpoint; from the last checkpoint if there is one."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from resnet_jax import config as configs
from resnet_jax.analysis.curves import plot_curves
from resnet_jax.build import Parts
from resnet_jax.checkpoints import Checkpoints
from resnet_jax.distributed import collected, replicate
from resnet_jax.environment import environment, peak_memory
from resnet_jax.evaluation.evaluator import Evaluate, make_evaluator
from resnet_jax.hosts.agreement import check_agreement
from resnet_jax.hosts.peers import lost_peers_named
from resnet_jax.records import read_record, write_record
from resnet_jax.training.determinism import compiler_options, promises
from resnet_jax.training.metrics_log import MetricsLog
from resnet_jax.training.preemption import Preempted, Preemption
from resnet_jax.training.saving import Saver
from resnet_jax.training.start import started
from resnet_jax.training.state import Progress, TrainState
from resnet_jax.training.watchdog import Watchdog
from resnet_jax.workdir import Workdir
from resnet_jax.writers import JsonLinesWriter, MultiWriter, ProgressWriter, TensorBoardWriter

# The others wait while process 0 draws and writes.
_RECORD_SECONDS = 300.0


def train(config: Any, workdir: str | os.PathLike, *, writers: Sequence[Any] | None = None) -> dict:
    """Trains, evaluates and records one net; goes on from the workdir's latest checkpoint if it has one.

    A run that has its record is finished: the record is returned as it is. In a run of several processes
    (`hosts.launch.join`) all call it alike, with a workdir that they share; process 0 writes.

    SIGTERM ends it after the step at hand, saved; a second one at once. A checkpoint that cannot be saved is reported,
    and training goes on. A part that takes longer than its limit in `config.limits` ends the process, with exit code 70
    and every thread's traceback.

    Args:
      config: from `config_files.load_config`.
      workdir: folder for all that the run leaves behind, see `Workdir`; of one run at a time.
      writers: more places for the scalars, each with clu's `write_scalars(step, scalars)`, `flush()` and `close()`.

    Returns:
      The record, as in record.json.

    Raises:
      ValueError: if the config is not possible, the workdir belongs to another one, or processes disagree.
      FileNotFoundError: if the data set is not there.
      FloatingPointError: at a loss that is not finite, or too many in a row where the config says to skip such updates.
      CheckpointError: if the last checkpoint could not be saved.
      Preempted: at SIGTERM, saved.
      PeerLost: if another process of the run did not come, or is gone.
      ReplicasDiffer: if a device's copy of the parameters is not that of the others.
    """
    begun = time.perf_counter()
    files = Workdir(workdir)
    configs.check(config)
    files.refuse_other_config(config)
    if files.record.is_file():
        # It is written last: the run is finished, and its record is not for another process to change.
        return read_record(files.record)
    limits = {name.removesuffix("_seconds"): seconds for name, seconds in config.limits.items()}
    with (
        started(config, files) as (parts, state),
        Watchdog(limits, process_index=jax.process_index()) as watchdog,
        Checkpoints(
            files.checkpoints,
            keep_latest=parts.config.checkpoint.keep_latest,
            keep_best=parts.config.checkpoint.keep_best,
        ) as checkpoints,
    ):
        run = _Run(parts, state, files, checkpoints, watchdog, writers or (), begun=begun)
        try:
            with Preemption() as preemption, lost_peers_named():
                run.to_the_end(preemption)
        finally:
            parts.feed.close()
            run.writer.close()
        with lost_peers_named():
            record = run.record()
        if jax.process_index() == 0:
            plot_curves(files.metrics, files.curves)
            write_record(files.record, record)
        check_agreement({}, seconds=_RECORD_SECONDS)
    return read_record(files.record)


class _Run:
    """One process's part of a run."""

    def __init__(
        self,
        parts: Parts,
        state: TrainState,
        files: Workdir,
        checkpoints: Checkpoints,
        watchdog: Watchdog,
        writers: Sequence[Any],
        *,
        begun: float,
    ):
        self.parts, self.config, self.watchdog = parts, parts.config, watchdog
        self.begun = begun
        self.compile_seconds = self.other_seconds = self.training_seconds = 0.0
        self.compiler_options = compiler_options(self.config.train.determinism)
        self.state, self.progress = state, self.fresh_progress()
        self.saver = Saver(checkpoints, watchdog, parts.mesh)
        self.first_step = 0
        restored = self.saver.restore((self.state, self.progress))
        if restored is not None:
            self.first_step, (self.state, self.progress) = restored
        self.step = self.first_step
        self.writer = MultiWriter(self.open_writers(files, writers) if jax.process_index() == 0 else ())
        self.evaluate: Evaluate = make_evaluator(
            parts.model,
            parts.mesh,
            protocol="center",
            batch_size=self.config.evaluate.batch_size,
            input=parts.input,
            workers=self.config.data.workers,
            compiler_options=self.compiler_options,
        )
        self.after_evaluation = jax.jit(parts.schedule.after_evaluation)
        self.calls: dict[int, Any] = {}
        self.held_out: dict[str, dict[str, float]] = {}
        self.log = MetricsLog(
            self.writer,
            batch_size=self.batch_size,
            most_skipped=0 if self.config.train.non_finite == "stop" else self.config.train.most_skipped,
            start_step=self.first_step,
        )

    @property
    def promises(self) -> str:
        return promises(self.config.train.determinism)

    @property
    def total(self) -> int:
        return self.config.steps.total

    @property
    def batch_size(self) -> int:
        return self.config.train.batch_size

    def open_writers(self, files: Workdir, more: Sequence[Any]) -> list[Any]:
        """Those of process 0."""
        devices = f"{jax.process_count()} process{'es' * (jax.process_count() > 1)}, {jax.device_count()} devices"
        print(f"from step {self.first_step}, {devices}, determinism {self.promises}", file=sys.stderr, flush=True)
        resume = self.first_step or None
        return [
            JsonLinesWriter(files.metrics, resume_step=resume),
            TensorBoardWriter(files.tensorboard, resume_step=resume),
            ProgressWriter(self.total, batch_size=self.batch_size, resume_step=self.first_step),
            *more,
        ]

    def fresh_progress(self) -> Progress:
        return replicate(Progress.zero(), self.parts.mesh)

    def to_the_end(self, preemption: Preemption) -> None:
        """Runs all steps that are left; raises as `train` does."""
        with self.watchdog.phase("step"):
            self.run_steps(preemption)
        self.saver.finish()

    def run_steps(self, preemption: Preemption) -> None:
        steps, log_every = self.config.steps, self.config.train.log_every
        intervals = (log_every, steps.evaluate_every, steps.checkpoint_every)
        begun = time.perf_counter()
        while self.step < self.total:
            until = min(self.total, *(self.step + every - self.step % every for every in intervals))
            stop = self.advance(preemption, until)
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
                    with self.watchdog.phase("evaluation"):
                        errors = self.evaluate_held_out(steer=evaluation_due)
                    if checkpoint_due:
                        self.saver.save(self.step, (self.state, self.progress), errors)
            # After what is due at this step, which a resumed run takes for done.
            if stop and self.step < self.total:
                self.stop_early()
        self.training_seconds = time.perf_counter() - begun - self.other_seconds

    @contextlib.contextmanager
    def not_training(self) -> Iterator[None]:
        """Leaves the time of its block out of the training speed."""
        begun = time.perf_counter()
        yield
        seconds = time.perf_counter() - begun
        self.other_seconds += seconds
        self.log.leave_out(seconds)

    def stop_early(self) -> None:
        """Saves where the run is, and ends it."""
        self.log.drain()
        self.log.check(self.progress)
        self.saver.save(self.step, (self.state, self.progress), None)
        self.saver.finish()
        raise Preempted(self.step)

    def advance(self, preemption: Preemption, stop: int) -> bool:
        """Dispatches steps up to `stop`, or until the run is to end, and says so; nothing here waits for the device."""
        while self.step < stop:
            per_call = self.parts.steps_per_call
            length = per_call if self.step + per_call <= stop else 1
            arguments = (self.state, self.progress, *self.parts.feed.arguments(self.step))
            if length not in self.calls:
                self.calls[length] = self.compile(length, arguments)
            self.state, self.progress = self.calls[length](*arguments)
            self.step += length
            self.watchdog.beat()
            self.saver.poll()
            if preemption.requested():
                return True
        return False

    def compile(self, length: int, arguments: tuple) -> Any:
        begun = time.perf_counter()
        with self.not_training(), self.watchdog.phase("compile"):
            compiled = self.parts.make_call(length).lower(*arguments).compile(self.compiler_options)
        self.compile_seconds += time.perf_counter() - begun
        return compiled

    def test_errors(self) -> dict[str, dict[str, float]]:
        """Loss and errors of the validation and test splits, by split."""
        held_out = {split: data for split, data in self.parts.splits.items() if split != "train"}
        variables = collected(self.state.evaluated_variables, self.parts.mesh)
        return {split: self.evaluate(variables, data) for split, data in held_out.items()}

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
        with self.watchdog.phase("evaluation"):
            return self.tested_record()

    def tested_record(self) -> dict:
        # What training leaves out cannot be tested either; the count says how many are left.
        variables = collected(self.state.evaluated_variables, self.parts.mesh)
        train = self.evaluate(variables, self.parts.splits["train"], unreadable=self.config.data.unreadable)
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
            "wall_seconds": time.perf_counter() - self.begun,
            "images_per_second": speed,
            "compile_seconds": self.compile_seconds,
            "unreadable_images": int(self.state.unreadable),
            "pixel_statistics": self.parts.input.source,
            "determinism": self.promises,
            **peak_memory(),
        }
