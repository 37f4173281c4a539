"""Configs: every key with its default and rule, and the only code that reads them.

`KEYS` is the single source: defaults, types, ranges, choices and the help text are made from it. A config
file is a Python program whose `get_config(variant)` starts from `base_config()`; overrides are text, read
by the key's declared type. `check` refuses what is unknown, ill-typed, out of range or contradictory;
`resolve` adds what depends on the data and the devices, turns durations into optimizer steps, and freezes.
No jax here, so that a typing error stops at once.
"""

import difflib
import importlib.util
import inspect
import itertools
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from ml_collections import ConfigDict, FrozenConfigDict

AnyConfig: TypeAlias = ConfigDict | FrozenConfigDict
UNITS = ("steps", "epochs", "examples")
NORMALIZATIONS = ("pixel_mean", "channel_mean", "channel_mean_std")
SCHEDULES = ("constant", "piecewise", "cosine", "plateau")
WARMUPS = ("none", "linear", "until_error")


class Rule(NamedTuple):
    """What a key may hold.

    `kind` is int, float (an int is taken too), bool, str, number (int or float) or numbers (a tuple of them);
    bounds hold for each number of a tuple.
    """

    kind: str
    default: Any
    doc: str
    choices: tuple[str, ...] | None = None
    minimum: float | None = None
    above: float | None = None
    below: float | None = None
    none: bool = False


KEYS: dict[str, Rule] = {
    "seed": Rule("int", 0, "gives initial parameters, image order, augmentation", minimum=0, below=2**31),
    "model.name": Rule("str", "cifar_resnet20", "as resnet_jax.list_models() names them"),
    "model.shortcut": Rule("str", None, "section 3.3; None: the family's own", ("A", "B", "C"), none=True),
    "model.stride_in": Rule("str", None, "of bottlenecks; None: the name's own", ("1x1", "3x3"), none=True),
    "model.activation_order": Rule("str", "post", "post: the paper; pre: pre-activation", ("post", "pre")),
    "model.norm": Rule("str", "batch", "frozen: running statistics as constants", ("batch", "frozen")),
    "model.bn_group_size": Rule("int", None, "examples sharing statistics; None: all", minimum=1, none=True),
    "model.zero_init_residual": Rule("bool", False, "start the last scale of each block at 0"),
    "model.dropout_rate": Rule("float", 0.0, "before the classifier", minimum=0, below=1),
    "model.width": Rule("int", None, "filters of stage 1; None: the family's own", minimum=1, none=True),
    "model.scan": Rule("bool", False, "stack the identical blocks of a stage"),
    "model.remat": Rule("bool", False, "recompute blocks in the backward pass to save memory"),
    "model.dtype": Rule("str", "float32", "of computation; parameters are float32", ("float32", "bfloat16")),
    "data.name": Rule("str", "digits", "a TFDS image-classification set"),
    "data.data_dir": Rule("str", None, "folder of TFDS data sets; None: TFDS's own default", none=True),
    "data.train_split": Rule("str", "train", "in TFDS's syntax, such as train[:45000]"),
    "data.validation_split": Rule("str", None, "None: no validation", none=True),
    "data.test_split": Rule("str", "test", "evaluated in whole"),
    "data.pad": Rule("int", 4, "zero pixels on each side before the random crop", minimum=0),
    "data.flip": Rule("bool", True, "mirror half of the training images"),
    "data.normalization": Rule("str", "pixel_mean", "of the training images", NORMALIZATIONS),
    "train.batch_size": Rule("int", 128, "images of one step, all devices together", minimum=1),
    "train.duration": Rule("number", 64_000, "length of the training, in train.unit", above=0),
    "train.unit": Rule("str", "steps", "of train.duration, evaluate.every and checkpoint.every", UNITS),
    "train.steps_per_dispatch": Rule("int", None, "None: by backend", minimum=1, none=True),
    "train.non_finite": Rule("str", "stop", "a non-finite loss: stop, or skip the update", ("stop", "skip")),
    "train.label_smoothing": Rule("float", 0.0, "probability spread over all classes", minimum=0, below=1),
    "train.log_every": Rule("int", 100, "steps between training metrics", minimum=1),
    "optimizer.momentum": Rule("float", 0.9, "of SGD", minimum=0, below=1),
    "optimizer.nesterov": Rule("bool", False, "the paper's is not"),
    "optimizer.weight_decay": Rule("float", 1e-4, "L2, added before the momentum", minimum=0),
    "optimizer.decay": Rule("str", "kernels", "kernels: convolutions and dense only", ("kernels", "all")),
    "schedule.name": Rule("str", "piecewise", "of the learning rate", SCHEDULES),
    "schedule.learning_rate": Rule("float", 0.1, "the highest", above=0),
    "schedule.unit": Rule("str", "steps", "of boundaries and warmup_duration", (*UNITS, "percent")),
    "schedule.boundaries": Rule("numbers", (32_000, 48_000), "piecewise: when the rate drops", above=0),
    "schedule.factor": Rule("float", 0.1, "piecewise, plateau: times this at a drop", above=0, below=1),
    "schedule.patience": Rule("int", 5, "plateau: evaluations without improvement before a drop", minimum=1),
    "schedule.min_improvement": Rule("float", 0.0, "plateau: a smaller one is none", minimum=0, below=1),
    "schedule.warmup": Rule("str", "none", "until_error: section 4.2, the 110-layer net", WARMUPS),
    "schedule.warmup_duration": Rule("number", 0, "linear: length, in schedule.unit", minimum=0),
    "schedule.warmup_learning_rate": Rule("float", 0.01, "until_error: the rate meanwhile", above=0),
    "schedule.warmup_error": Rule("float", 0.8, "until_error: training error that ends it", above=0, below=1),
    "schedule.warmup_window": Rule("int", 100, "until_error: steps the error is taken over", minimum=1),
    "evaluate.batch_size": Rule("int", 500, "images of one evaluation step", minimum=1),
    "evaluate.every": Rule("number", 1000, "in train.unit", above=0),
    "checkpoint.every": Rule("number", 1000, "in train.unit", above=0),
    "checkpoint.keep_latest": Rule("int", 2, "checkpoints kept by age", minimum=1),
    "checkpoint.keep_best": Rule("int", 1, "kept by validation error, else test error", minimum=0),
}


