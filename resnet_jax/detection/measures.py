"""The measures of a test by name, each with an error that falls as the detector gets better."""

from collections.abc import Callable, Sequence
from typing import Any

from resnet_jax.detection.annotations import Annotated
from resnet_jax.detection.coco_ap import coco_ap
from resnet_jax.detection.detected import Detected
from resnet_jax.detection.voc_ap import voc_ap


def _voc(metric: str) -> Callable[..., dict[str, Any]]:
    def measure(detections, truths, class_names):
        found = voc_ap(detections, truths, class_names, metric=metric)
        return {"ap_50": found["mean_ap"], "ap_50_of_classes": found["ap"], "count": found["count"]}

    return measure


def _coco(detections, truths, class_names):
    return coco_ap(detections, truths, num_classes=len(class_names))


_MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "voc_2007": _voc("eleven_points"),
    "voc": _voc("area"),
    "coco": _coco,
}


def measure(
    metric: str, detections: Sequence[Detected], truths: Sequence[Annotated], class_names: Sequence[str]
) -> dict[str, Any]:
    """Measures the detections of all images of a test.

    Args:
      metric: "voc_2007" (eleven points), "voc" (area), see `voc_ap`, or "coco", see `coco_ap`.
      detections: of each image.
      truths: of the same images in the same order.
      class_names: by label.

    Returns:
      "error_ap", 1 less the mean average precision (VOC's at an overlap of 0.5, COCO's over 0.5 to 0.95); its numbers,
      as "ap_50", fractions; of VOC "ap_50_of_classes" by name; and the "count" of images.

    Raises:
      ValueError: an unknown metric, or detections that do not fit the images.
    """
    if metric not in _MEASURES:
        raise ValueError(f"metric={metric!r}: allowed are {', '.join(_MEASURES)}")
    return with_error(_MEASURES[metric](detections, truths, class_names))


def with_error(found: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a measure with "error_ap" before them."""
    return {"error_ap": 1.0 - found.get("ap", found["ap_50"]), **found}
