"""Items computed ahead of time, in their order, by threads or by worker processes: the one use of Grain."""

import gc
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from typing import Any

import grain
from absl import flags

from resnet_jax.data.decode import use_one_thread
from resnet_jax.environment import available_cores

_FEW_CORES = 4
_ITEMS_READY = 2
# Which process it was, Grain does not say.
_GRAIN_SAYS = re.compile(r"Worker process was terminated unexpectedly with exit code (-?\d+)")


class WorkerLost(RuntimeError):
    """A worker process has ended by itself; as a rule the system killed it, for want of memory."""


class Stream:
    """Iterates over source[k] for k in a range, in order, computed by worker processes ahead of time.

    Worker processes are started anew ("spawn"): a program that trains from a script needs `if __name__ == "__main__":`.
    `close` ends them; a `with` block does so by itself. At most four items a worker are under way at a time, and two
    a thread; those of processes lie in shared memory (/dev/shm, of which containers have little unless told).

    What the source raises comes out of `next`, from whichever thread or process. A process that ends by itself is
    noticed as soon as an item of its is due, within some two seconds: WorkerLost, with its process id.

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
        self._workers = workers = min(workers, len(keys))
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
        self._others = set(multiprocessing.active_children())
        self._processes: set[BaseProcess] = set()
        self._iterator: Any = iter(dataset)
        self._left = len(keys)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._left:
            self.close()
            raise StopIteration
        self._left -= 1
        try:
            item = next(self._iterator)
        except RuntimeError as error:
            ends = [(f"process {one.pid}", one.exitcode) for one in self._processes if one.exitcode]
            if not ends and (found := _GRAIN_SAYS.match(str(error))):
                ends = [("one that had just started", int(found[1]))]
            if not ends:
                raise
            raise WorkerLost(self._lost(ends)) from error
        if len(self._processes) < self._workers:
            # Grain starts them by and by, and keeps them to itself.
            self._processes = set(multiprocessing.active_children()) - self._others
        return item

    def _lost(self, ends: list[tuple[str, int]]) -> str:
        named = ", ".join(f"{name} ({_end(exit_code)})" for name, exit_code in ends)
        return (
            f"lost {len(ends)} of {self._workers} data workers: {named}; a kill is as a rule the system's, "
            "for want of memory: take fewer with data.workers, or 0 for threads, which share theirs"
        )

    def close(self) -> None:
        """Ends the workers and gives up what they have prepared; a second call does nothing."""
        if self._iterator is None:
            return
        self._iterator.close()
        # Grain's iterator complains when Python's own end is what it goes with.
        self._iterator, self._left = None, 0
        self._processes.clear()
        if self._workers:
            # It is part of cycles, with semaphores. Those would go when Python next happens to look for cycles; if that
            # is within its own list of semaphores, Python 3.12 warns and leaks them.
            gc.collect()

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


def _end(exit_code: int) -> str:
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"exit code {exit_code}"


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
