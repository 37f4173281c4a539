"""Batches of images that stay on disk, decoded by worker processes; numpy alone, no jax.

Training reads the same endless stream as a data set in memory: epoch after epoch, each a fresh permutation of all
examples; batch k holds the stream's positions k * batch_size and on. The example at a position, and how it is cropped,
depend on the seed and the position alone: not on workers, hosts or restarts. A stream is opened at any step at the
same cost: it needs the permutation of that step's epoch and nothing of what was before.
"""

import functools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags
from jaxtyping import Float32, Int32, Int64, UInt8

from resnet_jax.data.augment import TrainView, example_rng
from resnet_jax.data.decode import UndecodableImage, use_one_thread
from resnet_jax.data.examples import Examples

UNREADABLE = ("stop", "skip")
# Decoded by the time that worker processes would need to start.
_FEW = 1000
_FEW_CORES = 4
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
        size, channels = self.view.image_size, self.view.channels
        images = np.empty((len(self.rows), size, size, channels), np.uint8)
        labels = np.empty(len(self.rows), np.int32)
        weights = np.ones(len(self.rows), np.float32)
        for row, offset in enumerate(self.rows):
            position = step * self.batch_size + offset
            index = self.example_at(position)
            encoded, labels[row] = self.examples[index]
            try:
                images[row] = self.view(encoded, example_rng(self.seed, position))
            except UndecodableImage as error:
                message = f"{self.examples.where(index)}: {error}"
                if self.unreadable == "stop":
                    raise UndecodableImage(f"{message}; data.unreadable=skip leaves such images out") from error
                _log.warning("left out: %s", message)
                images[row], weights[row] = 0, 0
        return HostBatch(images, labels, weights)

    def example_at(self, position: int) -> int:
        """The index of the example at a position of the endless stream of training examples."""
        epoch, offset = divmod(position, len(self.examples))
        return int(_order(self.seed, epoch, len(self.examples))[offset])

    def stream(self, *, first_step: int, stop_step: int, workers: int | None = None) -> "Stream":
        """The batches from `first_step` up to `stop_step` in their order, decoded ahead of time."""
        return Stream(self, range(first_step, stop_step), workers=workers)


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> Int64[np.ndarray, " n"]:
    """The permutation of one epoch, kept for the batches beside; it takes some 50 ms for a million examples."""
    # Far from the numbers that `example_rng` draws with a key of the same form.
    philox = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=2**192)
    return np.random.Generator(philox).permutation(count)


class ViewedExamples:
    """Parts of a split in its order, as a test views them: part k is the examples [k * size, (k + 1) * size).

    A part is a list of (what the view returned, label). An image that cannot be decoded always raises: a test counts
    every image.
    """

    def __init__(self, examples: Examples, view: Callable[[bytes], Any], *, size: int):
        self.examples, self.view, self.size = examples, view, size

    def __len__(self) -> int:
        return -(-len(self.examples) // self.size)

    def __getitem__(self, part: int) -> list[tuple[Any, int]]:
        indices = range(part * self.size, min((part + 1) * self.size, len(self.examples)))
        return [self.examples.decoded(index, self.view) for index in indices]

    def stream(self, *, workers: int | None = None) -> "Stream":
        """All parts in their order, decoded ahead of time; `workers` as for `Stream`, but None is 0 for few images."""
        if workers is None and len(self.examples) < _FEW:
            workers = 0
        return Stream(self, range(len(self)), workers=workers)


class Stream:
    """Iterates over source[k] for k in a range, in order, computed by worker processes ahead of time.

    Worker processes are started anew ("spawn"): a program that trains from a script needs `if __name__ == "__main__":`.
    `close` ends them; a `with` block does so by itself. How many items are under way is bounded, and so is the memory.

    Args:
      source: picklable, with `__getitem__(k)`.
      keys: the range.
      workers: processes; 0 decodes in threads of this process, one a core. None is 0 on up to four cores: threads start
        at once and share their memory. On more it is as many processes as cores: Python lets threads of one process
        run only one at a time for about a tenth of the work.
    """

    def __init__(self, source: Any, keys: range, *, workers: int | None = None):
        cores = available_cores()
        if workers is None:
            workers = 0 if cores <= _FEW_CORES else cores
        workers = min(workers, len(keys))
        threads = 1 if workers else cores
        # Grain's threads keep what they passed on last, shared memory and all: they end on empty items.
        endings = 4 * workers
        dataset = (
            grain.MapDataset.source(_At(source, keys, endings))
            .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
            .mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
                worker_init_fn=_start_worker,
            )
        )
        if workers and not flags.FLAGS.is_parsed():
            # Grain reads a flag of its own, which only programs that start with absl's `app.run` have parsed.
            flags.FLAGS.mark_as_parsed()
        self._iterator: Any = iter(dataset)
        self._left = len(keys)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._left:
            self.close()
            raise StopIteration
        self._left -= 1
        return next(self._iterator)

    def close(self) -> None:
        """Ends the workers and gives up what they have prepared; a second call does nothing."""
        if self._iterator is not None:
            self._iterator.close()
        # Grain's iterator complains when Python's own end is what it goes with.
        self._iterator, self._left = None, 0

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _At:
    """A source whose first item is the first key's, and which ends on empty items."""

    def __init__(self, source: Any, keys: range, endings: int):
        self._source, self._keys, self._endings = source, keys, endings

    def __len__(self) -> int:
        return len(self._keys) + self._endings

    def __getitem__(self, index: int) -> Any:
        return self._source[self._keys[index]] if index < len(self._keys) else ()


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker(index: int, count: int) -> None:
    del index, count
    # An interrupt from the keyboard reaches all processes; the main one ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    use_one_thread()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A main process that is killed cannot end its workers; they would wait for it, and hold their memory, for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
