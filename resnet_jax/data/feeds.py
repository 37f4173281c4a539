"""What a training step takes besides its state: from a set in device memory, or streamed one step ahead of training.

A feed has `arguments(step)`, what the update that turns `step` into step + 1 takes after state and progress; `close()`;
and `unreadable`, the images given out with weight 0 so far because they could not be decoded.
"""

from collections import deque

import jax
from jax.sharding import Mesh
from jaxtyping import Array

from resnet_jax.data.resident import EpochOrders, ResidentData
from resnet_jax.data.streaming import HostBatch, Stream, TrainBatches
from resnet_jax.distributed import split_batch

_BATCHES_AHEAD = 2


class ResidentFeed:
    """A whole split, and the orders of the epochs that a step touches; see `make_resident_step`."""

    def __init__(self, data: ResidentData, *, seed: int, batch_size: int):
        self.unreadable = 0
        self._data, self._batch_size = data, batch_size
        self._orders = EpochOrders(seed=seed, count=len(data))

    def arguments(self, step: int) -> tuple[ResidentData, Array, int]:
        """The split, the orders, and the position at which the first of them starts."""
        return (self._data, *self._orders.at(step * self._batch_size))

    def close(self) -> None:
        """Does nothing: there is nothing to end."""


class StreamedFeed:
    """One batch a step, copied to the devices while earlier steps run; see `make_streamed_step`."""

    def __init__(self, batches: TrainBatches, mesh: Mesh, *, total_steps: int, workers: int | None):
        self.unreadable = 0
        self._batches, self._mesh = batches, mesh
        self._total_steps, self._workers = total_steps, workers
        self._stream: Stream | None = None
        self._next_step = 0
        self._ahead: deque[tuple[int, tuple[Array, Array, Array]]] = deque()

    def arguments(self, step: int) -> tuple[Array, Array, Array]:
        """Images (uint8), labels and weights. Steps come in their order; another one opens the stream there."""
        if self._stream is None or step != self._next_step:
            self.close()
            self._stream = self._batches.stream(first_step=step, stop_step=self._total_steps, workers=self._workers)
        self._next_step = step + 1
        while len(self._ahead) < min(_BATCHES_AHEAD, self._total_steps - step):
            batch: HostBatch = next(self._stream)
            self._ahead.append((int((batch.weight == 0).sum()), self._to_devices(batch)))
        unreadable, arrays = self._ahead.popleft()
        self.unreadable += unreadable
        return arrays

    def close(self) -> None:
        """Ends the workers."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None
        self._ahead.clear()

    def _to_devices(self, batch: HostBatch) -> tuple[Array, Array, Array]:
        image, label, weight = (
            jax.make_array_from_process_local_data(split_batch(self._mesh), array) for array in batch
        )
        return image, label, weight


Feed = ResidentFeed | StreamedFeed
