"""Which checkpoints of a folder are sound, which is best, which go; a damaged one is set aside, never deleted."""

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path

from resnet_jax import checkpoint_files as files

_log = logging.getLogger(__name__)

METRICS = "metrics.json"


class CheckpointFolder:
    """What is there, chosen by name and metric; nothing is remembered between calls, the folder is the truth.

    Attributes:
      path: of the folder.
      best_metric: lower is better.
      renames: whether what is damaged is renamed, or else passed over.
    """

    def __init__(self, path: Path, *, best_metric: str, renames: bool):
        self.path, self.best_metric, self.renames = path, best_metric, renames

    def ever_used(self) -> bool:
        """Whether a checkpoint was ever completed here, sound or not."""
        return bool(files.step_folders(self.path) or files.damaged_folders(self.path))

    def steps(self) -> list[int]:
        """The steps of those with just the files that were saved, lowest first; their bytes are not compared."""
        folders = files.step_folders(self.path)
        return [step for step in sorted(folders) if files.find_damage(folders[step], hashed=False) is None]

    def from_best(self, steps: list[int]) -> list[int]:
        """Those with a finite metric, the best first."""
        errors = {step: _metrics(self.path / str(step)).get(self.best_metric, math.inf) for step in steps}
        return sorted((step for step in steps if math.isfinite(errors[step])), key=lambda step: (errors[step], -step))

    def latest_sound(self) -> int:
        """The newest whose every byte is as it was saved; raises as `Checkpoints.restore` does if there is none."""
        reasons: dict[str, str] = {}
        while True:
            folders = files.step_folders(self.path)
            step = max((step for step in folders if str(step) not in reasons), default=None)
            if step is None:
                raise self._nothing_sound(reasons)
            damage = files.find_damage(folders[step])
            if damage is None:
                return step
            # It may be gone: a run that is alive deletes what a reader may have begun to verify.
            if os.path.lexists(folders[step]):
                reasons[str(step)] = damage
                self.set_aside(folders[step], damage)

    def sound(self, which: str | int) -> int:
        """A step by its number or "best"; raises unless it is there and not damaged."""
        folders = files.step_folders(self.path)
        if not folders:
            raise self._nothing_sound({})
        step = next(iter(self.from_best(self.steps())), None) if which == "best" else which
        if step is None:
            raise ValueError(
                f"no checkpoint in {self.path} was saved with a finite {self.best_metric!r}, so "
                f'none is best; choose "latest" or one of the steps {self.steps()}'
            )
        if step not in folders:
            raise ValueError(
                f'no checkpoint {which!r} in {self.path}: choose "latest", "best" or one of {self.steps()}'
            )
        step = int(step)
        damage = files.find_damage(folders[step])
        if damage is not None:
            self.set_aside(folders[step], damage)
            others = [other for other in self.steps() if other != step]
            choose = f'choose "latest" or one of {others}' if others else "there is no other"
            raise ValueError(f"checkpoint {step} in {self.path} is damaged: {damage}; {choose}")
        return step

    def set_aside(self, folder: Path, damage: str) -> None:
        """Renames a damaged checkpoint if that may be, and warns of it."""
        fate = "it is passed over"
        if self.renames:
            try:
                fate = f"it is kept as {files.set_aside(folder).name} and not used"
            except OSError as error:
                fate = f"it is passed over, and could not be renamed: {error}"
        _log.warning("checkpoint %s in %s is damaged: %s; %s", folder.name, self.path, damage, fate)

    def _nothing_sound(self, reasons: Mapping[str, str]) -> Exception:
        """The error of a folder without a sound checkpoint; `reasons` by name of those still there."""
        aside = {folder.name: files.find_damage(folder) for folder in files.damaged_folders(self.path)}
        reasons = {**reasons, **{name: damage or "is as it was saved" for name, damage in aside.items()}}
        there = [name for name in reasons if os.path.lexists(self.path / name)]
        if not there:
            return FileNotFoundError(f"there is no checkpoint in {self.path}")
        lines = "\n".join(f"  {name}: {reasons[name]}" for name in there)
        return ValueError(
            f"every checkpoint in {self.path} is damaged:\n{lines}\n"
            "Put a good copy in place of one, with its step alone as name (7, not 7.damaged), or use a new workdir"
        )

    def delete_superseded(self, *, keep_latest: int, keep_best: int) -> None:
        """Deletes what is neither among the latest nor among the best."""
        steps = self.steps()
        kept = {*steps[-keep_latest:], *self.from_best(steps)[:keep_best]}
        for step in steps:
            if step not in kept:
                try:
                    files.delete(self.path / str(step))
                except OSError as error:
                    _log.warning("checkpoint %d in %s could not be deleted: %s", step, self.path, error)


def _metrics(folder: Path) -> dict[str, float]:
    """Those of a checkpoint; none if there are none or they are damaged."""
    try:
        text = files.read_small_file(folder, METRICS)
    except (files.Damage, OSError):
        return {}
    return {} if text is None else json.loads(text)
