"""Checkpoints of a run: the latest few and the best few, written while training goes on.

The only file that knows Orbax. A checkpoint is a folder named by its step. Orbax writes it under another name
and renames it when all of it is there, so a killed save leaves nothing that looks like a checkpoint.
"""

import math
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsFloat

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

_LISTED_MISMATCHES = 20


class Checkpoints:
    """The checkpoints in one folder. Every process of a run makes the same calls, from its main thread.

    A save that fails after `save` has returned is reported by the next call of any method, as a RuntimeError
    that names its step. That checkpoint is then gone, the older ones are kept, and later saves work.
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
        """
        for name, value, lowest in (("keep_latest", keep_latest, 1), ("keep_best", keep_best, 0)):
            if value < lowest:
                raise ValueError(f"{name}={value}: must be at least {lowest}")
        self._directory = Path(directory).absolute()
        if read_only and not self._directory.is_dir():
            raise FileNotFoundError(f"there is no checkpoint folder {self._directory}")
        self._keep_latest, self._keep_best = keep_latest, keep_best
        self._best_metric, self._read_only = best_metric, read_only
        self._saving: int | None = None
        self._closed = False
        if not read_only:
            _remove_unfinished(self._directory)
        self._orbax = self._open()

    def save(self, step: int, state: Any, metrics: Mapping[str, SupportsFloat] | None = None) -> None:
        """Starts to save a state; the caller may donate its arrays as soon as this returns.

        Waits for the save before. What is not among the latest or the best any more is deleted afterwards.

        Args:
          step: optimizer steps done.
          state: a pytree of arrays, typed PRNG keys among them.
          metrics: numbers to keep with it, `best_metric` among them; None if nothing was measured at this
            step.

        Raises:
          ValueError: the step is saved already, `best_metric` is missing from the metrics, or the folder is
            read-only.
          RuntimeError: an earlier save has failed, or this one at once.
        """
        if self._read_only:
            raise ValueError(f"the checkpoints in {self._directory} were opened with read_only=True")
        if metrics is not None and self._best_metric not in metrics:
            raise ValueError(f"metrics {sorted(metrics)} lack {self._best_metric!r}, which decides what is best")
        if step in self.steps():
            raise ValueError(f"step {step} is saved already in {self._directory}")
        numbers = None if metrics is None else {name: float(value) for name, value in metrics.items()}
        self._saving = step
        try:
            # Orbax holds a host copy of every array when this returns, or (CPU) a view that makes jax decline
            # to donate the buffer; tests/test_checkpoints.py holds it to that.
            self._orbax.save_async(step, state, force=True, metrics=numbers)
        except Exception as error:
            self._give_up_save(error)

    def restore(self, which: str | int, like: Any) -> tuple[int, Any]:
        """Reads a checkpoint.

        Args:
          which: "latest", "best" or a step.
          like: a pytree of arrays, or of `jax.ShapeDtypeStruct` with a sharding each: the structure, shapes,
            dtypes and shardings wanted. The devices may be others than those that saved it.

        Returns:
          The step, and the state with the very bits that were saved.

        Raises:
          FileNotFoundError: there is no checkpoint at all.
          ValueError: there is none of that step or none with a metric; an entry of `like` has no sharding;
            the stored state has other entries, shapes or dtypes (all are listed); or its files are damaged.
        """
        step = self._resolve(which)
        wanted = jax.tree_util.tree_map_with_path(_abstract, like)
        where = f"checkpoint {step} in {self._directory}"
        try:
            stored = self._orbax.metadata(step).metadata
        except Exception as error:
            raise ValueError(f"{where} cannot be read: {error}") from error
        if stored is None:
            raise ValueError(f"{where} cannot be read: the description of its arrays is damaged")
        mismatches = _mismatches(_described(stored), _described(wanted))
        if mismatches:
            more = len(mismatches) - _LISTED_MISMATCHES
            listed = mismatches[:_LISTED_MISMATCHES] + ([f"and {more} more"] if more > 0 else [])
            raise ValueError(f"{where} does not fit:\n  " + "\n  ".join(listed))
        try:
            loaded = self._orbax.load(step, wanted)
        except Exception as error:
            raise ValueError(f"{where} cannot be read: {error}") from error
        # Orbax gives typed keys an equivalent sharding that does not compare equal.
        return step, jax.tree.map(_placed, loaded, wanted)

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, lowest first; waits for a save in progress."""
        return [checkpoint.step for checkpoint in self._complete()]

    def latest_step(self) -> int | None:
        """The last step saved; None if there is none."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step with the lowest finite `best_metric`, the latest of equal ones; None if none has it."""
        errors = [(self._error(checkpoint.metrics), -checkpoint.step) for checkpoint in self._complete()]
        error, negative_step = min(errors, default=(math.inf, 0))
        return -negative_step if math.isfinite(error) else None

    def wait(self) -> None:
        """Waits until the save in progress is on the disk.

        Raises:
          RuntimeError: it has failed.
        """
        try:
            self._orbax.wait()
        except Exception as error:
            self._give_up_save(error)
        self._saving = None

    def close(self) -> None:
        """Waits, and lets go of threads; a second call does nothing.

        Raises:
          RuntimeError: the last save has failed.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self.wait()
        finally:
            self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except RuntimeError as failed_save:
            if error is None:
                raise
            # The error that ends the block is the one its caller handles; the save's goes along with it.
            error.add_note(str(failed_save))

    def _open(self) -> ocp.training.Checkpointer:
        policies = ocp.training.preservation_policies
        # BestN sorts and keeps the end of the list, so reverse=True keeps the lowest.
        best = policies.BestN(
            get_metric_fn=self._error, reverse=True, n=self._keep_best, keep_checkpoints_without_metrics=False
        )
        return ocp.training.Checkpointer(
            self._directory,
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(self._keep_latest), best]),
        )

    def _complete(self) -> list[Any]:
        self.wait()
        return [checkpoint for checkpoint in self._orbax.checkpoints if _is_complete(Path(checkpoint.path))]

    def _error(self, metrics: Mapping[str, float] | None) -> float:
        error = (metrics or {}).get(self._best_metric, math.inf)
        return error if math.isfinite(error) else math.inf

    def _resolve(self, which: str | int) -> int:
        steps = self.steps()
        if not steps:
            raise FileNotFoundError(f"there is no checkpoint in {self._directory}")
        if which == "latest":
            return steps[-1]
        if which == "best":
            best = self.best_step()
            if best is None:
                raise ValueError(
                    f"no checkpoint in {self._directory} was saved with a finite {self._best_metric!r}, so "
                    f'none is best; choose "latest" or one of the steps {steps}'
                )
            return best
        if which not in steps:
            raise ValueError(f'no checkpoint {which!r} in {self._directory}: choose "latest", "best" or one of {steps}')
        return int(which)

    def _give_up_save(self, error: Exception) -> None:
        """Opens the folder anew, which forgets the step, and raises."""
        step, self._saving = self._saving, None
        self._orbax.close()
        # What is left of it fills a full disk still more. If it resists, the next start removes it, and the
        # error to report is the save's.
        with suppress(OSError):
            _remove_unfinished(self._directory)
        self._orbax = self._open()
        raise RuntimeError(f"the checkpoint of step {step} could not be saved: {error}") from error


def _is_complete(folder: Path) -> bool:
    return all(
        (folder / name).is_file() for name in ("_CHECKPOINT_METADATA", "state/_METADATA", "state/manifest.ocdbt")
    )


def _remove_unfinished(directory: Path) -> None:
    """Removes killed saves, and what a kill left of a checkpoint that was being deleted.

    Orbax would count the latter among the latest, and push a good one out. It can remove the former, but does
    so in a thread that outlives `close`, and could take the files of a new save with it. No process starts to
    save before the first one is through here.
    """
    if jax.process_index() != 0 or not directory.is_dir():
        return
    for folder in directory.iterdir():
        if ".orbax-checkpoint-tmp" in folder.name or (folder.name.isdigit() and not _is_complete(folder)):
            shutil.rmtree(folder)


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


def _mismatches(stored: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    lines = []
    for name in sorted(stored.keys() | wanted.keys()):
        there, here = stored.get(name, "nothing"), wanted.get(name, "nothing")
        if there != here:
            lines.append(f"{name}: stored {there}, wanted {here}")
    return lines
