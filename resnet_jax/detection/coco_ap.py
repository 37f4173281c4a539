"""COCO's twelve numbers, counted by its own program, pycocotools."""

import contextlib
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from resnet_jax.data.prepare import PathLike
from resnet_jax.detection.annotations import Annotated
from resnet_jax.detection.detected import Detected, check_detected

# Average precision (all, at an overlap of 0.5, of 0.75, of small, medium and large objects) and average recall (with 1,
# 10 and 100 detections an image; of small, medium and large objects), in pycocotools's order.
NAMES = (
    *("ap", "ap_50", "ap_75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)


def coco_ap(detections: Sequence[Detected], truths: Sequence[Annotated], *, num_classes: int) -> dict[str, float]:
    """COCO's numbers for any set; ignored objects are taken as crowds.

    Ground truth is in float32 here, and of TFDS's COCO the areas are cut to whole pixels: numbers to be compared with
    published ones come from `coco_ap_of_file`.

    Args:
      detections: of each image.
      truths: of the same images in the same order, see `annotations.truths`.
      num_classes: of the set.

    Returns:
      `NAMES`, each 0 to 1, NaN where there is no object to be found; and `count`, the images.

    Raises:
      ValueError: detections that do not fit the images.
      ImportError: there is no pycocotools.
    """
    check_detected(detections, truths, num_classes)
    objects = [
        {"image_id": index, "category_id": int(label), "bbox": box, "area": float(area), "iscrowd": int(ignored)}
        for index, truth in enumerate(truths)
        for box, label, area, ignored in zip(_sides(truth.boxes), truth.labels, truth.areas, truth.ignored, strict=True)
    ]
    images, categories = range(len(truths)), range(num_classes)
    results = coco_results(detections, images, categories)
    return _twelve(_coco(images, categories, objects), _coco(images, categories, results))


def coco_ap_of_file(results: list[dict[str, Any]], path: PathLike) -> dict[str, float]:
    """COCO's numbers of `coco_results` by the original file of annotations.

    Args:
      results: of all its images.
      path: of a file such as `instances_val2014.json`.

    Returns:
      As `coco_ap`.

    Raises:
      ValueError: a result for an image or a category that the file does not have.
      ImportError: there is no pycocotools.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _pycocotools()[0](str(path))
    images, categories = truth.getImgIds(), truth.getCatIds()
    for result in results:
        if result["image_id"] not in truth.imgs or result["category_id"] not in truth.cats:
            raise ValueError(f"{path} does not have the image or the category of the result {result}")
    return _twelve(truth, _coco(images, categories, results))


def coco_results(
    detections: Sequence[Detected], image_ids: Sequence[int], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Detections as COCO's result files have them, for `json.dump`; boxes are (x, y, width, height) in pixels.

    Args:
      detections: of each image.
      image_ids: each image's number, see `CocoJson`.
      category_ids: each label's number, see `CocoJson`.
    """
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": float(score)}
        for found, image_id in zip(detections, image_ids, strict=True)
        for box, score, label in zip(_sides(found.boxes), found.scores, found.labels.tolist(), strict=True)
    ]


def _sides(boxes: np.ndarray) -> list[list[float]]:
    corners = boxes.astype(np.float64)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()


def _coco(images: Iterable[int], categories: Iterable[int], boxes: list[dict[str, Any]]) -> Any:
    """pycocotools's own form of boxes, which it numbers from 1 because it takes 0 for none."""
    coco = _pycocotools()[0]()
    coco.dataset = {
        "images": [{"id": number} for number in images],
        "categories": [{"id": number} for number in categories],
        "annotations": [
            {"area": box["bbox"][2] * box["bbox"][3], "iscrowd": 0, **box, "id": number}
            for number, box in enumerate(boxes, start=1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _twelve(truth: Any, found: Any) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _pycocotools()[1](truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # -1 is pycocotools's word for nothing to be found.
    numbers = [float("nan") if value == -1 else float(value) for value in evaluation.stats]
    return {**dict(zip(NAMES, numbers, strict=True)), "count": len(truth.getImgIds())}


def _pycocotools() -> tuple[Any, Any]:
    """Its classes COCO and COCOeval."""
    try:
        from pycocotools import coco, cocoeval
    except ImportError as error:
        raise ImportError(
            f"COCO's numbers are counted by pycocotools ({error}): pip install 'resnet-jax[detection]'"
        ) from error
    return coco.COCO, cocoeval.COCOeval
