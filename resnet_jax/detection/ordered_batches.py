"""Batches of images with boxes for a test: each image once, without chance, at one size or several."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from resnet_jax.data.stream import Stream
from resnet_jax.detection.annotations import BoxSource, naming
from resnet_jax.detection.batches import BoxExample, Framing, framed_at, nothing_framed, stacked


def batches_of_kinds(
    source: BoxSource, kind_of: Callable[[tuple[int, int]], Any], *, batch_size: int, share: range | None
) -> list[list[int]]:
    """Numbers of images in batches of one kind each, in the kinds' order; -1 fills up the last one of each kind.

    Args:
      source: of the images.
      kind_of: (height, width) of an image -> what all of a batch have in common.
      batch_size: images of a batch.
      share: the images; None is all.
    """
    # Of a share, too, all sizes, which are then known at the next start.
    sizes, kinds = source.sizes(), dict[Any, list[int]]()
    for index in range(len(source)) if share is None else share:
        kinds.setdefault(kind_of(sizes[index]), []).append(index)
    batches: list[list[int]] = []
    for _, images in sorted(kinds.items()):
        images += [-1] * (-len(images) % batch_size)
        batches += np.reshape(images, (-1, batch_size)).tolist()
    return batches


class OrderedBoxes:
    """The batches of a stretch of a source by number, each of one bucket; of a bucket's images in their order.

    The last batch of either bucket is filled up with images of number -1.

    Args:
      source: of the images.
      framings: sizes at which each image is wanted.
      batch_size: images of a batch.
      share: the images; None is all.
    """

    def __init__(self, source: BoxSource, framings: Sequence[Framing], *, batch_size: int, share: range | None = None):
        self._source, self._framings = source, tuple(framings)
        self._batches = batches_of_kinds(source, framings[0].bucket_of, batch_size=batch_size, share=share)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> tuple[BoxExample, ...]:
        """A batch at each size."""
        images = self._batches[number]
        size = self._source.size(images[0])
        filling = tuple(nothing_framed(framing.bucket_of(size), framing) for framing in self._framings)
        examples = [filling if index < 0 else self._example(index) for index in images]
        return tuple(stacked(each) for each in zip(*examples, strict=True))

    def _example(self, index: int) -> tuple[BoxExample, ...]:
        with naming(self._source, index):
            return framed_at(self._source[index], index, self._framings)

    def stream(self, *, workers: int | None = None) -> Stream:
        """All batches in their order, decoded ahead of time, see `Stream`."""
        return Stream(self, range(len(self)), workers=workers)
