"""Configs as a whole: defaults, what is refused, and durations in optimizer steps.

`check` refuses what is unknown, ill-typed, out of range or contradictory; `resolve` adds what depends on the
data and the devices, turns durations into optimizer steps, and freezes. No jax here, so that a typing error
stops at once.
"""

import itertools
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from resnet_jax.config_checks import check_divisible, check_probe, check_together, divisors
from resnet_jax.config_keys import KEYS, TASKS, check_value, keys_of, unknown_key
from resnet_jax.config_rules import unknown


def base_config(task: str = "classification") -> ConfigDict:
    """Returns every key of a task with its default; a config file changes what its recipe changes.

    Raises:
      ValueError: for an unknown task.
    """
    if task not in TASKS:
        raise ValueError(unknown("task", task, TASKS))
    return nest({**{key: rule.default for key, rule in keys_of(task).items()}, "task": task})


def check(config: ConfigDict) -> None:
    """Refuses a config that cannot be meant; whatever needs the data or the devices is left to `resolve`.

    Raises:
      ValueError: an unknown or missing key, a wrong type, a value out of range, an unknown net, or two values
        that contradict each other; the message has the key, its value, and what is allowed.
    """
    values = given_values(config)
    check_names(values, task_of(values))
    for key, value in values.items():
        check_value(key, value)
    check_together(values)
    if "epochs" not in (values["train.unit"], values["schedule.unit"]):
        _derive_steps(values, train_examples=0)


def resolve(config: ConfigDict, *, train_examples: int, device_count: int) -> FrozenConfigDict:
    """Checks the config against the data and the devices, turns durations into steps, and freezes it.

    Args:
      config: from `load_config`, `from_json`, or an earlier `resolve` (its steps are derived anew).
      train_examples: images in the training split.
      device_count: devices that share a batch.

    Returns:
      The config with `steps`: `total`, `warmup`, `boundaries` (a tuple), `evaluate_every`, `checkpoint_every` and
      `diagnose_every` (0: not), all in optimizer steps; and `train_examples`.

    Raises:
      ValueError: as `check`; also a batch that the devices cannot share equally or the split cannot fill.
    """
    check(config)
    values: dict[str, Any] = {
        key: float(value) if KEYS[key].kind == "float" and value is not None else value
        for key, value in given_values(config).items()
    }
    batch_size = values["train.batch_size"]
    check_divisible(batch_size, divisors(values, device_count))
    if batch_size > train_examples:
        key = "data.train_split" if values["task"] == "classification" else "data.train_sets"
        raise ValueError(
            f"train.batch_size={batch_size}: more than the {train_examples} images of {key}={values[key]!r}"
        )
    check_probe(values, train_examples=train_examples, device_count=device_count)
    steps = {**_derive_steps(values, train_examples=train_examples), "steps.train_examples": train_examples}
    return FrozenConfigDict(nest(values | steps))


def differing_keys(a: ConfigDict, b: ConfigDict) -> list[str]:
    """Returns the dotted keys, sorted, whose values differ or that only one of the two has."""
    left, right, missing = flatten(a), flatten(b), object()
    return sorted(key for key in left | right if left.get(key, missing) != right.get(key, missing))


def without_places(config: ConfigDict) -> dict[str, Any]:
    """The config as a plain dict, without where one machine keeps the data; for what is published."""
    values = flatten(config)
    return nest(values | {key: None for key in ("data.data_dir", "data.statistics") if key in values}).to_dict()


def task_of(values: Mapping[str, Any]) -> str:
    """The task of a config's values; ValueError for one that there is not."""
    task = values.get("task", "classification")
    check_value("task", task)
    return task


def check_names(keys: Collection[str], task: str) -> None:
    """Raises ValueError unless the dotted keys are those of the task."""
    known = keys_of(task)
    for key in keys:
        if key not in known:
            raise ValueError(unknown_key(key, task))
    for key in known:
        if key not in keys:
            raise ValueError(f"missing key {key}: start the config file from resnet_jax.config.base_config({task!r})")


def nest(values: Mapping[str, Any]) -> ConfigDict:
    """Returns the config of dotted keys and their values; the reverse of `flatten`."""
    # Types are checked by the table: ConfigDict's own safety would refuse 81.92 where the default is 64000.
    config = ConfigDict(type_safe=False)
    for key, value in values.items():
        section, _, leaf = key.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict(type_safe=False)
        (config[section] if section else config)[leaf] = value
    return config


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Returns dotted keys and their values; lists become tuples."""
    values: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            values |= flatten(value, f"{prefix}{name}.")
        else:
            values[prefix + name] = tuple(value) if isinstance(value, list) else value
    return values


def given_values(config: ConfigDict) -> dict[str, Any]:
    """As `flatten`, without the steps that `resolve` adds."""
    return {key: value for key, value in flatten(config).items() if not key.startswith("steps.")}


# Durations


def _derive_steps(values: Mapping[str, Any], *, train_examples: int) -> dict[str, Any]:
    """Returns the keys of `config.steps`; train_examples counts only where a duration is in epochs."""
    unit, schedule_unit = values["train.unit"], values["schedule.unit"]

    def steps(key: str, duration: int | float, unit: str, total: int = 0) -> int:
        if unit in ("steps", "examples") and duration != int(duration):
            raise ValueError(f"{key}={duration}: must be whole in {unit}; epochs and percent need not")
        if unit == "steps":
            return int(duration)
        if unit == "percent":
            return max(1, round(duration * total / 100))
        examples = duration * train_examples if unit == "epochs" else duration
        return max(1, round(examples / values["train.batch_size"]))

    total = steps("train.duration", values["train.duration"], unit)
    length = values["schedule.warmup_duration"]
    warmup = steps("schedule.warmup_duration", length, schedule_unit, total) if length else 0
    drops = values["schedule.boundaries"] if values["schedule.name"] == "piecewise" else ()
    boundaries = tuple(steps("schedule.boundaries", drop, schedule_unit, total) for drop in drops)
    _check_order(values, total, warmup, boundaries)
    diagnose = values.get("diagnostics.every", 0)
    return {
        "steps.total": total,
        "steps.warmup": warmup,
        "steps.boundaries": boundaries,
        "steps.evaluate_every": steps("evaluate.every", values["evaluate.every"], unit),
        "steps.checkpoint_every": steps("checkpoint.every", values["checkpoint.every"], unit),
        "steps.diagnose_every": steps("diagnostics.every", diagnose, unit) if diagnose else 0,
    }


def _check_order(values: Mapping[str, Any], total: int, warmup: int, boundaries: tuple[int, ...]) -> None:
    unit = values["schedule.unit"]
    training = f"the {total} steps of train.duration={values['train.duration']} {values['train.unit']}"
    given = f"schedule.boundaries={values['schedule.boundaries']} {unit}"
    given += "" if unit == "steps" else f" (steps {boundaries})"
    if any(later <= earlier for earlier, later in itertools.pairwise(boundaries)):
        raise ValueError(f"{given}: must be strictly increasing")
    if boundaries and boundaries[-1] >= total:
        raise ValueError(f"{given}: must be below {training}; without a drop it is schedule.name=constant")
    if warmup and warmup >= (boundaries[0] if boundaries else total):
        limit = f"the first boundary, step {boundaries[0]}" if boundaries else training
        duration = values["schedule.warmup_duration"]
        raise ValueError(f"schedule.warmup_duration={duration} {unit}, {warmup} steps: must be below {limit}")
