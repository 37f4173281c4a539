"""Items computed ahead of time, in their order, by threads or by worker processes: the one use of Grain."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import grain
from absl import flags

from resnet_jax.data.decode import use_one_thread
from resnet_jax.environment import available_cores

_FEW_CORES = 4
_ITEMS_READY = 2


class Stream:
    """Iterates over source[k] for k in a range, in order, computed by worker processes ahead of time.

    Worker processes are started anew ("spawn"): a program that trains from a script needs `if __name__ == "__main__":`.
    `close` ends them; a `with` block does so by itself. At most four items a worker are under way at a time, and two
    a thread; those of processes lie in shared memory (/dev/shm, of which containers have little unless told).

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
                grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_ITEMS_READY),
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


def _start_worker(index: int, count: int) -> None:
    del index, count
    # A keyboard's interrupt reaches all processes, and so may a batch system's SIGTERM; the main one ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    use_one_thread()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A main process that is killed cannot end its workers; they would wait for it, and hold their memory, for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
