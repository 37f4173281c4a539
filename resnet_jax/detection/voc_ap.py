"""Average precision as PASCAL VOC counts it: of VOC 2007 at eleven recalls, since 2010 as an area.

The rules are those of the development kit, with one strictness of its usual Python port, which published detectors were
measured with: a detection is right if its overlap *exceeds* 0.5. The detections of a class are taken by falling score
over all images. Each goes with the object of its class in its image that it overlaps most: the first to exceed 0.5 is
right, every other one for the same object is wrong; one that goes with a difficult object is neither right nor wrong,
and difficult objects need not be found.

The kit measures a side as xmax - xmin + 1, its numbers being those of the first and last pixel. Our boxes have edges
(`Annotated`): x1 = xmin - 1 and x2 = xmax of pixels counted from 1. So x2 - x1 is the kit's side, and the plain overlap
here is its overlap exactly, for detections too that would be written as (x1 + 1, y1 + 1, x2, y2).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from resnet_jax.detection.annotations import Annotated
from resnet_jax.detection.detected import Detected, check_detected, overlaps

METRICS = ("eleven_points", "area")


class PrecisionRecall(NamedTuple):
    """Precision against recall of one class: a point for each detection that counts, by falling score.

    Attributes:
      right: whether each of n detections is right.
      objects: how many are to be found.
    """

    right: Bool[np.ndarray, " n"]
    objects: int

    @property
    def recall(self) -> Float64[np.ndarray, " n"]:
        """The part of the objects found so far, 0 to 1; NaN where there are none."""
        return self.right.cumsum() / (self.objects or np.nan)

    @property
    def precision(self) -> Float64[np.ndarray, " n"]:
        """The part of the detections so far that is right, 0 to 1."""
        return self.right.cumsum() / np.arange(1, len(self.right) + 1)

    def average(self, metric: str) -> float:
        """Average precision, 0 to 1; NaN without objects.

        Args:
          metric: as in `voc_ap`.

        Raises:
          ValueError: an unknown metric.
        """
        if metric not in METRICS:
            raise ValueError(f"metric={metric!r}; allowed: {', '.join(METRICS)}")
        if not self.objects:
            return float("nan")
        return _at_eleven_points(self) if metric == "eleven_points" else _area(self)


def voc_ap(
    detections: Sequence[Detected],
    truths: Sequence[Annotated],
    class_names: Sequence[str],
    *,
    metric: str,
    threshold: float = 0.5,
) -> dict[str, Any]:
    """Average precision of each class, and the mean.

    Args:
      detections: of each image.
      truths: of the same images in the same order, see `annotations.truths`.
      class_names: by label.
      metric: "eleven_points" (VOC 2007) or "area" (VOC 2010 to 2012).
      threshold: overlap that a right detection exceeds.

    Returns:
      `ap` {class name: 0 to 1}, NaN for a class without objects; `mean_ap` of the others; `count`, the images.

    Raises:
      ValueError: an unknown metric, detections that do not fit the images, or no object at all.
    """
    curves = precision_recall(detections, truths, class_names, threshold=threshold)
    ap = {name: curve.average(metric) for name, curve in curves.items()}
    if np.isnan(list(ap.values())).all():
        raise ValueError("the images have no object that counts, so there is no mean")
    return {"ap": ap, "mean_ap": float(np.nanmean(list(ap.values()))), "count": len(truths)}


def precision_recall(
    detections: Sequence[Detected],
    truths: Sequence[Annotated],
    class_names: Sequence[str],
    *,
    threshold: float = 0.5,
) -> dict[str, PrecisionRecall]:
    """The curve of each class by its name, from which `voc_ap` takes the averages; arguments are as there.

    Raises:
      ValueError: detections that do not fit the images.
    """
    check_detected(detections, truths, len(class_names))
    curves = {}
    for label, name in enumerate(class_names):
        objects = sum(int(((truth.labels == label) & ~truth.ignored).sum()) for truth in truths)
        curves[name] = PrecisionRecall(_judged(detections, truths, label, threshold), objects)
    return curves


def _judged(
    detections: Sequence[Detected], truths: Sequence[Annotated], label: int, threshold: float
) -> Bool[np.ndarray, " n"]:
    """Whether each detection of a class that counts is right, by falling score; equal ones in the images' order."""
    scores: list[float] = []
    right: list[bool] = []
    for found, truth in zip(detections, truths, strict=True):
        mine, of_class = np.flatnonzero(found.labels == label), truth.labels == label
        mine = mine[np.argsort(-found.scores[mine], kind="stable")]
        ignored = truth.ignored[of_class]
        taken = np.zeros(len(ignored), bool)
        # An image's own order decides who is first, so that images can be judged one by one.
        for score, overlap in zip(found.scores[mine], overlaps(found.boxes[mine], truth.boxes[of_class]), strict=True):
            best = int(overlap.argmax()) if len(overlap) else -1
            hit = best >= 0 and overlap[best] > threshold
            if hit and ignored[best]:
                continue
            scores.append(float(score))
            right.append(bool(hit and not taken[best]))
            if hit:
                taken[best] = True
    return np.array(right, bool)[np.argsort(-np.array(scores), kind="stable")]


def _at_eleven_points(curve: PrecisionRecall) -> float:
    """The mean, over recalls of 0, 0.1, ... 1, of the best precision at that recall or a higher one."""
    hits, precision = curve.right.cumsum(), curve.precision
    # In whole numbers: 3 objects of 10 are a recall of 0.3, which 3 * 0.1 exceeds.
    return sum(float(precision[10 * hits >= k * curve.objects].max(initial=0.0)) for k in range(11)) / 11


def _area(curve: PrecisionRecall) -> float:
    """The area below the best precision at a recall or a higher one."""
    best = np.maximum.accumulate(curve.precision[::-1])[::-1]
    # Recall rises by 1 / objects at each right detection and nowhere else.
    return float(best[curve.right].sum() / curve.objects)
