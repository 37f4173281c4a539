"""Configs as a whole: defaults, what contradicts what, and durations in optimizer steps.

`check` refuses what is unknown, ill-typed, out of range or contradictory; `resolve` adds what depends on the
data and the devices, turns durations into optimizer steps, and freezes. No jax here, so that a typing error
stops at once.
"""

import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from resnet_jax.config_keys import KEYS, check_value, unknown_key
from resnet_jax.models.names import settings_of


def base_config() -> ConfigDict:
    """Returns every key with its default; a config file changes what its recipe changes."""
    return nest({key: rule.default for key, rule in KEYS.items()})


def check(config: ConfigDict) -> None:
    """Refuses a config that cannot be meant; whatever needs the data or the devices is left to `resolve`.

    Raises:
      ValueError: an unknown or missing key, a wrong type, a value out of range, an unknown net, or two values
        that contradict each other; the message has the key, its value, and what is allowed.
    """
    values = given_values(config)
    check_names(values)
    for key, value in values.items():
        check_value(key, value)
    options = config.model.to_dict()
    settings_of(options.pop("name"), options)
    _check_contradictions(values)
    _check_splits(values)
    if "epochs" not in (values["train.unit"], values["schedule.unit"]):
        _derive_steps(values, train_examples=0)


def resolve(config: ConfigDict, *, train_examples: int, device_count: int) -> FrozenConfigDict:
    """Checks the config against the data and the devices, turns durations into steps, and freezes it.

    Args:
      config: from `load_config`, `from_json`, or an earlier `resolve` (its steps are derived anew).
      train_examples: images in the training split.
      device_count: devices that share a batch.

    Returns:
      The config with `steps`: `total`, `warmup`, `boundaries` (a tuple), `evaluate_every` and
      `checkpoint_every`, all in optimizer steps; and `train_examples`.

    Raises:
      ValueError: as `check`; also a batch that the devices cannot share equally or the split cannot fill.
    """
    check(config)
    values: dict[str, Any] = {
        key: float(value) if KEYS[key].kind == "float" and value is not None else value
        for key, value in given_values(config).items()
    }
    batch_size = values["train.batch_size"]
    _check_divisible(batch_size, _divisors(values, device_count))
    if batch_size > train_examples:
        raise ValueError(
            f"train.batch_size={batch_size}: more than the {train_examples} images of "
            f"data.train_split={values['data.train_split']!r}"
        )
    steps = {**_derive_steps(values, train_examples=train_examples), "steps.train_examples": train_examples}
    return FrozenConfigDict(nest(values | steps))


def differing_keys(a: ConfigDict, b: ConfigDict) -> list[str]:
    """Returns the dotted keys, sorted, whose values differ or that only one of the two has."""
    left, right, missing = flatten(a), flatten(b), object()
    return sorted(key for key in left | right if left.get(key, missing) != right.get(key, missing))


def without_places(config: ConfigDict) -> dict[str, Any]:
    """The config as a plain dict, without where one machine keeps the data; for what is published."""
    return nest(flatten(config) | {"data.data_dir": None, "data.statistics": None}).to_dict()


def check_names(keys: Collection[str]) -> None:
    """Raises ValueError unless the dotted keys are those of `KEYS`."""
    for key in keys:
        if key not in KEYS:
            raise ValueError(unknown_key(key))
    for key in KEYS:
        if key not in keys:
            raise ValueError(f"missing key {key}: start the config file from resnet_jax.config.base_config()")


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


# Several values together


