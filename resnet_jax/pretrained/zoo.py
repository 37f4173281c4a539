"""Public weights by name: where they are, how to know them, what was reported of them, and what input they take.

zoo.json is the catalogue. Its names are timm's for the same weights, MODEL.TRAINING, and for the CIFAR nets after their
author. A file's "sha256" is all of it, or its first digits where no more is published: torchvision and timm put the
first 8 into a file's name, which is also all that torch.hub checks. They find a damaged or mistaken file. They are 32
bits, so somebody who wants to can make another file that has them: against that stand the connection, which is HTTPS to
the publisher, and the reader, which runs nothing that is in a file. "size" is exact; where it is not published
"max_size" stands for it, torchvision's rounded figure or a tenth more than the net's tensors take.

The paper's own Caffe nets are not in it: they have no lasting HTTPS address.
"""

import difflib
import fnmatch
import json
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_jax.cache_folder import cache_folder
from resnet_jax.data.input_description import InputDescription
from resnet_jax.data.resize import RESIZES
from resnet_jax.download import RemoteFile, download
from resnet_jax.models.names import settings_of
from resnet_jax.pretrained.class_names import CIFAR10_NAMES, imagenet_class_names
from resnet_jax.pretrained.inputs import in_pixels
from resnet_jax.pretrained.json_section import LARGEST_IMAGE, JsonSection
from resnet_jax.pretrained.net_settings import check_keys

PathLike = str | os.PathLike

_CATALOGUE = Path(__file__).with_name("zoo.json")
_FORMAT_VERSION = 1
_LARGEST_CATALOGUE_BYTES = 4 * 2**20
_FORMATS = ("torchvision", "timm", "huggingface", "cifar_th", "msra", "resnet_jax")
_ENTRY_KEYS = (
    "url", "sha256", "size", "max_size", "format", "model", "source", "license", "metrics", "measured_on", "input",
)  # fmt: skip
_METRICS = ("error_top1", "error_top5")
_INPUT_KEYS = ("image_size", "short_side", "resize", "mean", "std", "class_names")


@dataclass(frozen=True, eq=False)
class ZooEntry:
    """Weights that have a name.

    Attributes:
      name: e.g. "resnet50.tv_in1k".
      file: where they are and how to know them.
      format: whose file it is: "torchvision", "timm", "huggingface", "cifar_th", "msra" or "resnet_jax".
      model: the net's name, e.g. "resnet50_v1_5".
      source: who made them, and how.
      license: on what terms they may be used.
      metrics: what their makers report, "error_top1" and "error_top5", fractions; empty where they report nothing.
      measured_on: on which images they measured that.
      input: what the net expects of its input.
    """

    name: str
    file: RemoteFile
    format: str
    model: str
    source: str
    license: str
    metrics: dict[str, float]
    measured_on: str
    input: InputDescription


def list_pretrained(pattern: str | None = None, *, catalogue: PathLike | None = None) -> list[str]:
    """Names of weights that can be fetched.

    Args:
      pattern: keeps the names that it matches, with * and ? as in a shell, e.g. "resnet50.*"; None is all.
      catalogue: another catalogue's file, in the form of zoo.json; None is the package's own.

    Raises:
      ValueError: see `catalogue_entry`.

    Example:
      >>> list_pretrained("resnet5*tv_in1k")
      ['resnet50.tv_in1k']
    """
    return [name for name in _entries(catalogue) if pattern is None or fnmatch.fnmatchcase(name, pattern)]


def catalogue_entry(name: str, *, catalogue: PathLike | None = None) -> ZooEntry:
    """What is known of named weights.

    Args:
      name: one of `list_pretrained()`.
      catalogue: see `list_pretrained`.

    Raises:
      FileNotFoundError: there is no such catalogue.
      ValueError: an unknown name, or a catalogue that cannot be used; the message names the first thing that is wrong.
    """
    entries = _entries(catalogue)
    if name not in entries:
        close = difflib.get_close_matches(name, entries, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(entries)}"
        raise ValueError(f"no weights are called {name!r}; {hint}")
    return entries[name]


