"""The two programs that faults are tried on: this library's `resnet-jax train`, and a plain loop around Orbax."""

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

FOLDER = Path(__file__).resolve().parent
STEPS, CHECKPOINT_EVERY, KEEP = 40, 4, 3

# A stem and one block per stage, on the embedded digits; metrics are counted across checkpoints.
SMALL: dict[str, Any] = {
    "model.name": "cifar_resnet8",
    "model.width": 4,
    "train.batch_size": 64,
    "train.duration": STEPS,
    "train.unit": "steps",
    "train.log_every": 3,
    "evaluate.every": 20,
    "checkpoint.every": CHECKPOINT_EVERY,
    "checkpoint.keep_latest": KEEP,
}


class Trainee:
    """A program that trains in a folder, and goes on there when it is started again.

    Attributes:
      name: in the record.
      unfinished: what is in the checkpoints' folder while one is written, as `Path.glob` takes it.
      item: where in a checkpoint Orbax has the state.
      writes_metrics: of the training, which must be the same, too.
    """

    name: str
    unfinished: str
    item: str
    writes_metrics = False

    def command(self, workdir: Path, changes: Mapping[str, Any], *, hook: str | None = None) -> list[str]:
        """Program and arguments."""
        raise NotImplementedError

    def checkpoints(self, workdir: Path) -> Path:
        return workdir / "checkpoints"

    def steps(self, workdir: Path) -> list[int]:
        """Of what looks like a whole checkpoint, lowest first."""
        folder = self.checkpoints(workdir)
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return sorted(int(name) for name in names if re.fullmatch("[0-9]+", name))

    def is_saving(self, workdir: Path) -> bool:
        """Whether a checkpoint is being written, or was when its process was killed."""
        return any(self.checkpoints(workdir).glob(self.unfinished))

    def digest(self, workdir: Path, step: int) -> str:
        """SHA-256 of a checkpoint's state, read without this library."""
        return digest(read_state(self.checkpoints(workdir) / str(step) / self.item))


class Library(Trainee):
    name, unfinished, item = "resnet_jax", "*.saving*", "state"
    writes_metrics = True
    config = "digits"
    keys: Mapping[str, Any] = SMALL

    def command(self, workdir: Path, changes: Mapping[str, Any], *, hook: str | None = None) -> list[str]:
        keys = {**self.keys, **changes}
        words = ["train", f"--config={self.config}", f"--workdir={workdir}", *keys.pop("flags", ())]
        words += [f"--config.{key}={value}" for key, value in keys.items()]
        program = ["-m", "resnet_jax"] if hook is None else [str(FOLDER / "hooks.py"), hook, "library"]
        return [sys.executable, *program, *words]


class Streamed(Library):
    """This library on images of many sizes, which are decoded while it trains."""

    name, config = "resnet_jax, streamed", "imagenet:paper,resnet18"
    keys: Mapping[str, Any] = {
        **SMALL,
        "model.bn_group_size": 4,
        "train.batch_size": 32,
        "data.name": "colors",
        "data.test_split": "test",
        "data.image_size": 32,
        "data.short_sides": "(32,48)",
        "data.workers": 0,
        "evaluate.image_size": 32,
        "evaluate.short_side": 36,
        "evaluate.batch_size": 16,
        "evaluate.train_split": "train",
    }


class Plain(Trainee):
    name, unfinished, item = "plain Orbax loop", "*.orbax-checkpoint-tmp*", "default"

    def command(self, workdir: Path, changes: Mapping[str, Any], *, hook: str | None = None) -> list[str]:
        changes = {key: value for key, value in {**SMALL, **changes}.items() if key != "flags"}
        program = [str(FOLDER / "plain_orbax.py")] if hook is None else [str(FOLDER / "hooks.py"), hook, "plain"]
        return [sys.executable, *program, f"--workdir={workdir}", f"--changes={json.dumps(changes)}"]


def read_state(folder: Path) -> dict[str, np.ndarray]:
    """All arrays that Orbax has in a folder, by path, as numpy has them."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(folder).item_metadata.tree
        as_numpy = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def digest(state: Mapping[str, np.ndarray]) -> str:
    sha256 = hashlib.sha256()
    for name in sorted(state):
        array = state[name]
        sha256.update(f"{name} {array.dtype} {array.shape}\n".encode() + np.ascontiguousarray(array).tobytes())
    return sha256.hexdigest()


def metrics(workdir: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, without what depends on the machine; a line that a kill has cut off is left out."""
    path = workdir / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [{name: value for name, value in row.items() if name != "train/images_per_second"} for row in rows]


def last_step(workdir: Path) -> int:
    """The last that metrics were written of, which is at most a few before the last that was done."""
    return max((int(row["step"]) for row in metrics(workdir)), default=0)
