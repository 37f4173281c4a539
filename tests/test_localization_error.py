"""The localization error by hand, and what is no guess."""

import numpy as np
import pytest
from found_boxes import detected, truth

from resnet_jax.localization.localization_error import LocalizationErrors, localization_errors


def judged(boxes, labels, objects, *, label=1, **options):
    """The wrong ones of a single image whose objects are all of a class."""
    guess = detected(boxes, [0.0] * len(labels), labels)
    own = truth(objects, [label] * len(objects))
    return localization_errors([guess], [own], num_classes=3, **options).wrong


BOX = (0, 0, 10, 10)
FAR = (50, 50, 60, 60)


@pytest.mark.parametrize(
    ("boxes", "labels", "objects", "wrong"),
    [
        ([BOX], [1], [BOX], 0),
        # Class and box must be one guess's.
        ([BOX], [2], [BOX], 1),
        ([FAR], [1], [BOX], 1),
        ([BOX, FAR], [2, 1], [BOX], 1),
        # Any of the guesses, any of the objects.
        ([FAR, FAR, BOX], [0, 2, 1], [BOX], 0),
        ([BOX], [1], [FAR, BOX], 0),
        # An overlap of a half is none: 5 of 10 columns, and 100 of 200 square pixels.
        ([(0, 0, 5, 10)], [1], [BOX], 1),
        ([(0, 0, 10, 20)], [1], [BOX], 1),
        ([(0, 0, 5.001, 10)], [1], [BOX], 0),
    ],
)
def test_a_guess_is_right_by_class_and_more_than_half_of_the_box(boxes, labels, objects, wrong):
    assert judged(boxes, labels, objects) == wrong


def test_other_thresholds_are_exclusive_too():
    assert judged([(0, 0, 7.5, 10)], [1], [BOX], threshold=0.75) == 1
    assert judged([(0, 0, 7.6, 10)], [1], [BOX], threshold=0.75) == 0


def test_every_image_counts_once():
    guesses = [detected([BOX] * 5, [0.0] * 5, labels) for labels in ([0, 1, 2, 0, 1], [0, 0, 0, 0, 0], [2, 2, 2, 2, 2])]
    truths = [truth([BOX], [1]), truth([BOX, FAR], [1, 1], [True, True]), truth([BOX], [2])]
    found = localization_errors(guesses, truths, num_classes=3)
    assert found == LocalizationErrors(wrong=1, images=3) and found.error == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="no image was counted"):
        _ = LocalizationErrors(0, 0).error


def test_ignored_objects_count():
    assert localization_errors([detected([BOX], [0.0], [1])], [truth([BOX], [1], [True])], num_classes=3).wrong == 0


def test_what_does_not_fit_is_said():
    guess = detected([BOX], [0.0], [1])
    with pytest.raises(ValueError, match="detections of 1 images for 2"):
        localization_errors([guess], [truth([BOX])] * 2, num_classes=3)
    with pytest.raises(
        ValueError, match=r"image 1 \(image\): it has objects of the classes \[0, 2\]; localization needs"
    ):
        localization_errors([guess] * 2, [truth([BOX]), truth([BOX, FAR], [0, 2])], num_classes=3)
    with pytest.raises(ValueError, match=r"image 0 \(image\): it has no object"):
        localization_errors([guess], [truth([])], num_classes=3)
    with pytest.raises(ValueError, match="images have 1, 2 guesses"):
        localization_errors(
            [guess, detected([BOX] * 2, [0.0] * 2, [1, 1])], [truth([BOX]), truth([BOX])], num_classes=3
        )
    with pytest.raises(ValueError, match="images have 0 guesses"):
        localization_errors([detected(np.zeros((0, 4)), [])], [truth([BOX])], num_classes=3)
