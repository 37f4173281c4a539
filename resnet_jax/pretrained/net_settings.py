"""A net's settings as plain values that JSON can hold, and the net made of them again."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from resnet_jax.models.registry import create_model
from resnet_jax.models.resnet import ResNet

_ATTRIBUTES = tuple(field.name for field in dataclasses.fields(ResNet) if field.name not in ("parent", "name"))
_SWITCHES = ("zero_init_residual", "scan", "remat")
_FRACTIONS = ("bn_momentum", "dropout_rate", "stochastic_depth")
# Left out where they have these values: files that do without them stay those of every release.
_UNUSED = {"stochastic_depth": 0.0}
# Beyond any batch.
_LARGEST_GROUP = 2**20
_MAY_BE_NULL = ("num_classes", "shortcut", "bn_group_size")


def net_settings(model: ResNet) -> dict[str, Any]:
    """Every attribute of the net by its name, the dtype by its own; `make_net` makes an equal net of it.

    `stride_in` is left out where the blocks are basic, which it means nothing to, and `stochastic_depth` where it is 0.
    """
    settings = {name: getattr(model, name) for name in _names(model.block)}
    settings = {name: value for name, value in settings.items() if name not in _UNUSED or value != _UNUSED[name]}
    return {**settings, "stage_sizes": list(model.stage_sizes), "dtype": jnp.dtype(model.dtype).name}


def make_net(settings: Any) -> ResNet:
    """Makes the net that has these settings.

    Args:
      settings: what `net_settings` gave, or something that claims to be that.

    Raises:
      ValueError: it is no dict, a setting is missing, unknown or none of those allowed, or two contradict each other.
    """
    settings = {**_UNUSED, **settings} if isinstance(settings, dict) else settings
    check_keys(settings, _names(settings.get("block") if isinstance(settings, dict) else None), where="net")
    for name, value in settings.items():
        if value is None and name not in _MAY_BE_NULL:
            raise ValueError(f"net.{name} must not be null")
    for name in _SWITCHES:
        if not isinstance(settings[name], bool):
            raise ValueError(f"net.{name}={settings[name]!r} must be true or false")
    for name in _FRACTIONS:
        if isinstance(settings[name], bool):
            raise ValueError(f"net.{name}={settings[name]!r} must be a number in [0, 1)")
    group = settings["bn_group_size"]
    if isinstance(group, int) and group > _LARGEST_GROUP:
        raise ValueError(f"net.bn_group_size={group} must be at most {_LARGEST_GROUP}")
    if not isinstance(settings["dtype"], str):
        raise ValueError(f"net.dtype={settings['dtype']!r} must be a dtype's name")
    # Every other attribute of the named net is replaced, so only the family matters.
    family = "plain18" if settings["shortcut"] is None else "resnet18"
    try:
        return create_model(family, **settings)
    except ValueError as error:
        raise ValueError(f"net.{str(error).removeprefix(f'{family}: ')}") from error


def check_keys(section: Any, expected: Iterable[str], *, where: str) -> None:
    """Raises a ValueError unless the section is a dict with exactly these keys."""
    if not isinstance(section, dict):
        raise ValueError(f"{where} must be a JSON object, found {type(section).__name__}")
    expected = tuple(expected)
    for key in section:
        if key not in expected:
            raise ValueError(f"{where} has the unknown key {key!r}; known: {', '.join(expected)}")
    for key in expected:
        if key not in section:
            raise ValueError(f"{where} lacks the key {key!r}")


def _names(block: Any) -> tuple[str, ...]:
    return tuple(name for name in _ATTRIBUTES if name != "stride_in" or block != "basic")
