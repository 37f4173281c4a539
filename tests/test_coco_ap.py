"""COCO's twelve numbers: cases counted by hand, pycocotools by its usual way, and a clear word where it is missing."""

import contextlib
import io
import json
import math
import sys

import numpy as np
import pytest
from box_sets import CATEGORY_IDS, write_coco_folder
from found_boxes import detected, random_case, truth

from resnet_jax.detection.annotations import truths
from resnet_jax.detection.coco_ap import NAMES, coco_ap, coco_ap_of_file, coco_results
from resnet_jax.detection.data import open_boxes
from resnet_jax.detection.detected import Detected

BOX, AWAY = [10, 10, 50, 50], [100, 100, 140, 140]


@pytest.fixture
def pycocotools():
    return pytest.importorskip("pycocotools", reason="needs pycocotools (the extra [detection])")


def usual_way(results, content, tmp_path):
    """The numbers as COCO's own example takes them, from two files."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    for name, what in (("truth", content), ("results", results)):
        (tmp_path / f"{name}.json").write_text(json.dumps(what))
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(str(tmp_path / "truth.json"))
        evaluation = COCOeval(known, known.loadRes(str(tmp_path / "results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("seed", range(3))
def test_it_is_pycocotools_s(pycocotools, seed, tmp_path):
    detections, known = random_case(seed, images=20, side=300, whole=False)
    content = {
        "images": [{"id": 5 * k + 3} for k in range(20)],
        "categories": [{"id": number, "name": "thing"} for number in CATEGORY_IDS],
        "annotations": [],
    }
    for k, each in enumerate(known):
        for box, label, ignored, area in zip(*each[2:], strict=True):
            corners = [float(value) for value in box]
            sides = corners[2] - corners[0], corners[3] - corners[1]
            number = len(content["annotations"]) + 1
            content["annotations"].append(
                {
                    **{"id": number, "image_id": 5 * k + 3, "category_id": CATEGORY_IDS[label], "area": float(area)},
                    **{"bbox": [*corners[:2], *sides], "iscrowd": int(ignored)},
                }
            )
    results = [
        {
            **{"image_id": 5 * k + 3, "category_id": CATEGORY_IDS[label], "score": float(score)},
            "bbox": [float(box[0]), float(box[1]), float(box[2]) - float(box[0]), float(box[3]) - float(box[1])],
        }
        for k, found in enumerate(detections)
        for box, score, label in zip(*found, strict=True)
    ]
    expected = usual_way(results, content, tmp_path)
    assert 0.1 < expected[0] < 0.9 and (expected > 0).all()
    found = coco_ap(detections, known, num_classes=3)
    assert found.pop("count") == 20
    assert tuple(found) == NAMES
    np.testing.assert_array_equal(list(found.values()), expected)

    written = coco_results(detections, [5 * k + 3 for k in range(20)], CATEGORY_IDS)
    assert json.loads(json.dumps(written)) == results
    of_file = coco_ap_of_file(written, tmp_path / "truth.json")
    assert of_file.pop("count") == 20
    np.testing.assert_array_equal(list(of_file.values()), expected)


def test_cases_by_hand(pycocotools):
    known = [truth([BOX, AWAY]), truth([BOX])]
    all_found = [detected([AWAY, BOX], [0.5, 0.9]), detected([BOX], [0.7])]
    result = coco_ap(all_found, known, num_classes=1)
    assert result["ap"] == result["ap_50"] == result["ar_100"] == result["ap_medium"] == pytest.approx(1)
    # One of an image with two objects.
    assert result["ar_1"] == pytest.approx(2 / 3)
    assert math.isnan(result["ap_small"]) and math.isnan(result["ar_large"])
    # 40 x 40 by 40 x 32: an overlap of 0.8 is enough at seven of ten thresholds.
    assert coco_ap([detected([[10, 10, 50, 42]], [1])], [truth([BOX])], num_classes=1)["ap"] == pytest.approx(0.7)
    # The outline's area decides who is small.
    small = coco_ap([detected([BOX], [1])], [truth([BOX], areas=[1000])], num_classes=1)
    assert small["ap_small"] == pytest.approx(1) and math.isnan(small["ap_medium"])


def test_crowds_neither_help_nor_harm(pycocotools):
    known = [truth([BOX, AWAY], ignored=[True, False])]
    # Both of the first lie in the crowd.
    found = [detected([BOX, [12, 12, 30, 30], AWAY], [0.9, 0.8, 0.7])]
    assert coco_ap(found, known, num_classes=1)["ap"] == pytest.approx(1)


def test_no_detections_at_all(pycocotools):
    result = coco_ap([detected([], [])], [truth([BOX])], num_classes=1)
    assert result["ap"] == result["ar_100"] == 0


def test_it_prints_nothing(pycocotools, capsys):
    coco_ap([detected([BOX], [1])], [truth([BOX])], num_classes=1)
    assert capsys.readouterr() == ("", "")


def test_a_source_and_its_own_file_agree(pycocotools, tmp_path):
    folder = write_coco_folder(tmp_path / "coco", val2014=range(11))
    source = open_boxes(str(folder), "val2014")
    rng = np.random.default_rng(0)
    found = [
        Detected(each.boxes + np.float32(rng.integers(0, 3)), np.float32(rng.random(len(each.labels))), each.labels)
        for each in source
    ]
    left = coco_ap(found, truths(source), num_classes=3)
    path = folder / "annotations" / "instances_val2014.json"
    results = coco_results(found, source.image_ids, source.category_ids)
    right = coco_ap_of_file(results, path)
    assert 0 < left["ap"] < 1
    np.testing.assert_allclose(list(left.values()), list(right.values()), rtol=1e-6)
    for wrong in ({"image_id": 7}, {"category_id": 4}):
        with pytest.raises(ValueError, match="does not have the image or the category"):
            coco_ap_of_file([{**results[0], **wrong}], path)


def test_results_name_images_and_categories_as_the_file_does():
    written = coco_results([detected([], []), detected([BOX], [0.5], [2])], [40, 70], [3, 7, 18])
    assert written == [{"image_id": 70, "category_id": 18, "bbox": [10.0, 10.0, 40.0, 40.0], "score": 0.5}]
    with pytest.raises(ValueError):
        coco_results([detected([], [])], [40, 70], [3])


def test_every_image_must_come_once():
    with pytest.raises(ValueError, match="detections of 1 images for 2; every image must come exactly once"):
        coco_ap([detected([BOX], [1])], [truth([BOX]), truth([BOX])], num_classes=1)


def test_without_pycocotools_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ImportError, match=r"pip install 'resnet-jax\[detection\]'"):
        coco_ap([detected([BOX], [1])], [truth([BOX])], num_classes=1)


def test_real_objects_found_as_they_are_make_one(pycocotools, real_data):
    source = open_boxes("bccd", "validation", data_dir=real_data)
    known = truths(source)
    found = [Detected(each.boxes, np.ones(len(each.labels), np.float32), each.labels) for each in known]
    result = coco_ap(found, known, num_classes=3)
    assert (result["ap"], result["count"]) == (pytest.approx(1), 87)
