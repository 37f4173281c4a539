"""Checkpoints of a run: the latest few and the best few, written while training goes on, verified before use.

The only file that knows Orbax, which neither notices a flipped bit nor falls back from a checkpoint that is broken.
So each is stored with the sizes and SHA-256 of its files; `checkpoint_files` says how, and what a folder's name means.
"""

import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsFloat

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from resnet_jax import checkpoint_files as files
from resnet_jax.atomic_files import write_text_atomically
from resnet_jax.checkpoint_folder import METRICS, CheckpointFolder
from resnet_jax.hosts.task import SharedTask

_LISTED_MISMATCHES = 20
_SPARE_SPACE = 0.1
# Another process's part may be later by as much as its host is slower.
_PEER_SECONDS = 600.0
_REFUSED = -1


class CheckpointError(RuntimeError):
    """A checkpoint could not be saved. Nothing is left of it, those before it are kept, and later saves work.

    Attributes:
      step: of the checkpoint.
      cause: why.
    """

    def __init__(self, step: int, cause: Exception):
        super().__init__(f"the checkpoint of step {step} could not be saved: {cause}")
        self.step, self.cause = step, cause


class Checkpoints:
    """The checkpoints in one folder. Every process of a run makes the same calls, from its main thread.

    A save that fails after `save` has returned is reported once, as a CheckpointError, by the next call of any method.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        keep_latest: int = 2,
        keep_best: int = 1,
        best_metric: str = "error_top1",
        read_only: bool = False,
    ):
        """Opens the folder, makes it if need be, and removes what a killed run left unfinished.

        Args:
          directory: the folder, used by one run at a time.
          keep_latest: how many of the latest checkpoints stay; at least 1.
          keep_best: how many of those with the lowest `best_metric` stay besides; of equal ones the latest is
            best, and one saved without metrics or with a non-finite one is never best.
          best_metric: a key of `save`'s metrics; lower is better.
          read_only: leave the folder as it is, for instance while another process trains in it.

        Raises:
          ValueError: a number of checkpoints is too small.
          FileNotFoundError: read_only, and there is no such folder.
          PermissionError: not read_only, and the folder cannot be written to.
        """
        for name, value, lowest in (("keep_latest", keep_latest, 1), ("keep_best", keep_best, 0)):
            if value < lowest:
                raise ValueError(f"{name}={value}: must be at least {lowest}")
        self._directory = Path(directory).absolute()
        self._keep = {"keep_latest": keep_latest, "keep_best": keep_best}
        self._best_metric, self._read_only = best_metric, read_only
        self._saving: _Saving | None = None
        if read_only:
            if not self._directory.is_dir():
                raise FileNotFoundError(f"there is no checkpoint folder {self._directory}")
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        if not os.access(self._directory, os.W_OK | os.X_OK):
            raise PermissionError(f"the checkpoint folder {self._directory} cannot be written to")
        # No process starts to save before the first one is through here.
        if jax.process_index() == 0:
            files.remove_unfinished(self._directory)

    @property
    def _folder(self) -> CheckpointFolder:
        renames = not self._read_only and jax.process_index() == 0
        return CheckpointFolder(self._directory, best_metric=self._best_metric, renames=renames)

    def save(self, step: int, state: Any, metrics: Mapping[str, SupportsFloat] | None = None) -> None:
        """Starts to save a state; the caller may donate its arrays as soon as this returns.

        Waits for the save before. When this one is on the disk, what is not among the latest or the best any more is
        deleted.

        Args:
          step: optimizer steps done.
          state: a pytree of arrays, typed PRNG keys among them.
          metrics: numbers to keep with it, `best_metric` among them; None if nothing was measured at this
            step.

        Raises:
          ValueError: the step is saved already, `best_metric` is missing from the metrics, or the folder is
            read-only.
          CheckpointError: an earlier save has failed; or this one at once, for instance because the disk has less room
            than the arrays take and a tenth more.
        """
        if self._read_only:
            raise ValueError(f"the checkpoints in {self._directory} were opened with read_only=True")
        if metrics is not None and self._best_metric not in metrics:
            raise ValueError(f"metrics {sorted(metrics)} lack {self._best_metric!r}, which decides what is best")
        self.wait()
        folder = files.step_folders(self._directory).get(step)
        if folder is not None:
            damage = files.find_damage(folder, hashed=False)
            if damage is None:
                raise ValueError(f"step {step} is saved already in {self._directory}")
            self._folder.set_aside(folder, damage)
        numbers = None if metrics is None else {name: float(value) for name, value in metrics.items()}
        # Of a save that failed: some of Orbax's writers were still at work when it was removed.
        self._remove_unfinished()
        task = SharedTask()
        try:
            _from_process_0(lambda: _require_space(self._directory, state))
            # Orbax holds a host copy of every array when this returns, or (CPU) a view that makes jax decline
            # to donate the buffer; tests/test_checkpoints.py holds it to that.
            response = ocp.save_async(files.saving_folder(self._directory, step), state)
        except Exception as error:
            task.give_up(error)
            self._remove_unfinished()
            raise CheckpointError(step, error) from error
        self._saving = _Saving(step, lambda: self._finish(step, response, numbers, task))
        self._saving.start()

    def restore(self, which: str | int, like: Any) -> tuple[int, Any]:
        """Reads a checkpoint, after every byte of it was compared with what was saved.

        One that is damaged is renamed, never deleted, and a warning says what is wrong with it: `7` becomes
        `7.damaged`. With read_only it is passed over.

        Args:
          which: "latest", the newest that is not damaged; "best"; or a step.
          like: a pytree of arrays, or of `jax.ShapeDtypeStruct` with a sharding each: the structure, shapes,
            dtypes and shardings wanted. The devices may be others than those that saved it.

        Returns:
          The step, and the state with the very bits that were saved.

        Raises:
          FileNotFoundError: there is no checkpoint at all.
          ValueError: there is none of that step or none with a metric; it is damaged, or all are; an entry of `like`
            has no sharding; or the stored state has other entries, shapes or dtypes (they are listed).
          CheckpointError: an earlier save has failed.
        """
        self.wait()
        wanted = jax.tree_util.tree_map_with_path(_abstract, like)
        step = _from_process_0(lambda: self._folder.latest_sound() if which == "latest" else self._folder.sound(which))
        return step, _load(self._directory, step, wanted)

    def restore_latest(self, like: Any) -> tuple[int, Any] | None:
        """As `restore("latest", like)`; None if no checkpoint was ever completed in the folder, sound or not."""
        self.wait()
        if not _from_process_0(lambda: int(self._folder.ever_used())):
            return None
        return self.restore("latest", like)

    def steps(self) -> list[int]:
        """The steps of all checkpoints, lowest first; waits for a save in progress.

        Those with a file too many, too few or of another size are left out; bytes are compared by `restore` only.
        """
        self.wait()
        return self._folder.steps()

    def best_step(self) -> int | None:
        """The step with the lowest finite `best_metric`, the latest of equal ones; None if none has it."""
        self.wait()
        return next(iter(self._folder.from_best(self._folder.steps())), None)

    def check(self) -> None:
        """Raises the CheckpointError of a save in progress that has failed; does not wait, and costs nothing."""
        if self._saving is not None and self._saving.error is not None:
            self.wait()

    def wait(self) -> None:
        """Waits until the save in progress is on the disk.

        Raises:
          CheckpointError: it has failed.
        """
        saving = self._saving
        if saving is None:
            return
        saving.join()
        self._saving = None
        if saving.error is not None:
            raise CheckpointError(saving.step, saving.error) from saving.error

    def close(self) -> None:
        """Waits as `wait` does, and raises what it does."""
        self.wait()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except CheckpointError as failed_save:
            if error is None:
                raise
            # The error that ends the block is the one its caller handles; the save's goes along with it.
            error.add_note(str(failed_save))

    def _finish(self, step: int, response: Any, metrics: Mapping[str, float] | None, task: SharedTask) -> None:
        """Waits for Orbax and completes the checkpoint; runs beside the training."""
        process, processes = jax.process_index(), jax.process_count()
        written, final = files.saving_folder(self._directory, step), self._directory / str(step)
        try:
            response.result()
            if process == 0 and metrics is not None:
                write_text_atomically(written / METRICS, json.dumps(metrics))
            files.write_manifest(written, process=process, processes=processes)
            if process == 0:
                _wait_for_peers(lambda: files.has_all_manifests(written, processes), task)
                # Runs that are killed one after another before the deletion below would else fill the disk.
                self._folder.delete_superseded(**self._keep)
                files.commit(written, final)
            else:
                _wait_for_peers(final.is_dir, task)
        except Exception as error:
            task.give_up(error)
            # What is left of it fills a full disk still more.
            self._remove_unfinished()
            # What another process has removed since it failed is not the reason.
            task.check()
            raise
        if process == 0:
            # A process that heard late of an earlier save's failure may have written into its folder since.
            self._remove_unfinished()
            self._folder.delete_superseded(**self._keep)

    def _remove_unfinished(self) -> None:
        # If something resists, the next start removes it; the error to report is the save's.
        if jax.process_index() == 0:
            with suppress(OSError):
                files.remove_unfinished(self._directory)


class _Saving(threading.Thread):
    """Completes a save in the background; `error` is set last of all if it fails."""

    def __init__(self, step: int, finish: Callable[[], None]):
        super().__init__(name=f"checkpoint {step}")
        self.step = step
        self.error: Exception | None = None
        self._finish = finish

    def run(self) -> None:
        try:
            self._finish()
        except Exception as error:
            self.error = error


def _require_space(directory: Path, state: Any) -> int:
    # All processes write to the same disk, so what counts is the whole state and not one process's part.
    size = sum(leaf.nbytes if hasattr(leaf, "nbytes") else np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state))
    needed, free = math.ceil(size * (1 + _SPARE_SPACE)), shutil.disk_usage(directory).free
    if free < needed:
        raise OSError(f"{directory} has {free:,} bytes free, and {needed:,} are needed")
    return free


def _from_process_0(compute: Callable[[], int]) -> int:
    """What the first process computes, on every process; if it fails there, it fails on all."""
    if jax.process_count() == 1:
        return compute()
    result = _REFUSED
    failure: Exception = ValueError("process 0 has refused; its message says why")
    if jax.process_index() == 0:
        try:
            result = compute()
        except Exception as error:
            failure = error
    result = int(multihost_utils.broadcast_one_to_all(np.int64(result)))
    if result == _REFUSED:
        raise failure
    return result


def _wait_for_peers(ready: Callable[[], bool], task: SharedTask) -> None:
    deadline = time.monotonic() + _PEER_SECONDS
    while not ready():
        task.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"another process has not written its part within {_PEER_SECONDS:.0f} s")
        time.sleep(0.05)


def _load(directory: Path, step: int, wanted: Any) -> Any:
    """Reads what was verified; `wanted` is from `_abstract`."""
    folder, where = directory / str(step), f"checkpoint {step} in {directory}"
    try:
        stored = ocp.metadata(folder).metadata
    except Exception as error:
        raise ValueError(f"{where} cannot be read: {error}") from error
    mismatches = _mismatches(_described(stored), _described(wanted))
    if mismatches:
        raise ValueError(
            f"{where} does not fit the wanted state:\n{mismatches}\n"
            "A new workdir can start from its weights: resnet-jax convert --workdir=WORKDIR NAME.safetensors, "
            "then resnet_jax.load_partial"
        )
    try:
        loaded = ocp.load(folder, wanted)
    except Exception as error:
        raise ValueError(f"{where} cannot be read: {error}") from error
    # Orbax gives typed keys an equivalent sharding that does not compare equal.
    return jax.tree.map(_placed, loaded, wanted)


def _abstract(path: tuple, leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return leaf
    if leaf.sharding is None:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        raise ValueError(f"like has no sharding for {name}: without one, where it is restored to would be a guess")
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _placed(leaf: Any, wanted: Any) -> Any:
    return jax.device_put(leaf, wanted.sharding) if isinstance(wanted, jax.ShapeDtypeStruct) else leaf


def _described(tree: Any) -> dict[str, str]:
    """Shape and dtype of every leaf by its path; a typed PRNG key as the integers it is stored as."""
    described = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if not hasattr(leaf, "dtype"):
            leaf = np.asarray(leaf)
        elif jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        described[name] = f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
    return described


def _mismatches(stored: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """A table of what differs; "" if nothing does."""
    rows = [(name, stored.get(name, "nothing"), wanted.get(name, "nothing")) for name in sorted({*stored, *wanted})]
    rows = [row for row in rows if row[1] != row[2]]
    if not rows:
        return ""
    table = [("path", "stored", "wanted"), *rows[:_LISTED_MISMATCHES]]
    path, column, _ = (max(map(len, texts)) for texts in zip(*table, strict=True))
    lines = [f"  {name:{path}}  {there:{column}}  {here}" for name, there, here in table]
    more = len(rows) - _LISTED_MISMATCHES
    return "\n".join(lines + [f"  and {more} more"] * (more > 0))
