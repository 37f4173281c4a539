"""Config files: found by path or name, run, and changed by overrides; and the JSON that a workdir keeps.

A config file is a Python program whose `get_config(variant)` starts from `base_config()`. This module alone runs such
files.
"""

import importlib.util
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from resnet_jax.config import base_config, check, check_names, flatten, given_values, nest, task_of
from resnet_jax.config_keys import check_value, parse_value
from resnet_jax.config_rules import nearest


def load_config(reference: str, overrides: Mapping[str, Any] = {}) -> ConfigDict:
    """Runs a config file, applies the overrides and checks the result.

    Args:
      reference: `FILE[:VARIANT]`. FILE is a path to a Python config or to a workdir's `config.json`, or
        the name of an installed config (`cifar10`, `configs/cifar10.py`). A Python config is a program: it is
        run.
      overrides: dotted key to value, `{"schedule.learning_rate": 0.2}`; a text is read by the key's declared type.

    Returns:
      A checked, unfrozen config.

    Raises:
      FileNotFoundError: no such config; the message lists the installed ones.
      ValueError: unknown variant, and whatever `check` refuses.

    Example:
      >>> config = load_config("cifar10:resnet56", {"schedule.learning_rate": 0.2})
      >>> config.model.name, config.schedule.learning_rate, config.schedule.boundaries
      ('cifar_resnet56', 0.2, (32000, 48000))
      >>> load_config("cifar10:resnet56", {"schedule.learning_rat": 0.2})
      Traceback (most recent call last):
      ...
      ValueError: unknown config key schedule.learning_rat; did you mean schedule.learning_rate?
    """
    values = given_values(_run_config(reference))
    # Before the overrides, so that none of them hides what the file lacks.
    task = task_of(values)
    check_names(values, task)
    if (other := overrides.get("task", task)) != task:
        check_value("task", other)
        raise ValueError(f"task={overrides['task']}: {reference} is of task={task}; name a config of that task")
    check_names(values | dict(overrides), task)
    changes = {key: parse_value(key, value) if isinstance(value, str) else value for key, value in overrides.items()}
    config = nest(values | changes)
    check(config)
    return config


def to_json(config: ConfigDict) -> str:
    """Returns the config as indented JSON; `from_json` gives the same values back."""
    return json.dumps(nest(flatten(config)).to_dict(), indent=2, sort_keys=True, allow_nan=False) + "\n"


def from_json(text: str) -> ConfigDict:
    """Reads `to_json`'s text; lists become tuples. Nothing is checked: that is `check`'s work.

    A key that the text lacks, because it is of a version that had none, gets its default.
    """
    tree = json.loads(text)
    if not isinstance(tree, dict):
        raise ValueError(f"a config in JSON is an object of sections, not {type(tree).__name__}")
    values = flatten(ConfigDict(tree, type_safe=False))
    return nest(flatten(base_config(task_of(values))) | values)


def _run_config(reference: str) -> ConfigDict:
    name, colon, variant = reference.rpartition(":")
    if not colon or Path(reference).is_file():
        name, colon, variant = reference, "", ""
    path = _find_config(name)
    if path.suffix == ".json":
        if colon:
            raise ValueError(f"--config={reference}: a config in JSON has no variants")
        return from_json(path.read_text(encoding="utf-8"))
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
    raise FileNotFoundError(
        f"no config {name!r}; did you mean {nearest(path.stem, names)!r}? Installed configs: {', '.join(names)}"
    )
