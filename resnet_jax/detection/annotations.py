"""An image and its objects, and what every set of such images offers."""

import contextlib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32

from resnet_jax.data.check_batch import check_labels
from resnet_jax.data.decode import UndecodableImage, image_size

# Boxes may leave their image by so many pixels, as some of VOC and COCO do; they are then clipped.
_TOLERANCE = 1.0


class Annotated(NamedTuple):
    """An image and its objects.

    Boxes are (x1, y1, x2, y2) in pixels of the image, edges at continuous coordinates from 0: the whole image is
    (0, 0, width, height).

    Attributes:
      image: the bytes of its file.
      name: of the file, as the set has it.
      boxes: [n, 4].
      labels: [n], class numbers from 0.
      ignored: [n], whether the object is neither a target in training nor counted in a test: difficult ones of VOC,
        crowds of COCO.
      areas: [n], in square pixels, by which COCO's test calls objects small, medium or large: of the object's outline
        where the set has it, else of its box.
    """

    image: bytes
    name: str
    boxes: Float32[np.ndarray, "n 4"]
    labels: Int32[np.ndarray, " n"]
    ignored: Bool[np.ndarray, " n"]
    areas: Float32[np.ndarray, " n"]


class BoxSource(ABC):
    """Images with boxes, by their place in the set; picklable, so that worker processes read their own copy.

    Attributes:
      class_names: one for each label.
    """

    class_names: tuple[str, ...]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Annotated: ...

    @abstractmethod
    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image in pixels."""

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of all images in pixels; to be asked for rather than each, since sets may keep them."""
        return [self.size(index) for index in range(len(self))]

    @abstractmethod
    def where(self, index: int) -> str:
        """Names an image in a message: set, split, index, file."""

    def count(self, index: int) -> int:
        """How many objects an image has."""
        return len(self[index].labels)

    def digest(self) -> str:
        """SHA-256, in hex: where it is the same, so is every image and object. Here all are read; sets know better."""
        found = hashlib.sha256(repr(self.class_names).encode())
        for example in self:
            for value in example:
                found.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
        return found.hexdigest()

    def __iter__(self) -> Iterator[Annotated]:
        return (self[index] for index in range(len(self)))


@contextlib.contextmanager
def naming(source: BoxSource, index: int) -> Iterator[None]:
    """Names the image in the message of an UndecodableImage from its block."""
    try:
        yield
    except UndecodableImage as error:
        where = source.where(index)
        raise error if str(error).startswith(where) else UndecodableImage(f"{where}: {error}") from error


def truths(source: BoxSource) -> list[Annotated]:
    """What a test compares with: all images' objects in order, without the images' bytes."""
    return [example._replace(image=b"") for example in source]


def size_of(image: bytes, where: Callable[[], str], declared: tuple[int, int] | None = None) -> tuple[int, int]:
    """(height, width) of an encoded image in pixels, from its header.

    Args:
      image: the bytes of its file.
      where: names it in a message.
      declared: what its annotation says, if it says so.

    Raises:
      UndecodableImage: no header that can be read.
      ValueError: the image has another size than its annotation, whose boxes then lie elsewhere.
    """
    try:
        size = image_size(image)
    except UndecodableImage as error:
        raise UndecodableImage(f"{where()}: {error}") from error
    if declared not in (None, size):
        raise ValueError(f"{where()}: its annotation is for {declared} pixels (height, width), its image has {size}")
    return size


def annotated(
    image: bytes,
    name: str,
    boxes: Any,
    labels: Sequence[Any] | np.ndarray,
    *,
    size: tuple[int, int],
    num_classes: int,
    where: Callable[[], str],
    ignored: Sequence[Any] | np.ndarray | None = None,
    areas: Sequence[Any] | np.ndarray | None = None,
) -> Annotated:
    """Checks what a set says of an image.

    Boxes that leave the image by up to a pixel are clipped.

    Args:
      image: the bytes of its file.
      name: of the file.
      boxes: n of them, as in `Annotated`.
      labels: n class numbers.
      size: (height, width) of the image in pixels.
      num_classes: of the set.
      where: names the image in a message: set, split, example.
      ignored: n truth values; None is none.
      areas: n, in square pixels; None is those of the boxes.

    Raises:
      ValueError: arrays of different lengths, a label that is no class, or a box that is not finite, has no area, or
        leaves the image by more than a pixel; the message names the image and the first such object.
    """
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    ignored = [False] * len(corners) if ignored is None else ignored
    lengths = {"boxes": len(corners), "labels": len(labels), "ignored": len(ignored)}
    lengths |= {} if areas is None else {"areas": len(areas)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{where()}: its objects are of different numbers: {lengths}")
    classes = check_labels(labels, num_classes, lambda _: where())
    limits = np.array([size[1], size[0]] * 2)
    outside = (corners < -_TOLERANCE) | (corners > limits + _TOLERANCE)
    clipped = corners.clip(0, limits).astype(np.float32)
    sides = clipped[:, 2:] - clipped[:, :2]
    for fault, wrong in (
        ("is not finite", ~np.isfinite(corners).all(1)),
        (f"is not inside the image of {size[0]} x {size[1]} pixels (height x width)", outside.any(1)),
        ("has no area; x2 > x1 and y2 > y1 are required", ~(sides > 0).all(1)),
    ):
        if wrong.any():
            number = int(wrong.argmax())
            raise ValueError(f"{where()}: object {number}: its box {corners[number].tolist()} (x1, y1, x2, y2) {fault}")
    return Annotated(
        image=image,
        name=name,
        boxes=clipped,
        labels=classes,
        ignored=np.asarray(ignored, bool),
        areas=sides.prod(axis=1) if areas is None else np.asarray(areas, np.float32),
    )