def _check_contradictions(values: Mapping[str, Any]) -> None:
    if values["optimizer.nesterov"] and values["optimizer.momentum"] == 0:
        raise ValueError("optimizer.nesterov=True: needs optimizer.momentum above 0")
    if values["optimizer.nesterov"] and values["optimizer.name"] != "sgd":
        raise ValueError(f"optimizer.nesterov=True: needs optimizer.name=sgd, not {values['optimizer.name']}")
    parts = values["train.accumulation_steps"]
    if parts > 1 and values["model.bn_group_size"] is None and values["model.norm"] != "frozen":
        raise ValueError(
            f"train.accumulation_steps={parts}: needs model.bn_group_size (32 in the paper), so that batch statistics "
            "are the same as in one large step"
        )
    if values["train.non_finite"] == "stop" and (most := values["train.most_skipped"]) != (
        KEYS["train.most_skipped"].default
    ):
        raise ValueError(f"train.most_skipped={most}: needs train.non_finite=skip, not stop")
    if values["train.slices"] is not None and values["train.sharding"] == "none":
        raise ValueError(
            f"train.slices={values['train.slices']}: needs train.sharding=optimizer or parameters, not none"
        )
    if values["train.determinism"] == "topology":
        if values["model.norm"] == "frozen":
            raise ValueError(
                "train.determinism=topology: works by batch norm's groups, which model.norm=frozen has not"
            )
        if values["schedule.name"] == "plateau":
            raise ValueError(
                "train.determinism=topology: not with schedule.name=plateau, whose drops follow test errors, and those "
                "may differ by rounding; choose piecewise or cosine"
            )
        if values["model.bn_group_size"] is None:
            raise ValueError(
                "train.determinism=topology: needs model.bn_group_size (32 in the paper), the examples that are never "
                "split: at most a device's share of the batch"
            )
        if (sharding := values["train.sharding"]) != "none":
            raise ValueError(
                f"train.sharding={sharding}: must be none with train.determinism=topology, because norms and averages "
                "of divided arrays round differently"
            )
        if parts > 1:
            raise ValueError(
                f"train.accumulation_steps={parts}: must be 1 with train.determinism=topology, which works through a "
                "device's groups one after the other anyway"
            )
    _check_divisible(values["train.batch_size"], _divisors(values, 1))
    _check_schedule(values)
    _check_pipeline(values)
    _check_seeds(values)


def _check_seeds(values: Mapping[str, Any]) -> None:
    count, last = values["num_seeds"], values["seed"] + values["num_seeds"] - 1
    if count == 1:
        return
    below = KEYS["seed"].below
    if below is not None and last >= below:
        raise ValueError(f"num_seeds={count}: the last seed would be {last}, and must be below {below}")
    # A streamed image is decoded for one seed's view of it.
    for key, needed in (("data.pipeline", "resident"), ("train.sharding", "none")):
        if (value := values[key]) != needed:
            raise ValueError(f"num_seeds={count}: needs {key}={needed}, not {value}")
    if values["train.determinism"] == "topology":
        raise ValueError(f"num_seeds={count}: must be 1 with train.determinism=topology")


def _divisors(values: Mapping[str, Any], device_count: int) -> dict[str, int]:
    """What the batch size is to be a multiple of, by name."""
    parts, group = values["train.accumulation_steps"], values["model.bn_group_size"]
    if parts > 1 or values["train.determinism"] == "topology":
        # Each device's share of each part holds whole groups.
        factors = {"devices": device_count, "train.accumulation_steps": parts, "model.bn_group_size": group}
        factors = {name: factor for name, factor in factors.items() if factor not in (None, 1)}
        return {" x ".join(factors): math.prod(factors.values())} if factors else {}
    devices = {"devices": device_count} if device_count > 1 else {}
    return devices | ({} if group is None else {"model.bn_group_size": group})


def _check_schedule(values: Mapping[str, Any]) -> None:
    warmup, duration, start = (values[f"schedule.{key}"] for key in ("warmup", "warmup_duration", "warmup_start"))
    if warmup == "linear" and duration == 0:
        raise ValueError("schedule.warmup=linear: needs schedule.warmup_duration above 0")
    for key, value in (("warmup_duration", duration), ("warmup_start", start)):
        if warmup != "linear" and value > 0:
            raise ValueError(f"schedule.{key}={value}: needs schedule.warmup=linear, not {warmup}")
    if start > (highest := learning_rate(values)):
        raise ValueError(
            f"schedule.warmup_start={start}: must be at most the rate it leads to, {highest:g}; a batch below "
            "schedule.reference_batch_size needs no warm-up from there: set schedule.warmup_start=0"
        )
    if values["schedule.name"] == "piecewise" and not values["schedule.boundaries"]:
        raise ValueError("schedule.boundaries=(): schedule.name=piecewise needs one; no drop is constant")


def learning_rate(values: Mapping[str, Any]) -> float:
    """The highest learning rate: as given, or, with a reference batch size, in proportion to the batch."""
    rate, reference = values["schedule.learning_rate"], values["schedule.reference_batch_size"]
    return rate if reference is None else rate * values["train.batch_size"] / reference