def base_config() -> ConfigDict:
    """Returns every key with its default; a config file changes what its recipe changes."""
    return _nest({key: rule.default for key, rule in KEYS.items()})


def describe_keys() -> str:
    """Returns two lines a key, for the command line's help: default, what it may hold, meaning."""
    return "\n".join(
        f"  --config.{key}={rule.default}\n      {_allowed(rule)}; {rule.doc}" for key, rule in KEYS.items()
    )


def load_config(reference: str, overrides: Mapping[str, str] = {}) -> ConfigDict:
    """Runs a config file, applies the overrides and checks the result.

    Args:
      reference: `FILE[:VARIANT]`. FILE is a path to a Python config or to a workdir's `config.json`, or
        the name of an installed config (`cifar10`, `configs/cifar10.py`). A Python config is a program: it is
        run.
      overrides: dotted key to text, as `{"schedule.learning_rate": "0.2"}`.

    Returns:
      A checked, unfrozen config.

    Raises:
      FileNotFoundError: no such config; the message lists the installed ones.
      ValueError: unknown variant, and whatever `check` refuses.
    """
    config = _run_config(reference)
    _check_names(_given_values(config))
    for key, text in overrides.items():
        value = parse_value(key, text)
        section, _, leaf = key.rpartition(".")
        (config[section] if section else config)[leaf] = value
    check(config)
    return config


def parse_value(key: str, text: str) -> Any:
    """Reads an override's text by the key's declared type; ValueError says what is allowed."""
    if key not in KEYS:
        raise ValueError(_unknown_key(key))
    rule = KEYS[key]
    try:
        value = _read(rule, text)
    except ValueError:
        raise ValueError(_refused(key, text)) from None
    _check_value(key, value)
    return value


