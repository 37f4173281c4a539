"""Batches of images that stay on disk, decoded by threads or worker processes, in numpy.

Training reads the same endless stream as a data set in memory: epoch after epoch, each a fresh permutation of all
examples; batch k holds the stream's positions k * batch_size and on. The example at a position, and how it is cropped,
depend on the seed and the position alone: not on workers, hosts or restarts. A stream is opened at any step at the
same cost: it needs the permutation of that step's epoch and nothing of what was before.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8

from resnet_jax.data.augment import TrainView, example_rng
from resnet_jax.data.check_batch import check_image, check_labels
from resnet_jax.data.decode import UndecodableImage
from resnet_jax.data.examples import Examples
from resnet_jax.data.stream import Stream

UNREADABLE = ("stop", "skip")
# Decoded by the time that worker processes would need to start.
_FEW = 1000
# Decoded in one go, so that what waits in memory is bounded however large a batch is.
_ROWS_AT_ONCE = 64
_log = logging.getLogger(__name__)


class HostBatch(NamedTuple):
    """The rows of a batch that one host decodes.

    Attributes:
      image: uint8 [n, h, w, c], cropped and mirrored.
      label: int32 [n].
      weight: float32 [n]; 0 for an image that could not be decoded, which is left black.
    """

    image: UInt8[np.ndarray, "n h w c"]
    label: Int32[np.ndarray, " n"]
    weight: Float32[np.ndarray, " n"]


class TrainBatches:
    """The training batches of one host by step, each computed when asked for.

    Args:
      examples: of the training split.
      view: crops and augments one image.
      seed: of order and augmentation.
      batch_size: examples of all hosts together.
      rows: this host's rows of each batch; None is all.
      unreadable: "stop" raises UndecodableImage, which names the example, at an image that cannot be decoded; "skip"
        gives it weight 0 and logs its name. Never is another image put in its place.

    Raises (when a batch is decoded):
      UndecodableImage: see `unreadable`.
      ValueError: an image or label that no device may get, see `check_batch`; the message names the example.
    """

    def __init__(
        self,
        examples: Examples,
        view: TrainView,
        *,
        seed: int,
        batch_size: int,
        rows: range | None = None,
        unreadable: str = "stop",
    ):
        if unreadable not in UNREADABLE:
            raise ValueError(f"unreadable={unreadable!r} is not one of {', '.join(UNREADABLE)}")
        self.examples, self.view, self.seed = examples, view, seed
        self.batch_size, self.unreadable = batch_size, unreadable
        self.rows = range(batch_size) if rows is None else rows

    def __getitem__(self, step: int) -> HostBatch:
        """The batch of the update that turns `step` into step + 1."""
        return self._decode(step, self.rows)

    @property
    def parts(self) -> int:
        """Parts that a batch is decoded in."""
        return -(-len(self.rows) // _ROWS_AT_ONCE)

    def part(self, key: int) -> HostBatch:
        """Part `key % parts` of the batch of step `key // parts`."""
        step, number = divmod(key, self.parts)
        return self._decode(step, self.rows[number * _ROWS_AT_ONCE : (number + 1) * _ROWS_AT_ONCE])

    def _decode(self, step: int, rows: range) -> HostBatch:
        size, channels = self.view.image_size, self.view.channels
        positions = [step * self.batch_size + offset for offset in rows]
        indices = [self.example_at(position) for position in positions]
        images = np.zeros((len(rows), size, size, channels), np.uint8)
        labels = [0] * len(rows)
        weights = np.ones(len(rows), np.float32)
        for row, (position, index) in enumerate(zip(positions, indices, strict=True)):
            view = functools.partial(self.view, rng=example_rng(self.seed, position))
            try:
                image, labels[row] = self.examples.decoded(index, view)
            except UndecodableImage as error:
                if self.unreadable == "stop":
                    raise UndecodableImage(f"{error}; data.unreadable=skip leaves such images out") from error
                _log.warning("left out: %s", error)
                weights[row] = 0
                continue
            # Before it is stored among the others, which would convert it.
            check_image(image, images.shape[1:], functools.partial(self.examples.where, index))
            images[row] = image
        classes = self.examples.info.num_classes
        return HostBatch(images, check_labels(labels, classes, lambda row: self.examples.where(indices[row])), weights)

    def example_at(self, position: int) -> int:
        """The index of the example at a position of the endless stream of training examples."""
        epoch, offset = divmod(position, len(self.examples))
        return int(_order(self.seed, epoch, len(self.examples))[offset])

    def stream(self, *, first_step: int, stop_step: int, workers: int | None = None) -> "BatchStream":
        """The batches from `first_step` up to `stop_step` in their order, decoded ahead of time."""
        return BatchStream(self, range(first_step, stop_step), workers=workers)


class BatchStream(Stream):
    """Iterates over batches that are decoded in parts; the parts of one batch may come from several workers."""

    def __init__(self, batches: TrainBatches, steps: range, *, workers: int | None):
        self._parts = batches.parts
        keys = range(steps.start * self._parts, steps.stop * self._parts)
        super().__init__(_Parts(batches), keys, workers=workers)

    def __next__(self) -> HostBatch:
        parts = [super(BatchStream, self).__next__() for _ in range(self._parts)]
        return (
            parts[0] if len(parts) == 1 else HostBatch(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        )


class _Parts:
    def __init__(self, batches: TrainBatches):
        self._batches = batches

    def __getitem__(self, key: int) -> HostBatch:
        return self._batches.part(key)


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> Int64[np.ndarray, " n"]:
    """The permutation of one epoch, kept for the batches beside; it takes some 50 ms for a million examples."""
    # Far from the numbers that `example_rng` draws with a key of the same form.
    philox = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=2**192)
    return np.random.Generator(philox).permutation(count)


class ViewedExamples:
    """Parts of a split in its order, as a test views them: part k is the examples [k * size, (k + 1) * size).

    Of the examples of `share`, one stretch of the split, if that is given.

    A part is a list of (what the view returned, label). An image that cannot be decoded raises, because a test counts
    every image; with `unreadable="skip"`, for what training left out too, it is None in its place and logged.
    """

    def __init__(
        self,
        examples: Examples,
        view: Callable[[bytes], Any],
        *,
        size: int,
        unreadable: str = "stop",
        share: range | None = None,
    ):
        self.examples, self.view, self.size, self.unreadable = examples, view, size, unreadable
        self.share = range(len(examples)) if share is None else share

    def __len__(self) -> int:
        return -(-len(self.share) // self.size)

    def __getitem__(self, part: int) -> list[tuple[Any, int] | None]:
        return [self._viewed(index) for index in self.share[part * self.size : (part + 1) * self.size]]

    def _viewed(self, index: int) -> tuple[Any, int] | None:
        try:
            return self.examples.decoded(index, self.view)
        except UndecodableImage as error:
            if self.unreadable == "stop":
                raise
            _log.warning("left out: %s", error)
            return None

    def stream(self, *, workers: int | None = None) -> Stream:
        """All parts in their order, decoded ahead of time; `workers` as for `Stream`, but None is 0 for few images."""
        if workers is None and len(self.examples) < _FEW:
            workers = 0
        return Stream(self, range(len(self)), workers=workers)
