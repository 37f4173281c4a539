"""What a weight file says besides its tensors: the net, its input, where it is from. One JSON document."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resnet_jax.data.input_description import InputDescription
from resnet_jax.data.resize import check_resize
from resnet_jax.models.resnet import ResNet
from resnet_jax.pretrained.json_section import LARGEST_IMAGE
from resnet_jax.pretrained.net_settings import check_keys, make_net, net_settings

# 1 had no net.pool_padding.
FORMAT_VERSION = 2
_LARGEST_SHORT_SIDE = 10 * LARGEST_IMAGE
# A thousand class names are 30 kB.
LARGEST_BYTES = 4 * 2**20

_KEYS = ("format_version", "net", "input", "name", "metrics", "source", "license")
_INPUT_KEYS = ("image_shape", "mean_shape", "class_names", "short_side", "resize", "source")


@dataclass(frozen=True)
class Description:
    """A weight file's document.

    Attributes:
      model: the net.
      input: fields of `InputDescription`, but for its two arrays "mean_shape", the mean's shape; None if not known.
      name: what the net is called; it is made from its settings, not from this.
      metrics: numbers that were measured, by name.
      source: where the parameters are from.
      license: on what terms they may be used.
    """

    model: ResNet
    input: dict[str, Any] | None
    name: str | None
    metrics: dict[str, int | float]
    source: str | None
    license: str | None

    def to_json(self) -> str:
        """The document, for `from_json`."""
        fields = {key: getattr(self, key) for key in _KEYS[2:]}
        return json.dumps({"format_version": FORMAT_VERSION, "net": net_settings(self.model), **fields})

    @classmethod
    def from_json(cls, text: str) -> "Description":
        """Reads a document from anywhere.

        Raises:
          ValueError: it is longer than `LARGEST_BYTES`, no JSON, of another version, or something in it is missing,
            unknown or not what it should be.
        """
        if len(text) > LARGEST_BYTES:
            raise ValueError(f"the description has {len(text)} characters; allowed are {LARGEST_BYTES}")
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the description is not JSON: {error}") from error
        version = document.get("format_version") if isinstance(document, dict) else None
        if isinstance(document, dict) and (type(version), version) != (int, FORMAT_VERSION):
            raise ValueError(f"format_version={version!r}; this release reads {FORMAT_VERSION}")
        check_keys(document, _KEYS, where="the description")
        model, texts = make_net(document["net"]), {key: document[key] for key in ("name", "source", "license")}
        for key, value in texts.items():
            if not isinstance(value, str | None):
                raise ValueError(f"{key} must be a text or null, found {value!r}")
        _check_metrics(document["metrics"])
        input = document["input"]
        return cls(model, None if input is None else _read_input(input, model), metrics=document["metrics"], **texts)


def input_settings(input: InputDescription) -> dict[str, Any]:
    """All of an input description but its arrays, as `Description.input` holds it."""
    return {
        "image_shape": list(input.image_shape),
        "mean_shape": list(input.mean.shape),
        "class_names": list(input.class_names),
        "short_side": input.short_side,
        "resize": input.resize,
        "source": input.source,
    }


def plain_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The same with numpy and jax scalars as Python's numbers; ValueError for anything but finite numbers."""
    plain = {key: value.item() if getattr(value, "shape", None) == () else value for key, value in metrics.items()}
    _check_metrics(plain)
    return plain


def _check_metrics(metrics: Any) -> None:
    if not isinstance(metrics, dict):
        raise ValueError(f"metrics must be a JSON object, found {type(metrics).__name__}")
    for key, value in metrics.items():
        if type(value) is not int and not (isinstance(value, float) and math.isfinite(value)):
            raise ValueError(f"metrics: {key}={value!r} must be a finite number")


def _read_input(input: Any, model: ResNet) -> dict[str, Any]:
    check_keys(input, _INPUT_KEYS, where="input")
    shape, names = input["image_shape"], input["class_names"]
    if not isinstance(shape, list) or len(shape) != 3 or not all(map(_is_count, shape)):
        raise ValueError(f"input.image_shape={shape!r} must be three positive whole numbers: height, width, channels")
    if max(shape[:2]) > LARGEST_IMAGE:
        raise ValueError(f"input.image_shape={shape!r} must be at most {LARGEST_IMAGE} pixels high and wide")
    if input["mean_shape"] not in (shape, shape[2:]):
        raise ValueError(f"input.mean_shape={input['mean_shape']!r} must be {shape} or {shape[2:]}")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("input.class_names must be a list of texts")
    if model.num_classes is not None and len(names) != model.num_classes:
        raise ValueError(f"input.class_names are {len(names)}, the net has {model.num_classes} classes")
    short, longest = input["short_side"], max(shape[:2])
    if short is not None and not (_is_count(short) and longest <= short <= _LARGEST_SHORT_SIDE):
        raise ValueError(
            f"input.short_side={short!r} must be null or a whole number from {longest}, the longer side of what is "
            f"cropped from it, to {_LARGEST_SHORT_SIDE}"
        )
    for key in ("resize", "source"):
        if not isinstance(input[key], str):
            raise ValueError(f"input.{key}={input[key]!r} must be a text")
    check_resize(input["resize"])
    return input


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
