"""Batches of images with boxes for a test: each image once, without chance, at one size or several."""

from collections.abc import Sequence

import numpy as np

from resnet_jax.data.stream import Stream
from resnet_jax.detection.annotations import BoxSource, naming
from resnet_jax.detection.batches import BoxExample, Framing, framed_at, nothing_framed, stacked


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
        # Of a share, too, all sizes, which are then known at the next start.
        sizes, kinds = source.sizes(), dict[tuple[int, int], list[int]]()
        for index in range(len(source)) if share is None else share:
            kinds.setdefault(framings[0].bucket_of(sizes[index]), []).append(index)
        self._batches: list[list[int]] = []
        for _, images in sorted(kinds.items()):
            images += [-1] * (-len(images) % batch_size)
            self._batches += np.reshape(images, (-1, batch_size)).tolist()

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