def check(config: AnyConfig) -> None:
    """Refuses a config that cannot be meant; whatever needs the data or the devices is left to `resolve`.

    Raises:
      ValueError: an unknown or missing key, a wrong type, a value out of range, or two values that contradict
        each other; the message has the key, its value, and what is allowed.
    """
    values = _given_values(config)
    _check_names(values)
    for key, value in values.items():
        _check_value(key, value)
    _check_contradictions(values)
    _check_splits(values)
    if "epochs" not in (values["train.unit"], values["schedule.unit"]):
        _derive_steps(values, train_examples=0)


def resolve(config: AnyConfig, *, train_examples: int, device_count: int) -> FrozenConfigDict:
    """Checks the config against the data and the devices, turns durations into steps, and freezes it.

    Args:
      config: from `load_config`, `from_json`, or an earlier `resolve` (its steps are derived anew).
      train_examples: images in the training split.
      device_count: devices that share a batch.

    Returns:
      The config with `steps`: `total`, `warmup`, `boundaries` (a tuple), `evaluate_every` and
      `checkpoint_every`, all in optimizer steps.

    Raises:
      ValueError: as `check`; also a batch that the devices cannot share equally or the split cannot fill.
    """
    check(config)
    values: dict[str, Any] = {
        key: float(value) if KEYS[key].kind == "float" else value
        for key, value in _given_values(config).items()
    }
    batch_size, group_size = values["train.batch_size"], values["model.bn_group_size"]
    groups = {} if group_size is None else {"model.bn_group_size": group_size}
    _check_divisible(batch_size, {"devices": device_count, **groups})
    if batch_size > train_examples:
        raise ValueError(
            f"train.batch_size={batch_size}: more than the {train_examples} images of "
            f"data.train_split={values['data.train_split']!r}"
        )
    steps = _derive_steps(values, train_examples=train_examples)
    return FrozenConfigDict(_nest(values | {f"steps.{name}": value for name, value in steps.items()}))


def differing_keys(a: AnyConfig, b: AnyConfig) -> list[str]:
    """Returns the dotted keys, sorted, whose values differ or that only one of the two has."""
    left, right, missing = _flatten(a), _flatten(b), object()
    return sorted(key for key in left | right if left.get(key, missing) != right.get(key, missing))


def to_json(config: AnyConfig) -> str:
    """Returns the config as indented JSON; `from_json` gives the same values back."""
    return json.dumps(_nest(_flatten(config)).to_dict(), indent=2, sort_keys=True, allow_nan=False) + "\n"


