"""`TrainBatches.stream`: workers read, decode, crop, resize, mirror and batch, in processes of their own or threads."""

import os
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
def open_batches(source: Source, *, workers: int, threads: bool = False, **options) -> Iterator[Iterator[np.ndarray]]:
    batches, cores = train_batches(source, **options), os.sched_getaffinity(0)
    if threads:
        # There is one thread for each core that this process may use.
        os.sched_setaffinity(0, sorted(cores)[:workers])
    try:
        with batches.stream(first_step=0, stop_step=ENDLESS, workers=0 if threads else workers) as stream:
            yield (batch.image for batch in stream)
    finally:
        os.sched_setaffinity(0, cores)
