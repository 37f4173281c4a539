"""Training batches of images with boxes, decoded by threads or worker processes; each of one shape.

Every epoch takes each image once, in an order of its own. Images of one shape share batches: those that are wider than
high, and the others. The last batch of a shape is filled up with images of weight 0, so that none is left out. Which
images a step sees, and how they are cropped and mirrored, follows from the seed and the step alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, Int64

from resnet_jax.data.augment import example_rng
from resnet_jax.data.device_augment import normalize
from resnet_jax.data.stream import Stream
from resnet_jax.detection.annotations import Annotated, BoxSource, naming
from resnet_jax.detection.batches import BoxExample, nothing_framed, stacked
from resnet_jax.detection.objective import BoxBatch
from resnet_jax.detection.targets import Truth


class HostBoxes(NamedTuple):
    """The rows of a batch that one host decodes.

    Attributes:
      examples: the images and their objects, see `BoxExample`.
      weight: 1 for an image, 0 for what fills the batch up, float32 [n].
      position: of each row among all rows of the run, int32 [n].
    """

    examples: BoxExample
    weight: Float32[np.ndarray, " n"]
    position: Int32[np.ndarray, " n"]


@runtime_checkable
class ExampleFraming(Protocol):
    """What makes examples of images, such as `Framing`; picklable, so that worker processes have it."""

    @property
    def max_boxes(self) -> int:
        """Objects that an image can have."""

    @property
    def fill(self) -> tuple[int, int, int]:
        """Colour of what fills a batch up."""

    def buckets(self, source: BoxSource) -> list[tuple[int, int]]:
        """(height, width) of the example of each image, in pixels."""

    def example(self, example: Annotated, index: int, rng: np.random.Generator, *, flip: bool) -> BoxExample:
        """The example of an image, of its place in the source and of the random numbers alone."""


class BoxBatches:
    """The training batches of one host by step, each computed when asked for.

    Args:
      source: of the images.
      framing: how they become examples.
      seed: of order and examples.
      batch_size: images of all hosts together.
      rows: this host's rows of each batch; None is all.
      flip: whether half of the images are mirrored.
    """

    def __init__(
        self,
        source: BoxSource,
        framing: ExampleFraming,
        *,
        seed: int,
        batch_size: int,
        rows: range | None = None,
        flip: bool = True,
    ):
        self.source, self.framing, self.seed, self.flip = source, framing, seed, flip
        self.batch_size = batch_size
        self.rows = range(batch_size) if rows is None else rows
        self.buckets = framing.buckets(source)
        kinds = sorted(set(self.buckets))
        self.kinds = [np.flatnonzero([bucket == kind for bucket in self.buckets]) for kind in kinds]

    @property
    def steps_per_epoch(self) -> int:
        """Batches in which every image comes once."""
        return sum(-(-len(kind) // self.batch_size) for kind in self.kinds)

    def __getitem__(self, step: int) -> HostBoxes:
        """The batch of the update that turns `step` into step + 1."""
        indices = self.indices(step)
        rows = list(self.rows)
        positions = [step * self.batch_size + row for row in rows]
        some = next(int(index) for index in indices if index >= 0)
        filling = nothing_framed(self.buckets[some], self.framing)
        examples = [
            self._example(int(indices[row]), position) if indices[row] >= 0 else filling
            for row, position in zip(rows, positions, strict=True)
        ]
        weight = (indices[rows] >= 0).astype(np.float32)
        return HostBoxes(stacked(examples), weight, np.array(positions, np.int32))

    def indices(self, step: int) -> Int64[np.ndarray, " n"]:
        """Of the images in a batch of all hosts; -1 is none."""
        epoch, number = divmod(step, self.steps_per_epoch)
        # Far from the numbers that `example_rng` draws with a key of the same form.
        philox = np.random.Philox(key=np.array([self.seed, epoch], np.uint64), counter=2**192)
        random, batches = np.random.Generator(philox), []
        for kind in self.kinds:
            order = random.permutation(kind)
            filled = np.concatenate([order, np.full(-len(order) % self.batch_size, -1)])
            batches.append(filled.reshape(-1, self.batch_size))
        return np.concatenate(batches)[random.permutation(self.steps_per_epoch)[number]]

    def _example(self, index: int, position: int) -> BoxExample:
        with naming(self.source, index):
            return self.framing.example(self.source[index], index, example_rng(self.seed, position), flip=self.flip)

    def stream(self, *, first_step: int, stop_step: int, workers: int | None = None) -> Stream:
        """The batches from `first_step` up to `stop_step` in their order, decoded ahead of time."""
        return Stream(self, range(first_step, stop_step), workers=workers)


def make_prepare(mean: np.ndarray, std: np.ndarray) -> Callable[..., BoxBatch]:
    """Returns what makes a `BoxBatch` of the fields of a `HostBoxes`, and of the step, on the devices.

    Args:
      mean: of each channel, in pixel values.
      std: likewise.
    """

    def prepare(examples: BoxExample, weight: Any, position: Any, step: Any) -> BoxBatch:
        del step
        truth = Truth(
            *(jnp.asarray(each) for each in (examples.boxes, examples.labels, examples.valid, examples.ignored))
        )
        image: Array = normalize(jnp.asarray(examples.image), mean, std)
        return BoxBatch(image, jnp.asarray(examples.size), truth, weight, position)

    return prepare
