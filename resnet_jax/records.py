"""One JSON record per run, and the metrics written while it ran: what tables, plots and reference tests read.

`record.json` says what was run (`config`, `model`, `seed`, `commit`, `versions`), on what (`devices`, `cpu`),
and what came out (`train`, `test`, times, memory). `metrics.jsonl` holds one JSON object a line, `{"step": n,
name: value}`.

Both files are strict JSON, which has no word for a non-finite number. Those are stored as the strings "NaN",
"Infinity" and "-Infinity" (null would not tell them apart), and come back as floats.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from resnet_jax.atomic_files import write_text_atomically
from resnet_jax.training.start_times import START_PARTS

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

_NUMBER, _COUNT, _FRACTION = "a number", "an integer of at least 0", "a fraction from 0 to 1"
_TEXT, _MAPPING = "a string", "a mapping"
_EVALUATION = {
    "error_top1": _FRACTION,
    "error_top5": f"{_FRACTION} or null",
    "count": _COUNT,
    "protocol": _TEXT,
}
_BOXES = {"error_ap": _FRACTION, "ap_50": _FRACTION, "count": _COUNT, "protocol": _TEXT}
# Of COCO, whose numbers are not finite where there is no object of a kind, and of VOC.
_MORE_OF_BOXES = {
    **{name: _NUMBER for name in ("ap", "ap_75", "ap_small", "ap_medium", "ap_large")},
    **{name: _NUMBER for name in ("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large")},
    "ap_50_of_classes": _MAPPING,
}
_ONE_BOX = {"error_localization": _FRACTION, "count": _COUNT, "protocol": _TEXT}
_SCHEMA = {
    "config": _MAPPING,
    "model": _TEXT,
    "seed": _COUNT,
    "versions": _MAPPING,
    "devices": _MAPPING,
    "cpu": _MAPPING,
    "commit": f"{_MAPPING} or null",
    "steps": _COUNT,
    "parameters": _COUNT,
    "wall_seconds": _NUMBER,
    "images_per_second": f"{_NUMBER} or null",
    "compile_seconds": f"{_NUMBER} or null",
    "peak_bytes": f"{_COUNT} or null",
    "peak_bytes_source": f"{_TEXT} or null",
}
# `resumed_from_step`: the times are those of the last process, which began there; null or absent for a run in one go.
# `unreadable_images`: training images that were left out, each time one came up. `pixel_statistics`: where
# mean and standard deviation are from. `determinism`: the promises that the run had, see `environment.determinism`.
# `start_seconds`: from the start of the last process to its first steps, see `training.start_times`; absent if it made
# none. `seeds_together`: how many trained in one program, whose times these are; absent for one alone.
# `diagnostics_seconds`: of the last process's diagnoses, their compilation included; absent where there were none.
_OPTIONAL = {
    "resumed_from_step": f"{_COUNT} or null",
    "unreadable_images": _COUNT,
    "pixel_statistics": _TEXT,
    "determinism": _TEXT,
    "start_seconds": {part: _NUMBER for part in START_PARTS},
    "seeds_together": _COUNT,
    "diagnostics_seconds": _NUMBER,
}


# Of the config's task. Training images with boxes are tested on demand alone.
_TESTED_BOXES = (_BOXES, _MORE_OF_BOXES)
_TRAIN_ON_DEMAND = {"train": {"error": _FRACTION, "count": _COUNT}}
_OF_TASK: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "classification": (
        {**_SCHEMA, "train": {"loss": _NUMBER, "error": _FRACTION, "count": _COUNT}, "test": _EVALUATION},
        {**_OPTIONAL, "validation": _EVALUATION},
    ),
    "detection": (
        {**_SCHEMA, "test": _TESTED_BOXES},
        {**_OPTIONAL, "validation": _TESTED_BOXES, **_TRAIN_ON_DEMAND},
    ),
    "localization": (
        {**_SCHEMA, "test": _ONE_BOX},
        {**_OPTIONAL, "validation": _ONE_BOX, **_TRAIN_ON_DEMAND},
    ),
}


def write_record(path: str | os.PathLike, record: Mapping[str, Any]) -> Path:
    """Checks a run's record and writes it, whole or not at all.

    A string that is an absolute path (a data folder in the config, say) is stored as ".../" and its last
    name: a record is made to be published, and where files lie on one machine is nobody's business.

    Args:
      path: the file, usually `record.json` in the workdir.
      record: every key of a record, among them those of `environment()` and `peak_memory()`. Errors are
        fractions; None stands for "not measured" in `images_per_second`, `compile_seconds`, `peak_bytes`, and
        for a top-5 error that fewer than five classes do not have.

    Returns:
      The path written.

    Raises:
      ValueError: a key is missing, unknown or holds something else than it should; all of them are named.
    """
    plain = _plain(record, "record")
    _check_record(plain, str(path))
    text = json.dumps(_for_publication(plain), indent=2, allow_nan=False) + "\n"
    return write_text_atomically(path, text)


def read_record(path: str | os.PathLike) -> dict[str, Any]:
    """Reads what `write_record` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not JSON, or a key is missing, unknown or of another kind.
    """
    try:
        record = restore_non_finite(json.loads(Path(path).read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}: a record is a JSON object, not {type(record).__name__}")
    _check_record(record, str(path))
    return record


def read_metrics(path: str | os.PathLike) -> dict[str, tuple[Int[np.ndarray, " _"], Float[np.ndarray, " _"]]]:
    """Reads the curves of a run.

    Args:
      path: a `metrics.jsonl`. It may still be growing: a last line that is not whole yet is left out.

    Returns:
      For every name the optimizer steps (int64) and the values (float64), in the order written.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line before the last is not a JSON object with a step.
    """
    curves: dict[str, tuple[list, list]] = {}
    for row in read_rows(path):
        for name, value in row.items():
            if name != "step":
                steps, values = curves.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(value)
    return {name: (np.asarray(s, np.int64), np.asarray(v, np.float64)) for name, (s, v) in curves.items()}


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl` as dictionaries, without a half-written last one; see `read_metrics`."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            # Only the writer's last line can be torn by a kill, and then it lacks its line feed.
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise ValueError(f'{path}, line {number}: expected {{"step": integer, name: value}}, found {line!r}')
        rows.append(restore_non_finite(row))
    return rows


def strict_number(value: Any) -> int | float | str:
    """A scalar (Python, numpy or jax) as strict JSON holds it: a string if it is not finite."""
    if isinstance(value, int | np.integer):
        return int(value)
    number = float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def restore_non_finite(value: Any) -> Any:
    """Undoes `strict_number` in everything that JSON can hold."""
    if isinstance(value, dict):
        return {key: restore_non_finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [restore_non_finite(item) for item in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def _check_record(record: Mapping[str, Any], where: str) -> None:
    config = record.get("config")
    task = config.get("task", "classification") if isinstance(config, Mapping) else "classification"
    problems = _problems(record, *_OF_TASK.get(task, _OF_TASK["classification"]), prefix="")
    if problems:
        raise ValueError(f"{where} is no record: " + "; ".join(problems))


def _problems(section: Mapping[str, Any], schema: Mapping, optional: Mapping, *, prefix: str) -> list[str]:
    found = [f"{prefix}{key} is missing" for key in schema if key not in section]
    known = {**schema, **optional}
    for key, value in section.items():
        name = prefix + str(key)
        if key not in known:
            found.append(f"{name} is not a key of a record (there are {', '.join(known)})")
        elif not isinstance(known[key], str):
            if isinstance(value, Mapping):
                needed, possible = known[key] if isinstance(known[key], tuple) else (known[key], {})
                found += _problems(value, needed, possible, prefix=f"{name}.")
            else:
                found.append(f"{name} is {value!r}, it must be a mapping")
        elif not _is_a(known[key], value):
            found.append(f"{name} is {value!r}, it must be {known[key]}")
    return found


def _is_a(kind: str, value: Any) -> bool:
    if value is None:
        return kind.endswith(" or null")
    kind = kind.removesuffix(" or null")
    if kind in (_TEXT, _MAPPING):
        return isinstance(value, str if kind == _TEXT else Mapping)
    if isinstance(value, bool) or not isinstance(value, int if kind == _COUNT else (int, float)):
        return False
    return kind == _NUMBER or (0 <= value <= 1 if kind == _FRACTION else value >= 0)


def _plain(value: Any, name: str) -> Any:
    """The same as dicts, lists, strings, numbers, None, with numpy and jax scalars as Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float) or getattr(value, "shape", None) == ():
        return value.item() if hasattr(value, "item") else value
    raise ValueError(f"{name} is {value!r} ({type(value).__name__}), which JSON cannot hold")


def _for_publication(value: Any) -> Any:
    """Numbers as strict JSON holds them, and absolute paths cut down to their last name."""
    if isinstance(value, dict):
        return {key: _for_publication(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_for_publication(item) for item in value]
    if isinstance(value, float):
        return strict_number(value)
    if isinstance(value, str):
        for kind in (PurePosixPath, PureWindowsPath):
            if kind(value).is_absolute():
                return f".../{kind(value).name}"
    return value
