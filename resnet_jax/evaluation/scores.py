"""Per-image scores of a tested net: kept in a file, counted again without the net, averaged over nets."""

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32

from resnet_jax.atomic_files import open_atomically
from resnet_jax.evaluation.metrics import Sums, classification_sums

# Bounds the memory in which errors are counted.
_ROWS_AT_ONCE = 4096
_ARRAYS = {"logits": (np.float32, 2), "labels": (np.int32, 1)}
_TEXTS = ("member", "protocol", "dataset", "split")


@dataclass(frozen=True)
class Scores:
    """What a net says of every image of a split, in the split's order.

    Attributes:
      logits: their softmax are the class probabilities, [n, classes].
      labels: the true class numbers, [n].
      member: the net's name in tables.
      protocol: how it was tested.
      dataset: name of the data set.
      split: in TFDS's syntax.
      step: of the checkpoint; None for scores that are not one net's.
    """

    logits: Float32[np.ndarray, "n classes"]
    labels: Int32[np.ndarray, " n"]
    member: str
    protocol: str
    dataset: str
    split: str
    step: int | None = None

    def errors(self) -> dict[str, float]:
        """{"loss", "error_top1", "error_top5" (fractions), "count"}, as `classification_sums` counts them."""
        return errors_of(self.logits, self.labels)

    def save(self, path: str | os.PathLike) -> None:
        """Writes an .npz file of plain arrays, whole or not at all; folders that are missing are made.

        Raises:
          ValueError: the name does not end in .npz.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"scores are saved as NAME.npz, found {path.name!r}")
        texts: dict[str, Any] = {name: np.asarray(getattr(self, name), np.str_) for name in _TEXTS}
        step = np.asarray(-1 if self.step is None else self.step)
        with open_atomically(path) as file:
            np.savez(file, logits=self.logits, labels=self.labels, step=step, **texts)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Scores":
        """Reads what `save` wrote; no code in the file is ever run.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is another kind of file.
        """
        # numpy says pickles are not allowed of whatever it does not know, and EOFError of an empty file.
        try:
            with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = {name: file[name] for name in (*_ARRAYS, *_TEXTS, "step")}
        except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no file of scores (evaluate --save_scores makes one): {error}") from error
        for name, (dtype, rank) in _ARRAYS.items():
            if arrays[name].dtype != dtype or arrays[name].ndim != rank or len(arrays[name]) != len(arrays["labels"]):
                raise ValueError(
                    f"{path}: {name} is {arrays[name].dtype} of shape {arrays[name].shape}; needed are float32 logits "
                    "[n, classes] and int32 labels [n]"
                )
        step = int(arrays["step"])
        texts = {name: str(arrays[name]) for name in _TEXTS}
        return cls(arrays["logits"], arrays["labels"], **texts, step=None if step < 0 else step)


def errors_of(logits: Float32[np.ndarray, "n classes"], labels: Int32[np.ndarray, " n"]) -> dict[str, float]:
    """{"loss", "error_top1", "error_top5", "count"} of scores that lie on the host, see `classification_sums`."""
    return sums_of(logits, labels).means()


def sums_of(logits: Float32[np.ndarray, "n classes"], labels: Int32[np.ndarray, " n"]) -> Sums:
    """The sums of scores that lie on the host, of none too."""
    sums = Sums.zero()
    for start in range(0, len(labels), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        part = jnp.asarray(logits[rows]), jnp.asarray(labels[rows])
        sums = sums + classification_sums(*part, jnp.ones(len(part[1]), jnp.float32))
    return sums


def ensemble(members: Sequence[Scores]) -> Scores:
    """The ensemble: the mean of the members' class probabilities (their softmax), image by image (section 4.1).

    The paper does not say what is averaged over its six nets; probabilities are what its authors average over crops.

    Args:
      members: at least one; how each was tested may differ.

    Returns:
      Scores whose softmax are the mean probabilities.

    Raises:
      ValueError: no member, or two that were not tested on the same images with the same labels; both are named.
    """
    if not members:
        raise ValueError("an ensemble needs at least one member")
    first = members[0]
    total = np.full(first.logits.shape, -np.inf, np.float32)
    for member in members:
        check_same_images(first, member)
        total = np.asarray(jnp.logaddexp(total, jax.nn.log_softmax(member.logits)))
    protocols = dict.fromkeys(member.protocol for member in members)
    return Scores(
        total - np.float32(np.log(len(members))),
        first.labels,
        member="ensemble",
        protocol=" + ".join(protocols),
        dataset=first.dataset,
        split=first.split,
    )


def check_same_images(first: Scores, other: Scores) -> None:
    """Raises ValueError, naming both members, where they were not tested on the same images with the same labels."""
    for what in ("dataset", "split"):
        _check_equal(first, other, what, getattr(first, what), getattr(other, what))
    _check_equal(first, other, "number of images", len(first.labels), len(other.labels))
    _check_equal(first, other, "number of classes", first.logits.shape[1], other.logits.shape[1])
    differing = np.flatnonzero(first.labels != other.labels)
    if differing.size:
        image = int(differing[0])
        _check_equal(first, other, f"label of image {image}", int(first.labels[image]), int(other.labels[image]))


def _check_equal(first: Scores, other: Scores, what: str, value: object, other_value: object) -> None:
    if value != other_value:
        raise ValueError(
            f"{first.member!r} and {other.member!r} were not tested on the same images: {what} is {value!r} of the "
            f"one, {other_value!r} of the other"
        )
