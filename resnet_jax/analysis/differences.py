"""What tells the runs of an experiment apart: the config keys in which they differ, as columns and as labels."""

from collections.abc import Mapping, Sequence
from typing import Any

from resnet_jax.config_keys import KEYS

_SECTIONS = ("model.", "data.", "train.", "optimizer.", "schedule.")
# What a table has anyway, and what follows from the length of a run or from the machine.
_LEFT_OUT = (
    *("model.name", "data.data_dir", "data.statistics", "data.workers", "data.test_sets"),
    *("train.duration", "train.unit", "train.log_every", "train.steps_per_dispatch", "train.slices"),
    *("schedule.unit", "schedule.boundaries", "schedule.warmup_duration"),
)
_MANY = 60


def differing_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The config keys, in the order of `KEYS`, in which some of the runs differ.

    Args:
      configs: of records; what one does not say has its default, as in a record that is older than a key.

    Returns:
      Dotted keys, without the net's name, and without those that follow from the length of the run or the machine.
    """
    shown = [key for key in KEYS if key.startswith(_SECTIONS) and key not in _LEFT_OUT]
    return [key for key in shown if any(value_of(config, key) != value_of(configs[0], key) for config in configs)]


def value_of(config: Mapping[str, Any], key: str) -> Any:
    """What a record's config says of a dotted key, or the key's default."""
    section, _, name = key.partition(".")
    value = config.get(section, {}).get(name, KEYS[key].default)
    return tuple(value) if isinstance(value, list) else value


def header_of(key: str) -> str:
    """A column's header: the key's own name in words."""
    return key.rpartition(".")[2].replace("_", " ")


def cell_of(value: Any) -> str:
    """A value in a table; what is left to the net's name is a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _MANY else f"{text[:_MANY]}..."


def label_of(config: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The values of those keys that are not the default, for the legend of a figure; "" if there is none."""
    own = ((key, value_of(config, key)) for key in keys)
    return ", ".join(
        header_of(key) if value is True else f"{header_of(key)} {cell_of(value)}"
        for key, value in own
        if value != KEYS[key].default
    )
