"""Scores of a split whose images stay on disk: parts of one shape are gathered to batches, rows go back to images."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float32, Int32

from resnet_jax.data.examples import Examples
from resnet_jax.data.streaming import ViewedExamples
from resnet_jax.distributed import split_batch
from resnet_jax.evaluation.protocols import Protocol

ScoreBatch = Callable[[Array, Array], Array]
# While the devices compute one batch, the host fills the next.
_BATCHES_IN_FLIGHT = 1


def score_streamed(
    score_batches: Sequence[ScoreBatch],
    examples: Examples,
    *,
    mesh: Mesh,
    protocol: Protocol,
    num_classes: int,
    batch_size: int,
    workers: int | None,
    unreadable: str = "stop",
    share: range | None = None,
) -> tuple[list[Float32[np.ndarray, "m classes"]], Int32[np.ndarray, " m"]]:
    """Scores every image of a split, or of a share of it, once by each net; an image is decoded once for all.

    On the host wait, besides the scores [n, classes], what the workers decode ahead, and at most one unfinished batch
    for each shape of a part: center and ten_crop have one; multi_scale has for each scale as many as `padded_shape`,
    six unless an image is longer than four times its width. The unfinished ones are computed at the end as they are,
    so there is one program for each shape. If the mesh has devices of several processes, each decodes all images and
    its devices take their rows of every batch.

    Args:
      score_batches: of each net (uint8 images, sizes) -> scores on all devices, see `Protocol.scores`.
      examples: the split.
      mesh: devices that share a batch.
      protocol: how images are viewed.
      num_classes: of the nets.
      batch_size: images of the net's own input size that the devices take at once; of larger parts they take fewer.
      workers: decoding processes, see `Stream`.
      unreadable: see `ViewedExamples`.
      share: the images to be scored, one stretch of the split; None is all.

    Returns:
      Each net's scores, and labels, in the split's order, of the images that could be decoded.

    Raises:
      UndecodableImage: for an image that cannot be decoded; the message names it.
      RuntimeError: if not every part of every image was scored once.
    """
    share = range(len(examples)) if share is None else share

    def rows_of(batch_shape: tuple[int, ...]) -> int:
        return divisible(min(len(share), max(1, int(batch_size / protocol.work(batch_shape)))), mesh)

    def score(images: np.ndarray, sizes: np.ndarray) -> list[Array]:
        arrays = _on_devices(images, mesh), _on_devices(sizes, mesh)
        return [score_batch(*arrays) for score_batch in score_batches]

    rows = [_Rows(len(share), num_classes, average=protocol.average) for _ in score_batches]
    labels = np.empty(len(share), np.int32)
    batches = _Batches(score, rows, rows_of)
    parts_per_image = 1
    readable = np.ones(len(share), bool)
    viewed = ViewedExamples(examples, protocol.view, size=protocol.images_per_part, unreadable=unreadable, share=share)
    with viewed.stream(workers=workers) as stream:
        for index, example in enumerate(example for several in stream for example in several):
            if example is None:
                readable[index] = False
                continue
            parts = example[0] if isinstance(example[0], list) else [example[0]]
            parts_per_image = len(parts)
            for number, part in enumerate(parts):
                batches.add(index, number, part, protocol.batch_shape(part.shape))
            labels[index] = example[1]
    batches.finish()
    return [own.means(parts_per_image, readable) for own in rows], labels[readable]


def divisible(batch_size: int, mesh: Mesh) -> int:
    """The next multiple of the number of devices."""
    return -(-batch_size // mesh.size) * mesh.size


class _Batches:
    """Gathers parts to batches of one shape, and computes those that are full."""

    def __init__(self, score: Callable, rows: "list[_Rows]", rows_of: Callable[[tuple[int, ...]], int]):
        self._score, self._rows, self._rows_of = score, rows, rows_of
        self._unfinished: dict[tuple[int, tuple[int, ...]], _Batch] = {}
        self._in_flight: deque[tuple[list[int], list[Array]]] = deque()

    def add(self, index: int, number: int, part: np.ndarray, shape: tuple[int, ...]) -> None:
        """Takes a part of an image, of that number among the image's parts and that shape in a batch."""
        # Not by shape alone: two parts of one image in a batch would be added to its row at once.
        key = (number, shape)
        if key not in self._unfinished:
            self._unfinished[key] = _Batch(self._rows_of(shape), shape)
        self._unfinished[key].add(index, part)
        if self._unfinished[key].is_full:
            self._start(self._unfinished.pop(key))

    def finish(self) -> None:
        """Computes what is left, and waits for all."""
        while self._unfinished:
            self._start(self._unfinished.popitem()[1])
        while self._in_flight:
            self._take()

    def _start(self, batch: "_Batch") -> None:
        self._in_flight.append((batch.indices, self._score(batch.images, batch.sizes)))
        if len(self._in_flight) > _BATCHES_IN_FLIGHT:
            self._take()

    def _take(self) -> None:
        indices, scores = self._in_flight.popleft()
        for rows, own in zip(self._rows, scores, strict=True):
            rows.add(indices, own)


class _Batch:
    """Parts of one shape, and the numbers of the images they belong to."""

    def __init__(self, size: int, shape: tuple[int, ...]):
        # New memory for each: the devices may still read the last one's.
        self.images = np.zeros((size, *shape), np.uint8)
        # Of a row without an image, the whole.
        self.sizes = np.tile(np.asarray(shape[-3:-1], np.int32), (size, 1))
        self.indices: list[int] = []

    def add(self, index: int, part: np.ndarray) -> None:
        row = len(self.indices)
        self.images[row][tuple(slice(length) for length in part.shape)] = part
        self.sizes[row] = part.shape[-3:-1]
        self.indices.append(index)

    @property
    def is_full(self) -> bool:
        return len(self.indices) == len(self.images)


class _Rows:
    """One row of scores for each image, averaged over its parts, and how many have come in."""

    def __init__(self, count: int, num_classes: int, *, average: str):
        # Means of probabilities are kept as logarithms, of which 0 has -inf.
        nothing = -np.inf if average == "probabilities" else 0.0
        self._add: Any = np.logaddexp if average == "probabilities" else np.add
        self._average = average
        self._totals = np.full((count, num_classes), nothing, np.float32)
        self._counts = np.zeros(count, np.int64)

    def add(self, indices: list[int], scores: Any) -> None:
        """Adds the first rows of a batch to the given images, no image twice; waits for the devices."""
        scores = np.asarray(scores)[: len(indices)]
        self._totals[indices] = self._add(self._totals[indices], scores)
        self._counts[indices] += 1

    def means(self, parts_per_image: int, readable: Bool[np.ndarray, " n"]) -> Float32[np.ndarray, "m classes"]:
        """The rows of the readable images; RuntimeError unless each has all of its parts."""
        wrong = np.flatnonzero(self._counts != parts_per_image * readable)
        if wrong.size:
            raise RuntimeError(
                f"{wrong.size} of {len(self._counts)} images were not scored once in each of their {parts_per_image} "
                "parts; every one must count once"
            )
        totals = self._totals[readable]
        if self._average == "logits":
            return totals / np.float32(parts_per_image)
        return totals - np.log(np.float32(parts_per_image))


def _on_devices(array: np.ndarray, mesh: Mesh) -> Array:
    return jax.make_array_from_callback(array.shape, split_batch(mesh), lambda rows: array[rows])