_STREAMED = (
    *("data.statistics", "data.image_size", "data.crop", "data.short_sides", "data.crop_area", "data.crop_aspect"),
    *("data.resize", "data.pca_std", "data.unreadable", "data.workers"),
    *("evaluate.image_size", "evaluate.short_side"),
)


def _check_pipeline(values: Mapping[str, Any]) -> None:
    if values["data.pipeline"] == "resident":
        # What the base config has means nothing to images that are taken as they are.
        for key in _STREAMED:
            if (value := values[key]) != KEYS[key].default:
                raise ValueError(f"{key}={value}: needs data.pipeline=streamed, not resident")
        return
    if (calls := values["train.steps_per_dispatch"]) not in (None, 1):
        raise ValueError(f"train.steps_per_dispatch={calls}: needs data.pipeline=resident, not streamed")
    for key, whole, highest in (("short_sides", True, math.inf), ("crop_area", False, 1), ("crop_aspect", False, 1e3)):
        value = values[f"data.{key}"]
        kind = "two whole numbers" if whole else "two numbers"
        if len(value) != 2 or value[0] > value[1] or value[1] > highest or (whole and value != tuple(map(int, value))):
            limit = f", at most {highest}" if math.isfinite(highest) else ""
            raise ValueError(f"data.{key}={value}: must be {kind}, the lower one first{limit}")
    crop, smallest = values["data.image_size"], values["data.short_sides"][0]
    if values["data.crop"] == "scale" and smallest < crop:
        raise ValueError(f"data.short_sides={values['data.short_sides']}: must be at least data.image_size={crop}")
    tested = values["evaluate.image_size"] or crop
    if values["evaluate.short_side"] < tested:
        raise ValueError(f"evaluate.short_side={values['evaluate.short_side']}: must be at least the crop of {tested}")
    if tested != crop and values["data.normalization"] == "pixel_mean":
        raise ValueError(
            f"evaluate.image_size={tested}: a mean image has the size of data.image_size={crop}; for two sizes "
            "choose data.normalization=channel_mean or channel_mean_std"
        )


def _check_divisible(batch_size: int, divisors: Mapping[str, int]) -> None:
    if all(batch_size % divisor == 0 for divisor in divisors.values()):
        return
    multiple = math.lcm(*divisors.values())
    lower = batch_size // multiple * multiple
    nearest = f"{lower} and {lower + multiple}" if lower else str(multiple)
    names = " and ".join(f"{name}={divisor}" for name, divisor in divisors.items())
    raise ValueError(f"train.batch_size={batch_size}: not divisible by {names}; nearest that are: {nearest}")


def _check_splits(values: Mapping[str, Any]) -> None:
    given = {key: values[f"data.{key}_split"] for key in ("train", "validation", "test")}
    for (a, left), (b, right) in itertools.combinations(given.items(), 2):
        if left is not None and right is not None and _overlap(left, right):
            raise ValueError(
                f"data.{a}_split={left} and data.{b}_split={right}: must share no image; "
                "give disjoint parts such as train[:45000] and train[45000:]"
            )


def _overlap(a: str, b: str) -> bool:
    # What is not of the forms NAME, NAME[i:j] and NAME[i%:j%] is compared as text alone.
    return a == b or any(
        left == right and max(left_start, right_start) < min(left_end, right_end)
        for (left, left_start, left_end), (right, right_start, right_end) in itertools.product(_spans(a), _spans(b))
    )


def _spans(split: str) -> Iterator[tuple[tuple[str, str], float, float]]:
    for part in split.split("+"):
        match = re.fullmatch(r"\s*(\w+)(?:\[(\d*)(%?):(\d*)(%?)\])?\s*", part)
        if match:
            name, start, start_percent, end, end_percent = match.groups(default="")
            units = ["percent"] if start_percent + end_percent else ["images"]
            # A whole split can be compared with part of it in either unit.
            for unit in units if start + end else ["images", "percent"]:
                yield (name, unit), float(start or 0), float(end or "inf")


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
    return {
        "steps.total": total,
        "steps.warmup": warmup,
        "steps.boundaries": boundaries,
        "steps.evaluate_every": steps("evaluate.every", values["evaluate.every"], unit),
        "steps.checkpoint_every": steps("checkpoint.every", values["checkpoint.every"], unit),
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
