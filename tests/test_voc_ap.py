"""VOC's average precision: cases counted by hand, the kit's rules written a second time, and every image once."""

import math
from fractions import Fraction

import numpy as np
import pytest
from found_boxes import detected, random_case, truth

from resnet_jax.detection.annotations import truths
from resnet_jax.detection.data import open_boxes
from resnet_jax.detection.detected import Detected, in_order
from resnet_jax.detection.proposals import proposal_recall
from resnet_jax.detection.voc_ap import voc_ap

BOX, AWAY = [10, 10, 20, 20], [50, 50, 60, 60]


def ap(detections, truths, metric="area", **arguments):
    return voc_ap(detections, truths, ["thing"], metric=metric, **arguments)["ap"]["thing"]


def slow_voc_ap(detections, truths, label, metric, threshold):
    """One class by the kit's rules: lines of text's worth of pixels from 1 with +1 sides, and exact fractions."""
    lines = []
    for image, found in enumerate(detections):
        for box, score, kind in zip(*(array.tolist() for array in found), strict=True):
            if kind == label:
                lines.append((-score, image, (box[0] + 1, box[1] + 1, box[2], box[3])))
    # Stable: equal scores in the images' order, and in their own.
    lines.sort(key=lambda line: (line[0], line[1]))
    pool = {}
    for image, known in enumerate(truths):
        pool[image] = [
            {"box": (box[0] + 1, box[1] + 1, box[2], box[3]), "difficult": difficult, "found": False}
            for box, kind, difficult in zip(
                known.boxes.tolist(), known.labels.tolist(), known.ignored.tolist(), strict=True
            )
            if kind == label
        ]
    positives = sum(not thing["difficult"] for things in pool.values() for thing in things)
    points, hits, misses = [], 0, 0
    for _, image, box in lines:
        best, chosen = Fraction(-1), None
        for thing in pool[image]:
            left, top, right, bottom = (
                *(max(a, b) for a, b in zip(box[:2], thing["box"][:2], strict=True)),
                *(min(a, b) for a, b in zip(box[2:], thing["box"][2:], strict=True)),
            )
            width, height = Fraction(right) - Fraction(left) + 1, Fraction(bottom) - Fraction(top) + 1
            if width <= 0 or height <= 0:
                continue
            area = [
                (Fraction(b[2]) - Fraction(b[0]) + 1) * (Fraction(b[3]) - Fraction(b[1]) + 1)
                for b in (box, thing["box"])
            ]
            overlap = width * height / (sum(area) - width * height)
            if overlap > best:
                best, chosen = overlap, thing
        if best > threshold and chosen["difficult"]:
            continue
        if best > threshold and not chosen["found"]:
            chosen["found"], hits = True, hits + 1
        else:
            misses += 1
        points.append((Fraction(hits, positives), Fraction(hits, hits + misses)))
    if metric == "eleven_points":
        recalls = [Fraction(k, 10) for k in range(11)]
        return float(sum(max((p for r, p in points if r >= recall), default=Fraction(0)) for recall in recalls) / 11)
    steps = sorted({Fraction(0), *(r for r, _ in points)})
    return float(
        sum((high - low) * max(p for r, p in points if r >= high) for low, high in zip(steps, steps[1:], strict=False))
    )


@pytest.mark.parametrize("metric", ["eleven_points", "area"])
@pytest.mark.parametrize("threshold", [0.5, 0.75])
@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_kit_s(seed, threshold, metric):
    detections, known = random_case(seed)
    result = voc_ap(detections, known, ["a", "b", "c"], metric=metric, threshold=threshold)
    expected = [slow_voc_ap(detections, known, label, metric, Fraction(threshold)) for label in range(3)]
    assert 0.03 < np.mean(expected) < 0.95
    np.testing.assert_allclose(list(result["ap"].values()), expected, rtol=1e-12)
    assert result["mean_ap"] == pytest.approx(np.mean(expected), rel=1e-12)
    assert result["count"] == 12


