"""The folder of a run: what is in it, and that it belongs to one config."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from resnet_jax.atomic_files import write_text_atomically
from resnet_jax.config import differing_keys, flatten
from resnet_jax.config_files import from_json, to_json
from resnet_jax.data.input_description import InputDescription

# Where the data lies and how many processes decode it may differ between machines without changing the run, as may how
# long they take.
MAY_DIFFER = ("data.data_dir", "data.statistics", "data.workers", "limits")
# All hosts must have alike, but a run may go on with another: how the state lies on the devices, and what is to be done
# at a fault, of which there was none before it was answered with a stop.
MAY_CHANGE = ("train.sharding", "train.slices", "train.most_skipped", "train.non_finite", "data.unreadable")


class Workdir:
    """Paths of a run's files.

    Attributes:
      path: the folder.
      config: config.json, the resolved config.
      input: input.npz, what the net expects of its input.
      data: data.json, which files the data set has.
      metrics: metrics.jsonl, one line of scalars each time metrics are written.
      tensorboard: folder of TensorBoard events.
      checkpoints: folder of checkpoints.
      record: record.json, written at the end.
      curves: curves.png, training and test error over the steps, drawn at the end.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.input = self.path / "input.npz"
        self.data = self.path / "data.json"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.record = self.path / "record.json"
        self.curves = self.path / "curves.png"

    def of_seed(self, seed: int) -> "Workdir":
        """The workdir of one of several seeds that train together in this one."""
        return Workdir(self.path / f"seed_{seed}")

    def read_config(self) -> Any:
        """The config of the run in this folder; FileNotFoundError if there is none."""
        if not self.config.is_file():
            raise FileNotFoundError(f"{self.path} is not the workdir of a run: it has no {self.config.name}")
        return from_json(self.config.read_text())

    def refuse_other_config(self, config: Any) -> None:
        """Raises ValueError, naming the keys, if the folder belongs to a run with another config."""
        if not self.config.is_file():
            return
        theirs = self.read_config()
        differing = differing_keys(theirs, config)
        free = [key for key in differing if may_differ(key) or key in MAY_CHANGE or key.startswith("steps.")]
        keys = [key for key in differing if key not in free]
        if keys:
            listed = "; ".join(f"{key}: {_value(theirs, key)!r} there, {_value(config, key)!r} now" for key in keys)
            raise ValueError(
                f"the workdir {self.path} was made with another config ({listed}); "
                "choose another workdir, or the same config to go on with this run"
            )

    def refuse_other_data(self, resolved: Any, input: InputDescription, data: str) -> None:
        """Raises ValueError if the folder's run was trained on other images, or more or fewer of them.

        Args:
          resolved: the run's config, with its steps.
          input: what the net expects of its input.
          data: digest of the data set's files.
        """
        there = flatten(self.read_config()) if self.config.is_file() else {}
        now = {key: value for key, value in flatten(resolved).items() if key.startswith("steps.")}
        differing = [f"{key} {there[key]} there, {now[key]} now" for key in now if there.get(key, now[key]) != now[key]]
        if differing:
            raise ValueError(
                f"the run in {self.path} was trained on another number of images ({'; '.join(differing)}); point "
                "data.data_dir at the same data, or choose another workdir"
            )
        if self.input.is_file() and not InputDescription.load(self.input).same_as(input):
            raise ValueError(
                f"the run in {self.path} was trained on other images: their shape, mean or class names differ from "
                "those of the data set found now; point data.data_dir at the same data, or choose another workdir"
            )
        if self.data.is_file() and json.loads(self.data.read_text()) != {"files": data}:
            raise ValueError(
                f"the run in {self.path} was trained on a data set in other files (their names, sizes, numbers of "
                "examples, or of a resident set the pixels, labels or order differ); point data.data_dir at the same "
                "data, or choose another workdir"
            )

    def claim(self, resolved: Any, input: InputDescription, data: str) -> None:
        """Makes the folder this run's own: writes the resolved config, what the net expects of its input, the data."""
        write_text_atomically(self.data, json.dumps({"files": data}) + "\n")
        write_text_atomically(self.config, to_json(resolved))
        input.save(self.input)

    def publish(self, experiment: str | os.PathLike, name: str) -> None:
        """Copies record and metrics to `EXPERIMENT/records/NAME.json` and `NAME.metrics.jsonl`, for `report`."""
        records = Path(experiment) / "records"
        records.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.record, records / f"{name}.json")
        shutil.copyfile(self.metrics, records / f"{name}.metrics.jsonl")


def may_differ(key: str) -> bool:
    """Whether a config key may have another value on another host of a run, or where it goes on."""
    return key in MAY_DIFFER or key.partition(".")[0] in MAY_DIFFER


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        if part not in config:
            return None
        config = config[part]
    return config
