"""The training loop: step, write, evaluate, checkpoint; from the last checkpoint if there is one."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax import config as configs
from resnet_jax.checkpoints import Checkpoints
from resnet_jax.compiled_programs import programs_folder
from resnet_jax.diagnostics.diagnosis import make_diagnosis
from resnet_jax.distributed import collected, replicate
from resnet_jax.hosts.agreement import check_agreement
from resnet_jax.hosts.peers import lost_peers_named
from resnet_jax.parts import Parts
from resnet_jax.records import read_record
from resnet_jax.tasks import TASKS
from resnet_jax.training.determinism import compiler_options, promises
from resnet_jax.training.member import Member
from resnet_jax.training.preemption import Preempted, Preemption
from resnet_jax.training.saving import Saver
from resnet_jax.training.seeds import Seeds
from resnet_jax.training.start import started
from resnet_jax.training.start_times import StartTimes
from resnet_jax.training.state import TrainState
from resnet_jax.training.steps_per_call import end_of_call
from resnet_jax.training.watchdog import Watchdog
from resnet_jax.workdir import Workdir

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
      config: from `config_files.load_config`, of one seed.
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
    configs.check(config)
    if config.num_seeds > 1:
        raise ValueError(f"num_seeds={config.num_seeds}: train makes one record; train_seeds trains several seeds")
    return _train(config, Workdir(workdir), writers or (), StartTimes())[0]


def train_seeds(config: Any, workdir: str | os.PathLike, *, begun: float | None = None) -> list[dict]:
    """As `train`, `config.num_seeds` seeds in one program: the config's and those after it.

    On an accelerator small nets leave most of the device idle, and several at once take hardly longer than one. What
    each learns is what it would have learnt alone, but for rounding: the same initial parameters, images and
    augmentation. One schedule and one set of checkpoints serve all; a loss that is not finite ends all.

    Args:
      config: from `config_files.load_config`; resident data, nothing divided.
      workdir: of all. Each seed has a folder `seed_N` in it, which at the end is a workdir as `train` leaves it, but
        that the last checkpoint is the only one. With one seed it is the workdir of that.
      begun: when a process that does nothing else began, for `start_seconds`; see `start_times.process_begun`.

    Returns:
      The records, in the order of the seeds. Their times are those of all together: `images_per_second` counts the
      images of one seed.

    Raises: as `train`.
    """
    configs.check(config)
    return _train(config, Workdir(workdir), (), StartTimes(begun))


def _train(config: Any, files: Workdir, writers: Sequence[Any], times: StartTimes) -> list[dict]:
    begun = time.perf_counter()
    files.refuse_other_config(config)
    seeds = Seeds(config.seed, config.num_seeds)
    records = [(files.of_seed(seed) if seeds.together else files).record for seed in seeds.numbers]
    if all(record.is_file() for record in records):
        # They are written last: the run is finished, and its record is not for another process to change.
        return [read_record(record) for record in records]
    limits = {name.removesuffix("_seconds"): seconds for name, seconds in config.limits.items()}
    with (
        started(config, files, times) as (parts, state),
        Watchdog(limits, process_index=jax.process_index()) as watchdog,
        Checkpoints(
            files.checkpoints,
            keep_latest=parts.config.checkpoint.keep_latest,
            keep_best=parts.config.checkpoint.keep_best,
            best_metric=TASKS[parts.config.task].error,
        ) as checkpoints,
    ):
        run = _Run(parts, state, files, checkpoints, watchdog, writers, begun=begun, times=times)
        try:
            with Preemption() as preemption, lost_peers_named():
                run.to_the_end(preemption)
        finally:
            parts.feed.close()
            for member in run.members:
                member.writer.close()
        with lost_peers_named():
            run.finish()
        check_agreement({}, seconds=_RECORD_SECONDS)
    return [read_record(record) for record in records]


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
        times: StartTimes,
    ):
        self.parts, self.config, self.watchdog = parts, parts.config, watchdog
        self.begun, self.times = begun, times
        self.compile_seconds = self.other_seconds = self.training_seconds = self.diagnostics_seconds = 0.0
        self.compiler_options = compiler_options(self.config.train.determinism)
        self.state, self.progress = state, parts.initial_progress()
        self.saver = Saver(checkpoints, watchdog, parts.mesh)
        self.first_step = 0
        restored = self.saver.restore((self.state, self.progress))
        if restored is not None:
            self.first_step, (self.state, self.progress) = restored
        self.step = self.first_step
        if jax.process_index() == 0:
            self.announce()
        self.members = [
            Member(
                parts,
                files.of_seed(seed) if parts.seeds.together else files,
                seed,
                first_step=self.first_step,
                writers=writers,
            )
            for seed in parts.seeds.numbers
        ]
        self.task = TASKS[self.config.task]
        self.evaluate = self.task.make_evaluator(parts, self.compiler_options)
        self.diagnose_every = self.config.steps.diagnose_every
        self.diagnose_one = make_diagnosis(parts, self.compiler_options) if self.diagnose_every else None
        self.after_evaluation = jax.jit(parts.seeds.over(parts.schedule.after_evaluation))
        # By the number of updates and the shapes of what they take.
        self.calls: dict[tuple, Any] = {}

    @property
    def promises(self) -> str:
        return promises(self.config.train.determinism)

    @property
    def total(self) -> int:
        return self.config.steps.total

    def announce(self) -> None:
        devices = f"{jax.process_count()} process{'es' * (jax.process_count() > 1)}, {jax.device_count()} devices"
        print(f"from step {self.first_step}, {devices}, determinism {self.promises}", file=sys.stderr, flush=True)

    def of_each(self, tree: Any) -> list[tuple[Member, Any]]:
        """The members, each with its own of a tree of all."""
        return list(zip(self.members, self.parts.seeds.split(tree), strict=True))

    def write_all(self) -> None:
        """Writes what is queued, waiting for the device; raises if the run has to stop."""
        for member, progress in self.of_each(self.progress):
            member.log.drain()
            member.log.check(progress)

    def to_the_end(self, preemption: Preemption) -> None:
        """Runs all steps that are left; raises as `train` does."""
        with self.watchdog.phase("step"):
            self.run_steps(preemption)
        self.saver.finish()

    def run_steps(self, preemption: Preemption) -> None:
        steps, log_every = self.config.steps, self.config.train.log_every
        intervals = (log_every, steps.evaluate_every, steps.checkpoint_every)
        begun = time.perf_counter()
        if self.diagnose_every and self.step == 0:
            self.diagnose()
        while self.step < self.total:
            before = self.step
            until = min(self.total, *(self.step + every - self.step % every for every in intervals))
            stop = self.advance(preemption, self.until_diagnosis(until))
            log_due, evaluation_due, checkpoint_due = (
                self.step % every == 0 or self.step == self.total for every in intervals
            )
            if log_due:
                for member, progress in self.of_each(self.progress):
                    member.log.push(self.step, progress)
                self.progress = self.parts.initial_progress()
            if self.diagnosis_due(before):
                self.diagnose()
            if evaluation_due or checkpoint_due:
                # Both at either: a checkpoint without errors could never be the best. And a checkpoint must not
                # hide a step that the run has to stop at.
                self.write_all()
                with self.not_training():
                    with self.watchdog.phase("evaluation"):
                        errors = self.evaluate_held_out(steer=evaluation_due)
                    if checkpoint_due:
                        self.saver.save(self.step, (self.state, self.progress), errors)
            # After what is due at this step, which a resumed run takes for done.
            if stop and self.step < self.total:
                self.stop_early()
        self.training_seconds = time.perf_counter() - begun - self.other_seconds

    def until_diagnosis(self, stop: int) -> int:
        """The end of the call that reaches the next diagnosis, if that is on the way to `stop`."""
        if not self.diagnose_every:
            return stop
        due = self.step + self.diagnose_every - self.step % self.diagnose_every
        return end_of_call(self.step, due, stop=stop, per_call=self.parts.steps_per_call)

    def diagnosis_due(self, before: int) -> bool:
        """Whether the steps since `before` have reached one at which a diagnosis is due, or the last."""
        every = self.diagnose_every
        return bool(every) and (self.step // every > before // every or self.step == self.total)

    def diagnose(self) -> None:
        """Writes what `make_diagnosis` finds of each member."""
        assert self.diagnose_one is not None
        self.write_all()
        with self.not_training(), self.watchdog.phase("evaluation"):
            for member, state in self.of_each(self.state):
                begun = time.perf_counter()
                found = self.diagnose_one(state)
                seconds = time.perf_counter() - begun
                self.diagnostics_seconds += seconds
                member.writer.write_scalars(self.step, {**found, "diagnostics/seconds": seconds})

    @contextlib.contextmanager
    def not_training(self) -> Iterator[None]:
        """Leaves the time of its block out of the training speed."""
        begun = time.perf_counter()
        yield
        seconds = time.perf_counter() - begun
        self.other_seconds += seconds
        for member in self.members:
            member.log.leave_out(seconds)

    def stop_early(self) -> None:
        """Saves where the run is, and ends it."""
        self.write_all()
        self.saver.save(self.step, (self.state, self.progress), None)
        self.saver.finish()
        raise Preempted(self.step)

    def advance(self, preemption: Preemption, stop: int) -> bool:
        """Dispatches steps up to `stop`, or until the run is to end, and says so; only the first call is waited for."""
        while self.step < stop:
            per_call = self.parts.steps_per_call
            length = per_call if self.step + per_call <= stop else 1
            arguments = (self.state, self.progress, *self.parts.feed.arguments(self.step))
            kind = length, _shapes(arguments[2:])
            if kind not in self.calls:
                self.calls[kind] = self.compile(length, arguments)
            self.state, self.progress = self.calls[kind](*arguments)
            self.step += length
            if not self.times.complete:
                self.first_done(length)
            self.watchdog.beat()
            self.saver.poll()
            if preemption.requested():
                return True
        return False

    def first_done(self, steps: int) -> None:
        jax.block_until_ready(self.progress)
        self.times.end("first_steps")
        if jax.process_index() == 0:
            print(self.times.summary(steps, programs_folder()), file=sys.stderr, flush=True)

    def compile(self, length: int, arguments: tuple) -> Any:
        self.times.end("initialization")
        begun = time.perf_counter()
        with self.not_training(), self.watchdog.phase("compile"):
            compiled = self.parts.make_call(length).lower(*arguments).compile(self.compiler_options)
        self.compile_seconds += time.perf_counter() - begun
        self.times.end("compilation")
        return compiled

    def test_errors(self) -> list[dict[str, dict[str, float]]]:
        """Of each member, loss and errors of the validation and test splits, by split."""
        held_out = [split for split in self.parts.splits if split != "train"]
        return [
            {split: self.evaluate(variables, split) for split in held_out}
            for _, variables in self.of_each(collected(self.state.evaluated_variables, self.parts.mesh))
        ]

    def evaluate_held_out(self, *, steer: bool) -> dict[str, float]:
        """Tests and writes; the best checkpoint goes by the mean of the members' errors.

        A schedule that is to `steer` by its own: not at a checkpoint that comes between evaluations, because a plateau
        is so many evaluations long.
        """
        errors = [
            member.tested(self.step, found) for member, found in zip(self.members, self.test_errors(), strict=True)
        ]
        if steer:
            own = self.parts.seeds.join([jnp.float32(error) for error in errors])
            schedule_state = self.after_evaluation(self.state.schedule_state, own)
            self.state = self.state.replace(schedule_state=replicate(schedule_state, self.parts.mesh))
        return {self.task.error: sum(errors) / len(errors)}

    def finish(self) -> None:
        """Tests the training images, without augmentation, and leaves the records behind."""
        with self.watchdog.phase("evaluation"):
            if not all(member.held_out for member in self.members):
                for member, found in zip(self.members, self.test_errors(), strict=True):
                    member.held_out = found
            variables = self.of_each(collected(self.state.evaluated_variables, self.parts.mesh))
            trained = [self.train_errors(own) for _, own in variables]
        with self.watchdog.phase("save"):
            for (member, state), train in zip(self.of_each((self.state, self.progress)), trained, strict=True):
                member.finish(state, {**train, **self.facts(state[0])})

    def train_errors(self, variables: dict) -> dict[str, Any]:
        if "train" not in self.parts.splits:
            return {}
        found = self.evaluate(variables, "train")
        loss = {"loss": found["loss"]} if "loss" in found else {}
        return {"train": {**loss, "error": found[self.task.error], "count": found["count"]}}

    def facts(self, state: TrainState) -> dict[str, Any]:
        """What the record says of the run itself."""
        images = (self.step - self.first_step) * self.config.train.batch_size
        return {
            "resumed_from_step": self.first_step or None,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            "wall_seconds": time.perf_counter() - self.begun,
            "images_per_second": images / self.training_seconds if images else None,
            "compile_seconds": self.compile_seconds,
            **({"start_seconds": self.times.seconds} if self.times.complete else {}),
            "unreadable_images": int(state.unreadable),
            "pixel_statistics": self.parts.input.source,
            "determinism": self.promises,
            **({"seeds_together": len(self.members)} if self.parts.seeds.together else {}),
            **({"diagnostics_seconds": self.diagnostics_seconds} if self.diagnose_every else {}),
        }


def _shapes(tree: Any) -> tuple:
    return tuple(jnp.shape(leaf) for leaf in jax.tree.leaves(tree))