def from_json(text: str) -> ConfigDict:
    """Reads `to_json`'s text; lists become tuples. Nothing is checked: that is `check`'s work."""
    tree = json.loads(text)
    if not isinstance(tree, dict):
        raise ValueError(f"a config in JSON is an object of sections, not {type(tree).__name__}")
    return _nest(_flatten(ConfigDict(tree, type_safe=False)))


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns the choice most like the name, capitals or not."""
    return max(choices, key=lambda choice: _likeness(name, choice))


def unknown(what: str, name: str, choices: Collection[str]) -> str:
    """Returns the message for a name that is none of `choices`: the nearest one first, then all."""
    return f"unknown {what} {name!r}; did you mean {nearest(name, choices)!r}? Allowed: {', '.join(choices)}"


# Reading config files


def _run_config(reference: str) -> ConfigDict:
    name, colon, variant = reference.rpartition(":")
    if not colon or Path(reference).is_file():
        name, colon, variant = reference, "", ""
    path = _find_config(name)
    if path.suffix == ".json":
        if colon:
            raise ValueError(f"--config={reference}: a config in JSON has no variants")
        return _nest(_given_values(from_json(path.read_text(encoding="utf-8"))))
    get_config = _import_get_config(path)
    if colon and not inspect.signature(get_config).parameters:
        raise ValueError(f"--config={reference}: get_config() of {path} takes no variant")
    try:
        config = get_config(variant) if colon else get_config()
    except AttributeError as error:
        # A misspelt section or key that is read, which ConfigDict reports with the nearest name.
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise ValueError(f"{path}: get_config() gave {type(config).__name__}, not a ConfigDict")
    return config


def _import_get_config(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--config={path}: a config is a Python file (.py) or a workdir's config.json")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"--config={path}: the file defines no get_config(variant)")
    return module.get_config


def _config_folder() -> Path:
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def _find_config(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    # Only a bare name, or one under configs/, can mean the installed file: no other folder is replaced by it.
    if str(path.parent) in (".", "configs"):
        installed = _config_folder() / (path.name if path.suffix else f"{path.name}.py")
        if installed.is_file():
            return installed
    names = sorted(file.stem for file in _config_folder().glob("*.py"))
    near = f"; did you mean {nearest(path.stem, names)!r}?" if names else "."
    raise FileNotFoundError(f"no config {name!r}{near} Installed configs: {', '.join(names) or 'none'}")


def _nest(values: Mapping[str, Any]) -> ConfigDict:
    # Types are checked by the table: ConfigDict's own safety would refuse 81.92 where the default is 64000.
    config = ConfigDict(type_safe=False)
    for key, value in values.items():
        section, _, leaf = key.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict(type_safe=False)
        (config[section] if section else config)[leaf] = value
    return config


def _flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            values |= _flatten(value, f"{prefix}{name}.")
        else:
            values[prefix + name] = tuple(value) if isinstance(value, list) else value
    return values


def _given_values(config: ConfigDict) -> dict[str, Any]:
    return {key: value for key, value in _flatten(config).items() if not key.startswith("steps.")}


# One key, one value


def _check_names(keys: Collection[str]) -> None:
    for key in keys:
        if key not in KEYS:
            raise ValueError(_unknown_key(key))
    for key in KEYS:
        if key not in keys:
            raise ValueError(f"missing key {key}: start the config file from resnet_jax.config.base_config()")


def _read(rule: Rule, text: str) -> Any:
    text = text.strip()
    if rule.none and text in ("None", "none"):
        return None
    if rule.kind == "bool":
        return {"true": True, "false": False}.get(text.lower(), text)
    if rule.kind == "numbers":
        return tuple(_number(item) for item in text.strip("()[]").split(",") if item.strip())
    readers: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "number": _number, "str": str}
    return readers[rule.kind](text)


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_KINDS = {
    "int": ("an integer", _is_int),
    "float": ("a finite number", _is_number),
    "number": ("a finite number", _is_number),
    "numbers": ("a tuple of finite numbers", lambda v: isinstance(v, tuple) and all(map(_is_number, v))),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "str": ("a name", lambda value: isinstance(value, str) and value not in ("", "None")),
}


def _check_value(key: str, value: Any) -> None:
    rule = KEYS[key]
    if value is None and rule.none:
        return
    if not _KINDS[rule.kind][1](value):
        raise ValueError(_refused(key, value))
    if rule.choices and value not in rule.choices:
        raise ValueError(f"{_refused(key, value)}; did you mean {nearest(value, rule.choices)}?")
    for item in value if rule.kind == "numbers" else (value,):
        if (
            (rule.minimum is not None and item < rule.minimum)
            or (rule.above is not None and item <= rule.above)
            or (rule.below is not None and item >= rule.below)
        ):
            raise ValueError(_refused(key, value))


def _allowed(rule: Rule) -> str:
    if rule.choices:
        return f"one of {', '.join(rule.choices)}" + (", None" if rule.none else "")
    bounds = (("at least", rule.minimum), ("above", rule.above), ("below", rule.below))
    limits = " and ".join(f"{word} {limit}" for word, limit in bounds if limit is not None)
    return " ".join(filter(None, (_KINDS[rule.kind][0], limits))) + (", or None" if rule.none else "")


def _refused(key: str, value: Any) -> str:
    return f"{key}={value}: must be {_allowed(KEYS[key])}"


def _unknown_key(key: str) -> str:
    leaves = [name.removeprefix(f"{key}.") for name in KEYS if name.startswith(f"{key}.")]
    if leaves:
        return f"config key {key} is a section; its keys: {', '.join(leaves)}"
    return f"unknown config key {key}; did you mean {_nearest_key(key)}?"


def _nearest_key(key: str) -> str:
    # The last part counts twice, so that the right name in the wrong section finds its section.
    leaf = key.rpartition(".")[2]
    return max(KEYS, key=lambda known: _likeness(key, known) + _likeness(leaf, known.rpartition(".")[2]))


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio()


# Several values together


def _check_contradictions(values: Mapping[str, Any]) -> None:
    if values["optimizer.nesterov"] and values["optimizer.momentum"] == 0:
        raise ValueError("optimizer.nesterov=True: needs optimizer.momentum above 0")
    group = values["model.bn_group_size"]
    if group is not None:
        _check_divisible(values["train.batch_size"], {"model.bn_group_size": group})
    warmup, duration = values["schedule.warmup"], values["schedule.warmup_duration"]
    if warmup == "linear" and duration == 0:
        raise ValueError("schedule.warmup=linear: needs schedule.warmup_duration above 0")
    if warmup != "linear" and duration > 0:
        raise ValueError(f"schedule.warmup_duration={duration}: needs schedule.warmup=linear, not {warmup}")
    if values["schedule.name"] == "piecewise" and not values["schedule.boundaries"]:
        raise ValueError("schedule.boundaries=(): schedule.name=piecewise needs one; no drop is constant")


def _check_divisible(batch_size: int, divisors: Mapping[str, int]) -> None:
    if all(batch_size % divisor == 0 for divisor in divisors.values()):
        return
    multiple = math.lcm(*divisors.values())
    lower = batch_size // multiple * multiple
    nearest = f"{lower} and {lower + multiple}" if lower else str(multiple)
    names = " and ".join(f"{name}={divisor}" for name, divisor in divisors.items())
    raise ValueError(f"train.batch_size={batch_size}: not divisible by {names}; nearest that are: {nearest}")


def _check_splits(values: Mapping[str, Any]) -> None:
    keys = ("data.train_split", "data.validation_split", "data.test_split")
    for a, b in itertools.combinations(keys, 2):
        if values[a] is not None and values[b] is not None and _overlap(values[a], values[b]):
            raise ValueError(
                f"{a}={values[a]} and {b}={values[b]}: must share no image; "
                "give disjoint parts such as train[:45000] and train[45000:]"
            )


def _overlap(a: str, b: str) -> bool:
    # What is not of the forms NAME, NAME[i:j] and NAME[i%:j%] is compared as text alone.
    if a == b:
        return True
    for left, right in itertools.product(_spans(a), _spans(b)):
        same_unit = left[3] == right[3] or None in (left[3], right[3])
        if left[0] == right[0] and same_unit and max(left[1], right[1]) < min(left[2], right[2]):
            return True
    return False


def _spans(split: str) -> list[tuple[str, float, float, str | None]]:
    spans = []
    for part in split.split("+"):
        match = re.fullmatch(r"\s*(\w+)(?:\[(\d*)(%?):(\d*)(%?)\])?\s*", part)
        if match:
            name, start, start_percent, end, end_percent = match.groups(default="")
            unit = None if not start + end else ("percent" if start_percent + end_percent else "images")
            spans.append((name, float(start or 0), float(end or "inf"), unit))
    return spans


# Durations


def _derive_steps(values: Mapping[str, Any], *, train_examples: int) -> dict[str, Any]:
    """Returns `config.steps`; train_examples counts only where a duration is in epochs."""
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
    warmup = 0
    if values["schedule.warmup"] == "linear":
        warmup = steps("schedule.warmup_duration", values["schedule.warmup_duration"], schedule_unit, total)
    boundaries: tuple[int, ...] = ()
    if values["schedule.name"] == "piecewise":
        boundaries = tuple(
            steps("schedule.boundaries", boundary, schedule_unit, total)
            for boundary in values["schedule.boundaries"]
        )
    _check_order(values, total, warmup, boundaries)
    return {
        "total": total,
        "warmup": warmup,
        "boundaries": boundaries,
        "evaluate_every": steps("evaluate.every", values["evaluate.every"], unit),
        "checkpoint_every": steps("checkpoint.every", values["checkpoint.every"], unit),
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
