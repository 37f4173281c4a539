"""What a detector finds in an image, and the check that every image of a test is there exactly once."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int32

from resnet_jax.detection.annotations import Annotated


class Detected(NamedTuple):
    """The boxes found in one image; of proposals, the labels are all 0 and not looked at.

    Attributes:
      boxes: [n, 4], (x1, y1, x2, y2) in pixels of the image's file, as in `Annotated`.
      scores: [n], higher is surer.
      labels: [n], class numbers from 0.
    """

    boxes: Float32[np.ndarray, "n 4"]
    scores: Float32[np.ndarray, " n"]
    labels: Int32[np.ndarray, " n"]


def in_order(found: Iterable[tuple[int, Detected]], count: int) -> list[Detected]:
    """The detections of all images of a test by index, from (index, detections) in any order.

    Args:
      found: of each image; with index -1 it is padding, and passed over.
      count: images of the test.

    Raises:
      ValueError: an image is missing, comes twice, or is none of the test.
    """
    by_index: dict[int, Detected] = {}
    for index, detected in found:
        if index == -1:
            continue
        if not 0 <= index < count or index in by_index:
            why = "comes twice" if index in by_index else f"is none of the {count}"
            raise ValueError(f"image {index} {why}; each of 0 to {count - 1} must come exactly once")
        by_index[index] = detected
    if missing := sorted(set(range(count)) - set(by_index)):
        raise ValueError(f"{len(missing)} of {count} images are missing, the first is {missing[0]}")
    return [by_index[index] for index in range(count)]


def check_detected(detections: Sequence[Detected], truths: Sequence[Annotated], num_classes: int) -> None:
    """Raises a ValueError unless there are detections of every image, of one length each, finite and of the classes."""
    if len(detections) != len(truths) or not truths:
        raise ValueError(
            f"detections of {len(detections)} images for {len(truths)}; every image must come exactly once"
        )
    for index, (boxes, scores, labels) in enumerate(detections):
        if not len(boxes) == len(scores) == len(labels):
            raise ValueError(f"image {index}: {len(boxes)} boxes, {len(scores)} scores and {len(labels)} labels")
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError(f"image {index}: a box or score that is not finite")
        if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
            raise ValueError(f"image {index}: labels {labels.min()} to {labels.max()}; allowed: 0 to {num_classes - 1}")


def overlaps(boxes: Float32[np.ndarray, "n 4"], others: Float32[np.ndarray, "m 4"]) -> Float64[np.ndarray, "n m"]:
    """Intersection over union of each pair; 0 where both have no area."""
    first, second = boxes.astype(np.float64)[:, None], others.astype(np.float64)[None]
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    common = sides.clip(0).prod(-1)
    union = _areas(first) + _areas(second) - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2:] - boxes[..., :2]).clip(0).prod(-1)
