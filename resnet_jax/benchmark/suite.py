"""Measurements of several nets and batch sizes; where memory runs out, of the largest batch that goes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from resnet_jax.benchmark.measuring import KINDS, MeasurementFailed, OutOfMemory, measure, surroundings
from resnet_jax.config import check
from resnet_jax.config_files import load_config
from resnet_jax.config_rules import unknown

# Recipes by family, of any batch size: batch norm over the whole batch, no rate to begin from that a small one lacks.
_ANY_BATCH = {"model.bn_group_size": None}
_CIFAR: tuple[str, dict[str, Any]] = ("cifar10:resnet20", _ANY_BATCH)
_IMAGENET: tuple[str, dict[str, Any]] = (
    "imagenet:goyal90,resnet50",
    {**_ANY_BATCH, "schedule.warmup": "none", "schedule.warmup_start": 0.0, "schedule.warmup_duration": 0},
)
# The key of the batch size that counts.
_SIZE = {"eval": "evaluate.batch_size", "multi_scale": "evaluate.batch_size"}


def benchmark(
    kind: str,
    *,
    reference: str | None = None,
    overrides: Mapping[str, Any] = {},
    models: Sequence[str] = (),
    batch_sizes: Sequence[int] = (),
    windows: int = 5,
    seconds: float | int = 2.0,
    tell: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, Any]:
    """Measures each model at each batch size, each in a process of its own.

    Args:
      kind: "train" (steps on images that lie on the device), "eval" (a test of such images, in turns with the net
        alone), "multi_scale" (likewise, of whole images at one scale), "compile", "input" (the pipeline that reads,
        decodes and crops real images, alone), "end_to_end" (training on real images).
      reference: a config, see `load_config`; None takes the recipe of the model's family, with batch norm over the
        whole batch.
      overrides: of the config's keys.
      models: names; none takes the config's.
      batch_sizes: images of a step, or of a batch in a test; none takes the config's.
      windows: of each measurement.
      seconds: of each window.
      tell: is given each row as it is there.

    Returns:
      The record: `environment`'s entries, "ceilings", and "rows", see `measure`. A row of a batch that was too large
      has the "batch_size_asked" beside the largest half, quarter, ... that went.

    Raises:
      ValueError: for a kind, a model or a config that is not possible.
      MeasurementFailed: a measurement broke off.
    """
    if kind not in KINDS:
        raise ValueError(unknown("kind of benchmark", kind, KINDS))
    nets: Sequence[str | None] = models or [None]
    sizes: Sequence[int | None] = batch_sizes or [None]
    configs = [_config(kind, reference, overrides, model, size) for model in nets for size in sizes]
    record = {**surroundings(configs[0].model.dtype), "rows": []}
    for config in configs:
        for row in _largest(kind, config, windows=windows, seconds=seconds):
            record["rows"].append(row)
            tell(row)
    return record


def _config(
    kind: str, reference: str | None, overrides: Mapping[str, Any], model: str | None, batch_size: int | None
) -> ConfigDict:
    changes: dict[str, Any] = {}
    if reference is None:
        if model is None:
            raise ValueError("which nets? Give a config, or models")
        reference, changes = _CIFAR if model.startswith("cifar_") else _IMAGENET
        # Those of the recipe are of its own net.
        changes = {**changes, "model.shortcut": None, "model.stride_in": None}
    own = {"model.name": model, _SIZE.get(kind, "train.batch_size"): batch_size}
    return load_config(reference, {**changes, **{key: value for key, value in own.items() if value}, **overrides})


def _largest(kind: str, config: ConfigDict, *, windows: int, seconds: float | int) -> list[dict[str, Any]]:
    """The rows of the config, or of it with the largest half, quarter, ... of its batch for which memory suffices."""
    key = _SIZE.get(kind, "train.batch_size")
    section, _, name = key.partition(".")
    asked = config[section][name]
    size = asked
    while True:
        config[section][name] = size
        check(config)
        try:
            rows = measure(kind, config, windows=windows, seconds=seconds)
        except OutOfMemory as error:
            if size == 1:
                raise MeasurementFailed(f"memory does not suffice for {key}=1: {error}") from error
            size //= 2
            continue
        return rows if size == asked else [{**row, "batch_size_asked": asked} for row in rows]
