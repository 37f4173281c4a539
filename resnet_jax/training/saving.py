"""When a run's state goes to the disk, what may not, and what a failure to save means for the run."""

import logging
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from resnet_jax.checkpoints import CheckpointError, Checkpoints
from resnet_jax.hosts.fingerprint import make_replica_check
from resnet_jax.training.watchdog import Watchdog

_log = logging.getLogger(__name__)


class ReplicasDiffer(Exception):
    """Devices that must hold the same state do not: one of them has computed or kept something wrong."""


class Saver:
    """Saves a run's state. A failure is reported and training goes on; only that of the last save ends the run.

    Before a state is saved, and so at every checkpoint, all devices' copies of it are compared: none that went astray
    reaches the disk. What is divided among the devices of a single slice has no copies.

    Args:
      checkpoints: of the run.
      watchdog: has a phase "save".
      mesh: the devices that hold copies.
    """

    def __init__(self, checkpoints: Checkpoints, watchdog: Watchdog, mesh: Mesh):
        self._checkpoints, self._watchdog = checkpoints, watchdog
        self._find_astray = make_replica_check(mesh) if mesh.size > 1 else None
        self._begun: int | None = None
        self._failed: CheckpointError | None = None

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """The newest checkpoint that is sound, as `Checkpoints.restore_latest`."""
        with self._watchdog.phase("save"):
            return self._checkpoints.restore_latest(like)

    def save(self, step: int, state: Any, errors: Mapping[str, float] | None) -> None:
        """Starts to save, unless this step's state is saved already.

        Raises:
          ReplicasDiffer: a device's copy is not that of the others; nothing is saved.
        """
        self._settle()
        if self._begun == step and self._failed is None:
            return
        with self._watchdog.phase("save"):
            self._compare(step, state)
            try:
                self._checkpoints.save(step, state, errors)
                self._begun, self._failed = step, None
            except CheckpointError as error:
                self._report(error)

    def poll(self) -> None:
        """Reports a save that has failed by now; costs nothing and waits for nothing."""
        try:
            self._checkpoints.check()
        except CheckpointError as error:
            self._report(error)

    def finish(self) -> None:
        """Waits for the last save; raises its CheckpointError if it has failed."""
        self._settle()
        if self._failed is not None:
            raise self._failed

    def _settle(self) -> None:
        with self._watchdog.phase("save"):
            try:
                self._checkpoints.wait()
            except CheckpointError as error:
                self._report(error)

    def _report(self, error: CheckpointError) -> None:
        self._failed = error
        _log.error("%s; those before it are kept, and training goes on to the next", error)

    def _compare(self, step: int, state: Any) -> None:
        if self._find_astray is None:
            return
        if astray := self._find_astray(state):
            raise ReplicasDiffer(
                f"step {step}: the state on {', '.join(map(str, astray))} is not that of the other devices, so one of "
                "them has computed or kept something wrong. It was not saved; the same command goes on from the last "
                "checkpoint. If it happens again there, leave that machine out"
            )
