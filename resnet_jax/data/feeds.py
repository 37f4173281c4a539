"""What a training step takes besides its state: from a set in device memory, or streamed one step ahead of training."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from resnet_jax.data.resident import EpochOrders, ResidentData
from resnet_jax.data.stream import Stream
from resnet_jax.distributed import split_batch

_BATCHES_AHEAD = 2


@runtime_checkable
class Feed(Protocol):
    """Where the training images come from."""

    def arguments(self, step: int) -> tuple[Any, ...]:
        """What the update that turns `step` into step + 1 takes after state and progress."""

    def close(self) -> None:
        """Ends what has to be ended."""


class ResidentFeed:
    """A whole split, and the orders of the epochs that a step touches; see `make_resident_step`.

    Args:
      data: the split.
      seeds: of the run; what is of each has a leading axis if there are several.
      batch_size: examples per step of one seed.
    """

    def __init__(self, data: ResidentData, *, seeds: Sequence[int], batch_size: int):
        self._data, self._batch_size = data, batch_size
        self._seed = jnp.asarray(seeds if len(seeds) > 1 else seeds[0], jnp.int32)
        self._orders = EpochOrders(seed=self._seed, count=len(data))

    def arguments(self, step: int) -> tuple[Array, ResidentData, Array, int]:
        """The seeds, the split, the orders, and the position at which the first of them starts."""
        return (self._seed, self._data, *self._orders.at(step * self._batch_size))

    def close(self) -> None:
        """Does nothing: there is nothing to end."""


@runtime_checkable
class Streamed(Protocol):
    """Batches of one host by step, such as `TrainBatches`."""

    def stream(self, *, first_step: int, stop_step: int, workers: int | None = None) -> Stream:
        """A stream of them in their order, each a NamedTuple of arrays whose first axis is the examples'."""


class StreamedFeed:
    """One batch a step, fetched and copied to the devices while earlier steps run; see `make_streamed_step`."""

    def __init__(self, batches: Streamed, mesh: Mesh, *, total_steps: int, workers: int | None):
        self._batches, self._mesh = batches, mesh
        self._total_steps, self._workers = total_steps, workers
        self._stream: Stream | None = None
        self._fetcher: ThreadPoolExecutor | None = None
        self._next_step = 0
        self._ahead: deque[Future[tuple[Any, ...]]] = deque()

    def arguments(self, step: int) -> tuple[Any, ...]:
        """The batch's fields. Steps come in their order; another one opens the stream there."""
        if self._fetcher is None or step != self._next_step:
            self._open(step)
        self._next_step = step + 1
        batch = self._ahead.popleft().result()
        if step + _BATCHES_AHEAD < self._total_steps:
            self._fetch_one()
        return batch

    def close(self) -> None:
        """Ends the workers."""
        if self._fetcher is not None:
            self._fetcher.shutdown(cancel_futures=True)
        if self._stream is not None:
            self._stream.close()
        self._stream = self._fetcher = None
        self._ahead.clear()

    def _open(self, step: int) -> None:
        self.close()
        self._stream = self._batches.stream(first_step=step, stop_step=self._total_steps, workers=self._workers)
        # One thread, so that batches come in their order.
        self._fetcher = ThreadPoolExecutor(1)
        for _ in range(min(_BATCHES_AHEAD, self._total_steps - step)):
            self._fetch_one()

    def _fetch_one(self) -> None:
        assert self._fetcher is not None
        self._ahead.append(self._fetcher.submit(self._next_batch))

    def _next_batch(self) -> tuple[Any, ...]:
        assert self._stream is not None
        batch: tuple = next(self._stream)
        share = split_batch(self._mesh)
        return tuple(jax.tree.map(lambda array: jax.make_array_from_process_local_data(share, array), batch))


class FeedWithVariables:
    """A feed whose arguments begin with a net's variables."""

    def __init__(self, feed: Feed, variables: dict):
        self._feed, self._variables = feed, variables

    def arguments(self, step: int) -> tuple[Any, ...]:
        """The variables, and the feed's own."""
        return (self._variables, *self._feed.arguments(step))

    def close(self) -> None:
        """Closes the feed."""
        self._feed.close()