def test_an_overlap_of_one_half_is_not_enough():
    # Common 10 x 5 of a union of 10 x 10; then a pixel more.
    assert ap([detected([[10, 10, 20, 15]], [0.9])], [truth([BOX])]) == 0
    assert ap([detected([[10, 10, 20, 15.01]], [0.9])], [truth([BOX])]) == 1
    assert ap([detected([[10, 10, 20, 15]], [0.9])], [truth([BOX])], threshold=0.4999) == 1


def test_a_second_detection_of_an_object_is_wrong():
    found = detected([AWAY, BOX, BOX], [0.7, 0.9, 0.8])
    # Right, wrong, right: precisions 1, 1/2, 2/3 at recalls 1/2, 1/2, 1.
    assert ap([found], [truth([BOX, AWAY])]) == pytest.approx(1 / 2 + 2 / 3 / 2)
    # Six recalls up to 0.5, five above.
    assert ap([found], [truth([BOX, AWAY])], "eleven_points") == pytest.approx((6 + 5 * 2 / 3) / 11)


def test_a_detection_goes_with_the_object_it_overlaps_most_and_no_other():
    near = [12, 10, 22, 20]
    # The second overlaps the first object by more than half, too, but the other more.
    found = detected([near, near], [0.9, 0.8])
    assert ap([found], [truth([BOX, near])]) == pytest.approx(1 / 2)


def test_difficult_objects_neither_help_nor_harm():
    known = truth([BOX, AWAY], ignored=[True, False])
    assert ap([detected([BOX, BOX, AWAY], [0.9, 0.8, 0.7])], [known]) == 1
    assert ap([detected([BOX], [0.9])], [known]) == 0
    assert ap([detected([AWAY], [0.9])], [known]) == 1


def test_classes_are_apart_and_one_without_objects_has_no_part_in_the_mean():
    known = [truth([BOX, AWAY], [0, 1]), truth([BOX], [2], ignored=[True])]
    found = [detected([BOX, AWAY], [0.9, 0.8], [0, 0]), detected([BOX], [0.9], [3])]
    result = voc_ap(found, known, ["a", "b", "c", "d"], metric="area")
    assert (result["ap"]["a"], result["ap"]["b"], result["mean_ap"]) == (1, 0, 0.5)
    assert math.isnan(result["ap"]["c"]) and math.isnan(result["ap"]["d"])
    with pytest.raises(ValueError, match="no object that counts"):
        voc_ap(found[1:], known[1:], ["a", "b", "c", "d"], metric="area")


def test_recalls_of_whole_tenths_count():
    # Three of ten found, best first: recalls 0, 0.1, 0.2 and 0.3.
    boxes = [[20 * k, 0, 20 * k + 10, 10] for k in range(10)]
    assert ap([detected(boxes[:3], [0.9, 0.8, 0.7])], [truth(boxes)], "eleven_points") == pytest.approx(4 / 11)


def test_every_image_must_come_once():
    known, found = [truth([BOX]), truth([AWAY])], [detected([BOX], [0.9]), detected([AWAY], [0.8])]
    assert in_order([(1, found[1]), (-1, found[0]), (0, found[0])], 2) == found
    with pytest.raises(ValueError, match="image 1 comes twice; each of 0 to 1"):
        in_order([(1, found[1]), (1, found[1]), (0, found[0])], 2)
    with pytest.raises(ValueError, match="1 of 2 images are missing, the first is 0"):
        in_order([(1, found[1])], 2)
    with pytest.raises(ValueError, match="image 2 is none of the 2"):
        in_order([(2, found[1])], 2)
    for wrong in (found[:1], [*found, found[0]]):
        with pytest.raises(ValueError, match=f"detections of {len(wrong)} images for 2"):
            ap(wrong, known)


