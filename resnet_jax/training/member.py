"""One seed of a run: its folder, what is written of it while it trains, and its record."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import FrozenConfigDict

from resnet_jax import config as configs
from resnet_jax.analysis.curves import plot_curves
from resnet_jax.checkpoints import Checkpoints
from resnet_jax.environment import environment, peak_memory
from resnet_jax.parts import Parts
from resnet_jax.records import write_record
from resnet_jax.tasks import TASKS
from resnet_jax.training.metrics_log import MetricsLog
from resnet_jax.workdir import Workdir
from resnet_jax.writers import JsonLinesWriter, MultiWriter, ProgressWriter, TensorBoardWriter

Errors = dict[str, Any]


class Member:
    """A run of one seed is its only member; of several each has a workdir of its own, as if it had trained alone.

    Attributes:
      config: resolved, with this seed alone.
      files: of its workdir.
      writer: of its scalars; of process 0.
      log: of its training.
      held_out: loss and errors by split, of the last test.
    """

    def __init__(self, parts: Parts, files: Workdir, seed: int, *, first_step: int, writers: Sequence[Any] = ()):
        alone = {"seed": seed, "num_seeds": 1}
        self.config = FrozenConfigDict(configs.nest(configs.flatten(parts.config) | alone))
        self.task = TASKS[self.config.task]
        self.files = files
        self.together = parts.seeds.together
        if self.together and jax.process_index() == 0:
            files.path.mkdir(parents=True, exist_ok=True)
            files.claim(self.config, parts.input, parts.data)
        self.writer = MultiWriter(self._open(first_step, writers) if jax.process_index() == 0 else ())
        train = self.config.train
        self.log = MetricsLog(
            self.writer,
            batch_size=train.batch_size,
            most_skipped=0 if train.non_finite == "stop" else train.most_skipped,
            start_step=first_step,
        )
        self.held_out: dict[str, Errors] = {}

    def _open(self, first_step: int, more: Sequence[Any]) -> list[Any]:
        resume, total = first_step or None, self.config.steps.total
        name = f"seed {self.config.seed}" if self.together else ""
        return [
            JsonLinesWriter(self.files.metrics, resume_step=resume),
            TensorBoardWriter(self.files.tensorboard, resume_step=resume),
            ProgressWriter(total, batch_size=self.config.train.batch_size, resume_step=first_step, name=name),
            *more,
        ]

    def tested(self, step: int, errors: dict[str, Errors]) -> float:
        """Writes a test of the held-out splits; returns the error that the schedule and the best checkpoint go by.

        That is the validation error, or else the test error.
        """
        self.held_out = errors
        for split, found in errors.items():
            scalars = {name: value for name, value in found.items() if name != "count" and not isinstance(value, dict)}
            self.writer.write_scalars(step, {f"{split}/{name}": value for name, value in scalars.items()})
        return self._best_by()

    def finish(self, state: Any, record: Mapping[str, Any]) -> None:
        """Writes what the run leaves behind, the record last; of several seeds also this one's state at the end.

        All processes call it together.

        Args:
          state: of this seed, as it is in a checkpoint.
          record: what the run knows; the rest is added.
        """
        step = self.config.steps.total
        if self.together:
            with Checkpoints(self.files.checkpoints, keep_latest=1, keep_best=0) as checkpoints:
                if step not in checkpoints.steps():
                    checkpoints.save(step, state, {self.task.error: self._best_by()})
        if jax.process_index() == 0:
            plot_curves(self.files.metrics, self.files.curves)
            write_record(self.files.record, self._record(record))

    def _best_by(self) -> float:
        return self.held_out.get("validation", self.held_out["test"])[self.task.error]

    def _record(self, known: Mapping[str, Any]) -> dict[str, Any]:
        tested = {
            split: {key: value for key, value in errors.items() if key != "loss"}
            | {"protocol": self.task.protocol(self.config)}
            for split, errors in self.held_out.items()
        }
        return {
            "config": configs.without_places(self.config),
            "model": self.config.model.name,
            "seed": self.config.seed,
            **environment(),
            "steps": self.config.steps.total,
            **tested,
            **known,
            **peak_memory(),
        }
