"""Batches of views for a test: each image once, without chance, as a crop or in whole at several scales."""

import math
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from resnet_jax.data.stream import Stream
from resnet_jax.data.views import padded_shape
from resnet_jax.detection.annotations import BoxSource, naming
from resnet_jax.detection.ordered_batches import batches_of_kinds
from resnet_jax.localization.views import HostView, centre_view, stacked_views, whole_views


class Looking(NamedTuple):
    """What a test makes of an image.

    Attributes:
      side: of the centre crop, in pixels.
      short_side: of the scaled image that it is taken from.
      short_sides: of the whole images that are looked at instead, rising; empty: the crop.
      cut_side: shorter side of the whole image that regions are cut from; None: none are.
      resize: see `resize_image`.
    """

    side: int
    short_side: int
    short_sides: tuple[int, ...]
    cut_side: int | None
    resize: str

    @property
    def whole_sides(self) -> tuple[int, ...]:
        """Shorter sides of the whole images that there are."""
        return (*self.short_sides, *(() if self.cut_side is None else (self.cut_side,)))

    def views(self, encoded: bytes) -> list[HostView]:
        """Those that propose, and after them the one that regions are cut from, if any are."""
        crop, whole = [] if self.short_sides else [self._crop(encoded)], self.whole_sides
        return crop + (whole_views(encoded, short_sides=whole, resize=self.resize) if whole else [])

    def shapes(self, size: tuple[int, int], *, stride: int) -> tuple[tuple[int, int], ...]:
        """(height, width) to which each view of an image of that size is padded."""
        length = math.ceil(self.side / stride) * stride
        crop = [] if self.short_sides else [(length, length)]
        return *crop, *(padded_shape(*size, short_side=side, stride=stride) for side in self.whole_sides)

    def _crop(self, encoded: bytes) -> HostView:
        return centre_view(encoded, side=self.side, short_side=self.short_side, resize=self.resize)


class ViewBatch(NamedTuple):
    """Some images of a source.

    Attributes:
      views: see `Looking.views`, each of all images.
      labels: the classes that each image is tested for, [n, k].
      image_index: of each image in its source; -1 is none.
    """

    views: tuple[HostView, ...]
    labels: Int32[np.ndarray, "n k"]
    image_index: Int32[np.ndarray, " n"]


class OrderedViews:
    """The batches of a stretch of a source by number, each of views of one shape; of a shape's images in their order.

    The last batch of each shape is filled up with images of number -1.

    Args:
      source: of the images.
      labels: the classes that each image is tested for, [images, k].
      looking: what is made of an image.
      stride: of which padded sides are multiples, in pixels.
      batch_size: images of a batch.
      share: the images; None is all.
    """

    def __init__(
        self,
        source: BoxSource,
        labels: Int32[np.ndarray, "images k"],
        looking: Looking,
        *,
        stride: int,
        batch_size: int,
        share: range | None = None,
    ):
        self._source, self._labels, self._looking, self._stride = source, labels, looking, stride
        kind_of = partial(looking.shapes, stride=stride)
        self._batches = batches_of_kinds(source, kind_of, batch_size=batch_size, share=share)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> ViewBatch:
        """A batch, its images decoded."""
        indices = np.array(self._batches[number], np.int32)
        # The first is always an image; it stands for what fills the batch up.
        seen = [self._views(int(index)) for index in indices if index >= 0]
        seen += [seen[0]] * (len(indices) - len(seen))
        shapes = self._looking.shapes(self._source.size(int(indices[0])), stride=self._stride)
        views = tuple(stacked_views(each, shape) for each, shape in zip(zip(*seen, strict=True), shapes, strict=True))
        return ViewBatch(views, self._labels[indices.clip(0)], indices)

    def _views(self, index: int) -> list[HostView]:
        with naming(self._source, index):
            return self._looking.views(self._source[index].image)

    def stream(self, *, workers: int | None = None) -> Stream:
        """All batches in their order, decoded ahead of time, see `Stream`."""
        return Stream(self, range(len(self)), workers=workers)
