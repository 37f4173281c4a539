"""Made-up detections and truths of a few images, with ties, near misses, doubles and ignored objects."""

import numpy as np

from resnet_jax.detection.annotations import Annotated
from resnet_jax.detection.detected import Detected


def truth(boxes, labels=None, ignored=None, areas=None) -> Annotated:
    """The objects of an image; label 0 and not ignored unless said otherwise."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    count = len(boxes)
    sides = boxes[:, 2:] - boxes[:, :2]
    return Annotated(
        image=b"",
        name="image",
        boxes=boxes,
        labels=np.array([0] * count if labels is None else labels, np.int32),
        ignored=np.array([False] * count if ignored is None else ignored, bool),
        areas=sides.prod(1) if areas is None else np.array(areas, np.float32),
    )


def detected(boxes, scores, labels=None) -> Detected:
    """The detections of an image; label 0 unless said otherwise."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = [0] * len(boxes) if labels is None else labels
    return Detected(boxes, np.array(scores, np.float32), np.array(labels, np.int32))


def random_case(seed: int, *, images: int = 12, classes: int = 3, side: int = 200, whole: bool = True):
    """(detections, truths): boxes of whole pixels around the objects and elsewhere, scores in steps of 0.05."""
    rng = np.random.default_rng(seed)
    detections, truths = [], []
    for _ in range(images):
        objects = rng.integers(0, 6)
        corners = rng.integers(0, side - 40, (objects, 2))
        boxes = np.concatenate([corners, corners + rng.integers(4, 120, (objects, 2))], 1).clip(0, side)
        labels = rng.integers(0, classes, objects)
        truths.append(truth(boxes, labels, rng.random(objects) < 0.2))
        near = np.repeat(boxes, 3, 0) + rng.integers(-9, 10, (3 * objects, 4))
        corners = rng.integers(0, side - 40, (4, 2))
        elsewhere = np.concatenate([corners, corners + rng.integers(4, 100, (4, 2))], 1)
        found = np.concatenate([near, elsewhere]).astype(np.float64) + (0 if whole else rng.random((len(near) + 4, 4)))
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        kinds = np.concatenate([np.repeat(labels, 3), rng.integers(0, classes, 4)])
        kinds = np.where(rng.random(len(kinds)) < 0.1, rng.integers(0, classes, len(kinds)), kinds)
        detections.append(detected(found, np.round(rng.random(len(found)) * 20) / 20, kinds))
    return detections, truths
