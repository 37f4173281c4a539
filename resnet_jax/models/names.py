"""The nets' names and what they stand for, without jax, so that a wrong name or option stops at once."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from resnet_jax.models.arrangements import NORMALIZING, NORMS, ORDERS, arrangement_of

# Table 1: depth -> (block, blocks per stage).
_IMAGENET = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
# Section 4.2 and Table 6; any other depth of 6n + 2 works too.
_CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)
_CIFAR_STAGES = 3
_LAYERS = {"basic": 2, "bottleneck": 3}

# The attributes of `ResNet`; tests/test_names.py holds the two equal.
_OPTIONS = (
    "stage_sizes", "num_classes", "stem", "block", "shortcut", "stride_in", "pool_padding", "activation_order", "norm",
    "bn_group_size", "bn_momentum", "zero_init_residual", "dropout_rate", "stochastic_depth", "width", "scan", "remat",
    "dtype",
)  # fmt: skip
_CHOICES = {
    "stem": ("imagenet", "cifar"),
    "block": ("basic", "bottleneck"),
    "shortcut": ("A", "B", "C"),
    "stride_in": ("1x1", "3x3"),
    "pool_padding": ("both", "end"),
    "activation_order": tuple(ORDERS),
    "norm": NORMS,
    "dtype": ("float32", "bfloat16"),
}


def _imagenet(block: str, sizes: tuple[int, ...], **options) -> dict[str, Any]:
    return {
        "stem": "imagenet",
        "block": block,
        "stage_sizes": sizes,
        "width": 64,
        "num_classes": 1000,
        **options,
    }


_MODELS: dict[str, dict[str, Any]] = {
    **{f"resnet{depth}": _imagenet(*_IMAGENET[depth], shortcut="B") for depth in _IMAGENET},
    **{f"resnet{depth}_v1_5": _imagenet(*_IMAGENET[depth], shortcut="B", stride_in="3x3") for depth in (50, 101, 152)},
    **{f"plain{depth}": _imagenet(*_IMAGENET[depth], shortcut=None) for depth in (18, 34)},
}


def list_models() -> list[str]:
    """Names that `create_model` knows; the CIFAR families take any depth of 6n + 2, or 9n + 2 in bottlenecks.

    Example:
      >>> [name for name in list_models() if name.startswith("plain")]
      ['plain18', 'plain34']
    """
    return [
        *_MODELS,
        *(f"cifar_{family}{depth}" for family in ("resnet", "plain") for depth in _CIFAR_DEPTHS),
    ]


def settings_of(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of `ResNet` that a name and options stand for.

    Args:
      name: one of `list_models()`, or a CIFAR net of any depth 6n + 2, or 9n + 2 with `block="bottleneck"`.
      options: attributes that differ from the named net's; None keeps what the name says, except for num_classes,
        where it leaves the classifier out. A CIFAR net has as many layers as its name says, in blocks of either kind.

    Raises:
      ValueError: for an unknown name or option, a value that is not among the choices, or options that
        contradict each other.
    """
    # With sizes of its own a net has another depth than its name says.
    block = options.get("block") if options.get("stage_sizes") is None else None
    settings = {"dtype": "float32", **_named(name, block)}
    for key, value in options.items():
        if key not in _OPTIONS:
            raise ValueError(f"unknown option {key!r} of {name}; {_nearest(key, _OPTIONS)}")
        if value is not None or key == "num_classes":
            settings[key] = value
    _check(name, settings, options)
    settings["stage_sizes"] = tuple(settings["stage_sizes"])
    return settings


