"""What nets cost to train and to test, beside the errors of an experiment's table."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet_jax.analysis.differences import value_of
from resnet_jax.config_keys import KEYS

FILE = "costs.json"
COLUMNS = ("multiply-adds, M", "ms a step", "ms a test image", "planned MB")
# Of the net; the rest changes how it is trained, and neither its arithmetic nor its memory.
_OF_NET = tuple(key for key in KEYS if key.startswith("model."))


def net_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of its net and of the images of a step: what a cost belongs to."""
    return {key: value_of(config, key) for key in (*_OF_NET, "data.name", "train.batch_size")}


def read_costs(folder: Path) -> list[dict[str, Any]]:
    """The rows of an experiment's `costs.json`, see `benchmark.costs.cost_of`; none where there is no such file."""
    path = folder / FILE
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []


def cells_of(config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The cells under `COLUMNS` for the net of a record's config; empty ones where it was not measured."""
    net = net_of(config)
    for row in rows:
        if row["net"] == net:
            train, test = row["train"], row["test"]
            milliseconds = (1e3 * train["batch_seconds"]["median"], 1e3 / test["images_per_second"])
            numbers = (row["multiply_adds"] / 1e6, *milliseconds, train["planned_bytes"] / 1e6)
            # Three digits, or all of a whole number.
            return tuple(f"{number:,.{max(0, 2 - len(str(int(number))) + 1)}f}" for number in numbers)
    return ("",) * len(COLUMNS)
