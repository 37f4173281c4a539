"""From a weight file of any kind that is known to one of this library, torchvision, timm or Hugging Face."""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.atomic_files import check_new_file
from resnet_jax.data.input_description import InputDescription
from resnet_jax.data.resize import check_resize
from resnet_jax.pretrained.caffe.caffe_file import read_binaryproto
from resnet_jax.pretrained.class_names import default_class_names
from resnet_jax.pretrained.pytorch.interchange import (
    check_new_folder,
    write_huggingface,
    write_timm,
    write_torchvision,
)
from resnet_jax.pretrained.reading import load_weights
from resnet_jax.pretrained.weight_file import WeightFile
from resnet_jax.pretrained.weights import save_pretrained

TARGETS = ("resnet_jax", "torchvision", "timm", "huggingface")

_log = logging.getLogger(__name__)


def convert(
    source: str | os.PathLike | WeightFile,
    output: str | os.PathLike,
    *,
    to: str = "resnet_jax",
    format: str | None = None,
    stride_in: str | None = None,
    mean: Sequence[int | float] | np.ndarray | str | os.PathLike | None = None,
    std: Sequence[int | float] | None = None,
    image_size: int | None = None,
    short_side: int | None = None,
    resize: str | None = None,
    class_names: Sequence[str] | None = None,
    name: str | None = None,
    license: str | None = None,
    overwrite: bool = False,
) -> WeightFile:
    """Reads a net from a file of any kind that is known and writes it in one of four.

    "torchvision" is a bare state dict; a warning is logged of what is known of the net and lost there.

    What the net expects of its input is taken from the file or from what lies beside it. State dicts and .caffemodel
    files do not say it; then it is what nets from there were tested with, and the arguments from `mean` to
    `class_names` say it better where that is wrong.

    Args:
      source: a file, folder or name that `load_weights` reads, `format` and `stride_in` as there; or what it gave.
      output: NAME.safetensors of "resnet_jax" and "torchvision", a new folder of "timm" and "huggingface".
      to: one of `TARGETS`.
      format: what the source is; None recognises it.
      stride_in: see `load_weights`.
      mean: of the channels red, green, blue, in pixels from 0 to 255; or a mean image [h, w, c], also as a .binaryproto
        file of Caffe.
      std: of the channels, likewise.
      image_size: side of the square crop that the net sees.
      short_side: of the image before its centre is cropped.
      resize: one of `data.resize.RESIZES`.
      class_names: by class number.
      name: what the net is called; None is what its layers say, e.g. "resnet50_v1_5".
      license: on what terms the parameters may be used.
      overwrite: whether a file at `output` is replaced, which may be the source itself; a folder that is not empty
        never is.

    Returns:
      What was written.

    Raises:
      FileExistsError: there is something at `output`, see `overwrite`; nothing is read then.
      FileNotFoundError: there is no such source.
      ValueError: the source is none that can be used, an argument is not allowed, or the target cannot express the net.
    """
    if to not in TARGETS:
        raise ValueError(f"to={to!r} is not one of {', '.join(TARGETS)}")
    if to in ("timm", "huggingface"):
        check_new_folder(output)
    elif not overwrite:
        check_new_file(output)
    if isinstance(source, WeightFile):
        file = source
    else:
        file = load_weights(source, format=format, stride_in=stride_in)
        file = dataclasses.replace(file, source=file.source or _origin(source))
    if isinstance(mean, str | os.PathLike):
        mean = read_binaryproto(mean)
    given = {"mean": mean, "std": std, "image_size": image_size, "short_side": short_side, "resize": resize}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if changes or class_names is not None:
        file = dataclasses.replace(file, input=_changed_input(file, changes, class_names))
    file = dataclasses.replace(file, name=name or file.name, license=license or file.license)
    _write(output, file, to)
    return file


def _write(output: str | os.PathLike, file: WeightFile, to: str) -> None:
    if to == "resnet_jax":
        described = {field.name: getattr(file, field.name) for field in dataclasses.fields(file)}
        save_pretrained(output, **described)
    elif to == "torchvision":
        write_torchvision(output, file.model, file.variables)
        _warn_of_loss(output, file)
    elif file.input is None:
        raise ValueError(f"{to} needs what the net expects of its input: give mean, std and image_size")
    elif to == "timm":
        write_timm(output, file.model, file.variables, input=file.input)
    else:
        write_huggingface(output, file.model, file.variables, input=file.input)


def _warn_of_loss(output: str | os.PathLike, file: WeightFile) -> None:
    """Logs what is known of the net and no state dict holds."""
    view = ("image size", "mean", "std", "resizing", "class names") if file.input is not None else ()
    labels = (key for key in ("name", "metrics", "source", "license") if getattr(file, key))
    if lost := ", ".join((*view, *labels)):
        _log.warning("%s: a state dict cannot hold, and so it lacks: %s", output, lost)


def _changed_input(file: WeightFile, changes: dict[str, Any], class_names: Sequence[str] | None) -> InputDescription:
    """The file's description with what was given instead; the rest is the file's, or a new one's."""
    old = file.input
    if old is None and not {"mean", "std", "image_size"} <= changes.keys():
        raise ValueError("what the net expects of its input is not known: mean, std and image_size are needed together")
    channels = file.variables["params"]["stem"]["conv"]["kernel"].shape[2]
    shape = (0, 0, channels) if old is None else old.image_shape
    if "image_size" in changes:
        shape = (changes["image_size"], changes["image_size"], channels)
    fields: dict[str, Any] = {} if old is None else vars(old)
    fields = {**fields, **{key: changes[key] for key in ("short_side", "resize") if key in changes}}
    for key in ("mean", "std"):
        fields[key] = np.asarray(changes[key] if key in changes else fields[key], np.float32)
        if fields[key].shape not in ((channels,), shape)[: 2 if key == "mean" else 1]:
            raise ValueError(f"{key} has shape {fields[key].shape}; the net's images have shape {shape}")
        if key in changes and 0 < fields[key].max() <= (1 if key == "mean" else 0.999):
            raise ValueError(f"{key}={changes[key]}: it is of pixels from 0 to 255; of those from 0 to 1, 255 times it")
    if "resize" in changes:
        check_resize(changes["resize"])
    if isinstance(class_names, str):
        raise ValueError(f"class_names={class_names!r} must be a list of texts, not one")
    if class_names is not None:
        fields["class_names"] = tuple(class_names)
    elif old is None:
        fields["class_names"] = default_class_names(file.model.num_classes or 0)
    short, longest = fields.get("short_side"), max(shape[:2])
    if short is not None and short < longest:
        raise ValueError(f"short_side={short} is below the image's {longest} pixels")
    return InputDescription(**{**fields, "image_shape": shape, "source": "stated: who converted it"})


def _origin(source: str | os.PathLike) -> str:
    """The file's name and digest; a folder's name alone."""
    path = Path(source)
    if path.is_dir():
        return path.resolve().name
    with path.open("rb") as file:
        return f"{path.name}, sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"