def _named(name: str, block: str | None) -> dict[str, Any]:
    if name in _MODELS:
        return dict(_MODELS[name])
    cifar = re.fullmatch(r"cifar_(resnet|plain)(\d+)", name)
    if not cifar:
        raise ValueError(f"unknown model {name!r}; {_nearest(name, list_models())}")
    layers, depth = _CIFAR_STAGES * _LAYERS.get(block or "basic", 2), int(cifar[2])
    if depth < layers + 2 or (depth - 2) % layers:
        lower = max(layers + 2, depth - (depth - 2) % layers)
        raise ValueError(
            f"{name}: a CIFAR net of {block or 'basic'} blocks has {layers}n + 2 layers; "
            f"the nearest depths are {lower} and {lower + layers}"
        )
    return {
        "stem": "cifar",
        "block": "basic",
        "stage_sizes": ((depth - 2) // layers,) * _CIFAR_STAGES,
        "num_classes": 10,
        "shortcut": "A" if cifar[1] == "resnet" else None,
        "width": 16,
    }


def _check(name: str, settings: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    for key, allowed in _CHOICES.items():
        value = settings.get(key)
        if value is not None and str(value) not in allowed:
            raise ValueError(f"{name}: {key}={value!s} is not one of {', '.join(allowed)}")
    sizes = settings["stage_sizes"]
    if not isinstance(sizes, tuple | list) or not sizes or not all(_is_count(size) for size in sizes):
        raise ValueError(f"{name}: stage_sizes={sizes!r} must be positive whole numbers, one per stage")
    for key in ("width", "bn_group_size", "num_classes"):
        value = settings.get(key)
        if value is not None and not _is_count(value):
            raise ValueError(f"{name}: {key}={value!r} must be a whole number, at least 1")
    for key in ("dropout_rate", "stochastic_depth", "bn_momentum"):
        value = settings.get(key, 0.0)
        if not isinstance(value, int | float) or not 0.0 <= value < 1.0:
            raise ValueError(f"{name}: {key}={value!r} must be a number in [0, 1)")
    _check_combinations(name, settings, options)


def _check_combinations(name: str, settings: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    if "plain" in name and options.get("shortcut") is not None:
        raise ValueError(f"{name} has no shortcuts, so shortcut={options['shortcut']!r} means nothing; choose its twin")
    if settings["block"] == "basic" and options.get("stride_in") is not None:
        raise ValueError(f"{name} has basic blocks, which take the stride in their first 3x3; leave stride_in out")
    order, norm = settings.get("activation_order") or "post", settings.get("norm") or "batch"
    if settings["shortcut"] is None:
        _check_plain(name, settings, order, norm)
    # A gamma that something follows: a ReLU in the branch, whose gradient at 0 is 0, or nothing but other layers.
    if settings.get("zero_init_residual") and arrangement_of(order, "batch").last != ("norm",):
        raise ValueError(
            f"{name}: zero_init_residual needs activation_order='post' or 'relu_only_pre', whose branches end with a "
            f"gamma; with {order!r} a zero would stay"
        )
    if norm != "batch" and (settings.get("bn_group_size") or settings.get("zero_init_residual")):
        why = "is constant" if norm == "frozen" else "normalizes nothing"
        raise ValueError(f"{name}: norm={norm!r} {why}, so bn_group_size and zero_init_residual mean nothing")
    if norm == "fixup" and order != "post":
        raise ValueError(f"{name}: norm='fixup' is defined with activation_order='post' alone, not {order!r}")


def _check_plain(name: str, settings: Mapping[str, Any], order: str, norm: str) -> None:
    """What a net without additions cannot have."""
    if settings.get("zero_init_residual"):
        raise ValueError(f"{name}: zero_init_residual needs shortcuts; without them nothing would pass a block")
    if settings.get("stochastic_depth"):
        raise ValueError(f"{name}: stochastic_depth needs shortcuts; without them a dropped branch leaves nothing")
    if order not in ("post", "pre"):
        raise ValueError(
            f"{name}: activation_order={order!r} says where an addition stands, and without shortcuts there is none; "
            "choose 'post' or 'pre', or a net with shortcuts"
        )
    if norm in ("skipinit", "fixup"):
        raise ValueError(
            f"{name}: norm={norm!r} starts branches at zero and needs shortcuts; without them choose one of "
            f"{', '.join((*NORMALIZING, 'none'))}"
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"Known: {', '.join(names)}"
