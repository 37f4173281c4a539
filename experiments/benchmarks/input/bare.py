"""The speed limit of `ours`: the same boxes of the same images through `decode_box`, in one thread, from memory."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from ours import train_batches
from pipelines import Source

from resnet_jax.data.augment import example_rng, inception_crop_box, scale_crop_box
from resnet_jax.data.decode import Box, decode_box, image_size, use_one_thread
from resnet_jax.data.streaming import TrainBatches

# Boxes are drawn beforehand, for this many epochs, and then used again.
EPOCHS = 8


@contextmanager
def open_batches(
    source: Source, *, crop: str, workers: int, batch_size: int, resize: str
) -> Iterator[Iterator[list[np.ndarray]]]:
    if workers != 1:
        raise ValueError(f"workers={workers}: the bare calls are made by one thread")
    use_one_thread()
    batches = train_batches(source, crop=crop, batch_size=batch_size, resize=resize)
    encoded = [batches.examples[index].image for index in range(len(batches.examples))]
    work = [_drawn(batches, encoded, position) for position in range(EPOCHS * len(encoded))]
    size = (batches.view.image_size, batches.view.image_size)
    views = (decode_box(encoded[index], box, size, resize=resize) for index, box in itertools.cycle(work))
    yield (list(itertools.islice(views, batch_size)) for _ in itertools.count())


def _drawn(batches: TrainBatches, encoded: list[bytes], position: int) -> tuple[int, Box]:
    """Which image stands at a position of the stream, and the box that `TrainView` draws there."""
    index, view, rng = batches.example_at(position), batches.view, example_rng(batches.seed, position)
    height, width = image_size(encoded[index])
    if view.crop == "scale":
        box = scale_crop_box(rng, height, width, image_size=view.image_size, short_sides=view.short_sides)
    else:
        box = inception_crop_box(rng, height, width, area=view.area, aspect=view.aspect)
    return index, box