@pytest.mark.parametrize(
    ("found", "what"),
    [
        (detected([BOX], [0.9], [1]), "image 0: labels 1 to 1; allowed: 0 to 0"),
        (detected([BOX], [np.nan]), "image 0: a box or score that is not finite"),
        (detected([[0, 0, np.inf, 3]], [0.5]), "image 0: a box or score that is not finite"),
        (
            Detected(detected([BOX, BOX], [1, 1]).boxes, np.ones(1, np.float32), np.zeros(2, np.int32)),
            "2 boxes, 1 scores",
        ),
    ],
)
def test_wrong_detections_are_refused(found, what):
    for measure in (ap, proposal_recall):
        with pytest.raises(ValueError, match=what):
            measure([found], [truth([BOX])])


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="metric='07'; allowed: eleven_points, area"):
        ap([detected([BOX], [0.9])], [truth([BOX])], "07")


def test_real_objects_found_as_they_are_make_one(real_data):
    source = open_boxes("bccd", "test", data_dir=real_data)
    known = truths(source)
    found = [Detected(each.boxes, np.ones(len(each.labels), np.float32), each.labels) for each in known]
    result = voc_ap(found, known, source.class_names, metric="eleven_points")
    assert (result["mean_ap"], result["count"]) == (1.0, 72)
    # Without the first image's, which has some of the 945.
    found[0] = Detected(*(array[:0] for array in found[0]))
    assert voc_ap(found, known, source.class_names, metric="area")["mean_ap"] < 1


def slow_recall(proposals, known, count, threshold):
    """Greedy pairs by falling overlap, over sets."""
    covered = total = 0
    for found, each in zip(proposals, known, strict=True):
        ranked = sorted(range(len(found.scores)), key=lambda k: (-found.scores[k], k))[:count]
        things = [k for k in range(len(each.labels)) if not each.ignored[k]]
        total += len(things)
        pairs = []
        for thing in things:
            for rank in ranked:
                a, b = each.boxes[thing].tolist(), found.boxes[rank].tolist()
                common = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
                union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
                pairs.append((common / union, -thing, -ranked.index(rank)))
        used = set()
        for overlap, thing, rank in sorted(pairs, reverse=True):
            if ("thing", thing) not in used and ("rank", rank) not in used:
                used |= {("thing", thing), ("rank", rank)}
                covered += overlap >= threshold
    return covered / total


@pytest.mark.parametrize("seed", range(4))
def test_recall_of_proposals(seed):
    proposals, known = random_case(seed, classes=1)
    result = proposal_recall(proposals, known, counts=(3, 8, 1000))
    for count in (3, 8, 1000):
        recalls = [slow_recall(proposals, known, count, k / 20) for k in range(10, 20)]
        assert result[f"recall_{count}"] == pytest.approx(recalls[0])
        assert result[f"average_recall_{count}"] == pytest.approx(np.mean(recalls))
    assert result["recall_3"] < result["recall_8"] < result["recall_1000"] <= 1
    assert (result["count"], result["objects"]) == (12, sum(int((~each.ignored).sum()) for each in known))


def test_recall_of_proposals_by_hand():
    # One proposal cannot cover two objects; an overlap of a half, 10 x 5 of 10 x 10, reaches a half.
    known = [truth([BOX, BOX, AWAY, [0, 0, 5, 5]], ignored=[False, False, False, True])]
    found = [detected([BOX, [50, 50, 60, 55]], [0.1, 0.9])]
    result = proposal_recall(found, known, counts=(1, 2))
    assert (result["recall_1"], result["recall_2"]) == pytest.approx((1 / 3, 2 / 3))
    assert result["average_recall_2"] == pytest.approx((2 / 3 + 9 * 1 / 3) / 10)
    nothing = proposal_recall([detected([], [])], known, counts=(5,))
    assert nothing["recall_5"] == nothing["average_recall_5"] == 0
    with pytest.raises(ValueError, match="counts=.0,."):
        proposal_recall(found, known, counts=(0,))
    with pytest.raises(ValueError, match="no object that counts"):
        proposal_recall(found, [truth([])])
