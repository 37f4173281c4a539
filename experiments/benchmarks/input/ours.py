"""`TrainBatches.stream`: worker processes read, decode, crop, resize, mirror and batch; the parent gets the batches."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from pipelines import IMAGE_SIZE, SEED, SHORT_SIDES, Source

from resnet_jax.data.augment import TrainView
from resnet_jax.data.datasets import dataset_info
from resnet_jax.data.examples import Examples
from resnet_jax.data.streaming import TrainBatches

ENDLESS = 1_000_000


def open_examples(source: Source, copy: str | None = None) -> Examples:
    """The split's encoded images, or those of a smaller copy."""
    name, data_dir = (source.dataset, source.data_dir) if copy is None else (source.copies[copy], source.scratch)
    return Examples(dataset_info(name, data_dir=data_dir), source.split)


def train_batches(
    source: Source,
    *,
    crop: str,
    batch_size: int,
    resize: str,
    copy: str | None = None,
    image_size: int = IMAGE_SIZE,
) -> TrainBatches:
    view = TrainView(image_size, crop, short_sides=SHORT_SIDES, resize=resize)
    return TrainBatches(open_examples(source, copy), view, seed=SEED, batch_size=batch_size)


@contextmanager
def open_batches(source: Source, *, workers: int, **options) -> Iterator[Iterator[np.ndarray]]:
    with train_batches(source, **options).stream(first_step=0, stop_step=ENDLESS, workers=workers) as stream:
        yield (batch.image for batch in stream)
