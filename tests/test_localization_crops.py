"""Crops with boxes: boxes follow the pixels, what is cut away is no target, and batches are those of `BoxBatches`."""

import io
import pickle

import numpy as np
import pytest
from found_boxes import truth
from PIL import Image
from shape_pictures import ShapePictures

from resnet_jax.detection.annotations import annotated
from resnet_jax.detection.streaming import BoxBatches
from resnet_jax.localization.crops import CropFraming, cropped
from resnet_jax.localization.image_label import image_label

FRAMING = CropFraming(32, (40, 60), max_boxes=3, fill=(1, 2, 3))
SOURCE = ShapePictures(20)


def bright(pixels):
    """The box of a shape's own colour, to a pixel."""
    rows, columns = np.nonzero((pixels > 200).all(-1))
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def rectangle(height, width, box):
    """An image of a bright rectangle on noise."""
    pixels = np.random.default_rng(0).integers(0, 120, (height, width, 3)).astype(np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    options = {"size": (height, width), "num_classes": 3, "where": lambda: "here"}
    return annotated(file.getvalue(), "rectangle", [box], [2], **options)


@pytest.mark.parametrize("mirror", [False, True])
def test_boxes_follow_the_pixels(mirror):
    rng = np.random.default_rng(0)
    for _ in range(20):
        x1, y1 = rng.integers(0, 40, 2)
        x2, y2 = x1 + rng.integers(20, 40), y1 + rng.integers(10, 20)
        example = rectangle(60, 80, (x1, y1, x2, y2))
        # Of a crop that holds at least 4 pixels of it.
        top, left = rng.integers(0, y2 - 3), rng.integers(0, x2 - 3)
        box = (int(top), int(left), int(rng.integers(max(y1 + 4 - top, 4), 61 - top)), int(81 - left - 1))
        found = cropped(example, 5, FRAMING, box, mirror=mirror)
        assert found.image.shape == (32, 32, 3) and found.boxes.shape == (3, 4) and found.size.tolist() == [32, 32]
        assert found.scale.tolist() == pytest.approx([32 / box[2], 32 / box[3]])
        # A pixel is mixed at each edge.
        np.testing.assert_allclose(found.boxes[0], bright(found.image), atol=1.01)
        assert found.labels.tolist() == [2, 0, 0] and found.valid.tolist() == [True, False, False]
        assert found.image_index == 5


def shares(box, *, least_share):
    """(valid, ignored) of an object of the first 20 x 20 pixels."""
    example = SOURCE[0]._replace(boxes=np.array([[0, 0, 20, 20]], np.float32))
    framing = CropFraming(32, (40, 60), least_share=least_share, max_boxes=1)
    found = cropped(example, 0, framing, box)
    return bool(found.valid[0]), bool(found.ignored[0])


def test_what_is_cut_away_is_no_target():
    assert shares((0, 0, 40, 40), least_share=1.0) == (True, False)
    # A half, a quarter, nothing.
    assert shares((0, 10, 40, 40), least_share=0.5) == (True, False)
    assert shares((0, 10, 40, 40), least_share=0.51) == (True, True)
    assert shares((10, 10, 40, 40), least_share=0.25) == (True, False)
    assert shares((10, 10, 40, 40), least_share=0.26) == (True, True)
    assert shares((0, 20, 40, 40), least_share=0.1)[0] is False


def test_ignored_objects_stay_so():
    example = SOURCE[0]._replace(ignored=np.array([True]))
    height, width = SOURCE.size(0)
    assert cropped(example, 0, FRAMING, (0, 0, height, width)).ignored[0]


def test_crops_are_drawn_as_in_classification():
    mirrored, scales, corners = 0, set(), set()
    for position in range(60):
        rng = np.random.default_rng(position)
        found = FRAMING.example(SOURCE[1], 1, rng, flip=True)
        plain = FRAMING.example(SOURCE[1], 1, np.random.default_rng(position), flip=False)
        assert (found.scale == plain.scale).all()
        same = (found.image == plain.image).all()
        np.testing.assert_array_equal(found.image if same else found.image[:, ::-1], plain.image)
        mirrored += not same
        scales.add(tuple(found.scale.tolist()))
        corners.add(plain.image.tobytes())
    assert 15 < mirrored < 45 and len(scales) > 10 and len(corners) > 50
    # The shorter side is 40 to 60 pixels.
    factors = np.array(sorted(scales)) * min(SOURCE.size(1))
    assert factors.min() > 38 and factors.max() < 63


def test_batches_are_of_every_image_once_an_epoch_whoever_decodes_them():
    whole = BoxBatches(SOURCE, FRAMING, seed=1, batch_size=8)
    halves = [BoxBatches(SOURCE, FRAMING, seed=1, batch_size=8, rows=rows) for rows in (range(4), range(4, 8))]
    assert whole.steps_per_epoch == 3
    seen = []
    for step in (0, 1, 2):
        batch, parts = whole[step], [half[step] for half in halves]
        for expected, *found in zip(batch.examples, *(part.examples for part in parts), strict=True):
            np.testing.assert_array_equal(np.concatenate(found), expected)
        assert batch.examples.image.shape == (8, 32, 32, 3)
        empty = batch.weight == 0
        assert (batch.examples.image[empty] == (1, 2, 3)).all() and not batch.examples.valid[empty].any()
        seen += batch.examples.image_index[~empty].tolist()
    assert sorted(seen) == list(range(20))
    again, later = pickle.loads(pickle.dumps(whole))[0], whole[3]
    np.testing.assert_array_equal(again.examples.image, whole[0].examples.image)
    assert later.examples.image_index.tolist() != whole[0].examples.image_index.tolist()


def test_images_have_objects_of_one_class():
    assert image_label(truth([(0, 0, 1, 1), (1, 1, 2, 2)], [2, 2]), "here") == 2
    two = SOURCE[0]._replace(
        boxes=np.zeros((2, 4), np.float32), labels=np.array([2, 0], np.int32), ignored=np.zeros(2, bool)
    )
    with pytest.raises(ValueError, match=r"^example 7 \(0.png\): it has objects of the classes \[0, 2\]; localization"):
        cropped(two, 7, FRAMING, (0, 0, 32, 32))
    none = SOURCE[0]._replace(boxes=np.zeros((0, 4), np.float32), labels=np.zeros(0, np.int32))
    with pytest.raises(ValueError, match="it has no object; localization needs one object or more"):
        cropped(none, 7, FRAMING, (0, 0, 32, 32))
    many = SOURCE[0]._replace(labels=np.zeros(4, np.int32))
    with pytest.raises(ValueError, match="example 7 .* it has 4 objects; max_boxes=3"):
        cropped(many, 7, FRAMING, (0, 0, 32, 32))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"image_size": 0}, "image_size=0; allowed: from 1"),
        (
            {"short_sides": (200, 480)},
            r"short_sides=\(200, 480\); allowed: two in ascending order, from image_size=224",
        ),
        ({"short_sides": (480, 256)}, "short_sides="),
        ({"least_share": 0.0}, "least_share=0.0; allowed: above 0, up to 1"),
        ({"least_share": 1.5}, "least_share=1.5"),
        ({"max_boxes": 0}, "max_boxes=0"),
        ({"fill": (0, 256, 0)}, "fill="),
        ({"resize": "best"}, "resize='best'"),
    ],
)
def test_a_wrong_framing_is_refused(options, what):
    with pytest.raises(ValueError, match=what):
        CropFraming(**options)