def fetch(name: str, *, cache_dir: PathLike | None = None, catalogue: PathLike | None = None) -> Path:
    """Downloads named weights, unless they are in the cache, and returns their file, CACHE/NAME/FILE.

    A file in the cache is hashed each time, half a second for 240 MB; a damaged one is named in a warning and replaced.

    Args:
      name: one of `list_pretrained()`.
      cache_dir: the cache; None is `cache_folder()`.
      catalogue: see `list_pretrained`.

    Raises:
      ConnectionError: they cannot be downloaded; the message says where the file is expected.
      ValueError: an unknown name, or the download is not what the catalogue says; see `catalogue_entry` and `download`.
    """
    entry = catalogue_entry(name, catalogue=catalogue)
    folder = cache_folder() if cache_dir is None else Path(cache_dir)
    # Each in a folder of its own: many files are called model.safetensors.
    path = folder / entry.name / entry.file.file_name
    if path.exists():
        try:
            entry.file.check(path)
            return path
        except ValueError as error:
            warnings.warn(f"{error}; it is downloaded again", stacklevel=2)
    return download(entry.file, path, replace=True)


def _entries(catalogue: PathLike | None) -> dict[str, ZooEntry]:
    path = _CATALOGUE if catalogue is None else Path(catalogue)
    with path.open("rb") as file:
        content = file.read(_LARGEST_CATALOGUE_BYTES + 1)
    try:
        if len(content) > _LARGEST_CATALOGUE_BYTES:
            raise ValueError(f"it has more than {_LARGEST_CATALOGUE_BYTES} bytes")
        document = json.loads(content)
        check_keys(document, ("format_version", "entries"), where="the file")
        JsonSection(document, "the file").choice("format_version", (_FORMAT_VERSION,))
        entries = JsonSection(document["entries"], "entries")
        return {name: _entry(name, entries.get(name)) for name in entries.keys()}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no catalogue of weights that can be used: {error}") from error


def _entry(name: str, values: Any) -> ZooEntry:
    if not re.fullmatch(r"\w[\w.-]{0,99}", name, re.ASCII):
        raise ValueError(f"the name {name!r} must be at most 100 letters, digits and the signs . _ -")
    check_keys(values, _ENTRY_KEYS, where=name)
    entry = JsonSection(values, name)
    sizes = {key: entry.count(key, 1, 2**40) for key in ("size", "max_size") if entry.get(key) is not None}
    try:
        file = RemoteFile(entry.text("url"), entry.text("sha256"), **sizes)
        settings_of(entry.text("model"), {})
    except ValueError as error:
        raise ValueError(f"{name}: {str(error).removeprefix(f'{name}: ')}") from error
    metrics = entry.section("metrics")
    if unknown := [key for key in metrics.keys() if key not in _METRICS]:
        raise ValueError(f"{name}: metrics has the unknown key {unknown[0]!r}; known: {', '.join(_METRICS)}")
    return ZooEntry(
        name=name,
        file=file,
        format=entry.choice("format", _FORMATS),
        model=entry.text("model"),
        source=entry.text("source"),
        license=entry.text("license"),
        metrics={key: metrics.number(key, 0.0, 1.0) for key in metrics.keys()},
        measured_on=entry.text("measured_on"),
        input=_input(values["input"], f"{name}: input"),
    )


def _input(values: Any, where: str) -> InputDescription:
    check_keys(values, _INPUT_KEYS, where=where)
    section = JsonSection(values, where)
    size, resizing = section.count("image_size", 1, LARGEST_IMAGE), {}
    if section.get("short_side") is not None:
        resizing = {
            "short_side": section.count("short_side", size, 10 * LARGEST_IMAGE),
            "resize": section.choice("resize", RESIZES),
        }
    elif section.get("resize") is not None:
        raise section.wrong("resize", "null, as short_side is")
    class_names = {"imagenet": imagenet_class_names(), "cifar10": CIFAR10_NAMES}
    if isinstance(section.get("class_names"), list):
        names = tuple(section.texts("class_names"))
    else:
        names = class_names[section.choice("class_names", tuple(class_names))]
    return InputDescription(
        (size, size, 3),
        in_pixels(section.numbers("mean", 3, 0.0, 255.0), scale=1.0),
        in_pixels(section.numbers("std", 3, 0.001, 255.0), scale=1.0),
        names,
        source="stated: catalogue of weights",
        **resizing,
    )
