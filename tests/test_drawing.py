"""Pictures of boxes: lines lie on their boxes' edges, are seen on any image, and grow with it."""

import io

import numpy as np
import pytest
from PIL import Image

from resnet_jax.detection.data import open_boxes
from resnet_jax.detection.drawing import class_colour, contact_sheet, draw_boxes

NAMES = tuple("abcdefghij")


def boxes(*corners):
    return np.array(corners, np.float32).reshape(-1, 4)


def labels(*numbers):
    return np.array(numbers, np.int32)


def plain(width, height, colour):
    return Image.new("RGB", (width, height), colour)


def places(picture, colour):
    """(x1, y1, x2, y2) around the pixels of a colour, and how many there are."""
    rows, columns = np.nonzero((np.asarray(picture) == colour).all(-1))
    return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), len(rows)


def luminance(colour):
    return float((np.array(colour) / 255) ** 2.2 @ (0.2126, 0.7152, 0.0722))


def test_colours_are_far_from_black_from_white_and_from_each_other():
    colours = [class_colour(label) for label in range(80)]
    for colour in colours:
        assert all(0 <= value <= 255 for value in colour)
        # Contrasts as WCAG defines them.
        assert (luminance(colour) + 0.05) / 0.05 > 5 and 1.05 / (luminance(colour) + 0.05) > 2.2
    assert len(set(colours)) == 80
    first = np.array(colours[:20], float)
    distances = np.abs(first[:, None] - first[None]).max(-1) + 1000 * np.eye(20)
    assert distances.min() > 20
    assert class_colour(7) == colours[7]


@pytest.mark.parametrize("background", [0, 90, 255])
@pytest.mark.parametrize(("width", "height"), [(100, 100), (640, 480), (4000, 100)])
def test_a_line_is_within_its_box_s_edges_and_stands_out(width, height, background):
    image = plain(width, height, (background,) * 3)
    box = [0.2 * width, 0.3 * height, 0.9 * width, 0.8 * height]
    picture = draw_boxes(image, boxes(box), labels=labels(3), class_names=NAMES)
    colour = class_colour(3)
    # Its name is above.
    below = np.asarray(picture)[round(box[1]) :]
    (x1, y1, x2, y2), _ = places(below, colour)
    assert (x1, y1 + round(box[1]), x2, y2 + round(box[1])) == tuple(round(edge) for edge in box)
    # The line has black at both sides, wherever there is an image.
    row = np.asarray(picture)[round(0.6 * height)].tolist()
    starts = [x for x in range(1, width) if tuple(row[x]) == colour and tuple(row[x - 1]) != colour]
    assert starts[0] == round(box[0]) and row[starts[0] - 1] == [0, 0, 0] and len(starts) == 2
    assert np.asarray(image).min() == background


def line_width(picture, colour):
    row = (np.asarray(picture)[picture.height * 3 // 4] == colour).all(-1)
    return int(row[: picture.width // 2].sum())


def test_lines_and_texts_grow_with_the_image():
    widths, heights = [], []
    for side in (100, 1000, 4000):
        drawn = draw_boxes(
            plain(side, side, "white"),
            boxes([side / 4, side / 4, side * 3 / 4, side]),
            labels=labels(0),
            class_names=NAMES,
        )
        widths.append(line_width(drawn, class_colour(0)))
        (_, top, _, _), _ = places(drawn, class_colour(0))
        heights.append(side // 4 - top)
    assert widths[0] == 1 and 5 < widths[1] < 10 and 3.5 < widths[2] / widths[1] < 4.5
    # At least nine pixels of text.
    assert 9 < heights[0] < 20 and 25 < heights[1] < 50 and 3.5 < heights[2] / heights[1] < 4.5


def test_proposals_are_thin_and_white_without_text():
    image = plain(1000, 1000, (90, 90, 90))
    picture = draw_boxes(image, boxes([100, 100, 900, 900]))
    assert places(picture, (255, 255, 255))[0] == (100, 100, 900, 900)
    assert line_width(picture, (255, 255, 255)) == 3
    labelled = draw_boxes(image, boxes([100, 100, 900, 900]), labels=labels(0), class_names=NAMES)
    assert line_width(labelled, class_colour(0)) == 7


def test_a_surer_detection_is_above_and_its_score_is_written():
    image, place = plain(300, 300, "white"), boxes([50, 50, 250, 250], [50, 50, 250, 250])
    arguments = {"labels": labels(0, 1), "class_names": NAMES}
    for scores, above in (([0.9, 0.5], 0), ([0.5, 0.9], 1)):
        picture = np.asarray(draw_boxes(image, place, scores=np.array(scores, np.float32), **arguments))
        assert tuple(picture[150, 50]) == class_colour(above)
    without = draw_boxes(image, place[:1], labels=labels(0), class_names=NAMES)
    with_score = draw_boxes(image, place[:1], labels=labels(0), scores=np.ones(1, np.float32), class_names=NAMES)
    # The text's ground is wider.
    assert (
        places(np.asarray(with_score)[:45], class_colour(0))[0][2]
        > places(np.asarray(without)[:45], class_colour(0))[0][2]
    )


def test_a_dashed_line_has_gaps():
    place = boxes([50, 50, 250, 250])
    counts = [
        places(
            draw_boxes(plain(300, 300, "white"), place, labels=labels(0), dashed=each, class_names=NAMES).crop(
                (0, 80, 300, 300)
            ),
            class_colour(0),
        )
        for each in (None, np.array([False]), np.array([True]))
    ]
    assert counts[0] == counts[1] and 0.4 < counts[2][1] / counts[0][1] < 0.6


def test_texts_stay_in_the_image_and_leave_each_other_be():
    names = ["long name"] * 4
    corners = boxes([0, 0, 300, 200], [0, 0, 300, 200], [290, 190, 300, 200], [0, 195, 5, 200])
    picture = draw_boxes(plain(300, 200, "white"), corners, labels=labels(0, 1, 2, 3), class_names=names)
    alone = draw_boxes(plain(300, 200, "white"), corners[2:3], labels=labels(0), class_names=names)
    (_, _, right, bottom), whole = places(alone, class_colour(0))
    assert right <= 300 and bottom <= 200
    for label in range(4):
        # Most of each text's ground is to be seen.
        assert places(picture, class_colour(label))[1] > 0.8 * whole


def test_the_texts_of_one_place_s_boxes_are_all_to_be_read():
    image, place = plain(400, 300, "white"), boxes([100, 100, 300, 200], [100, 100, 300, 200])
    alone = np.asarray(draw_boxes(image, place[:1], labels=labels(0), class_names=NAMES))
    both = draw_boxes(image, place, labels=labels(0, 1), class_names=NAMES)
    ground = places(alone[:98], class_colour(0))[1]
    # The second's line hides the first's, but neither text's ground the other's.
    assert places(both, class_colour(0))[1] > 0.9 * ground
    assert places(both, class_colour(1))[1] > places(alone, class_colour(0))[1] - 0.5 * ground


def test_boxes_beyond_the_image_and_without_area_are_drawn_in_it():
    corners = boxes([-50, -50, 400, 400], [100, 100, 100, 100], [500, 500, 600, 600])
    picture = draw_boxes(plain(200, 150, (90, 90, 90)), corners)
    assert picture.size == (200, 150)
    # The first box's line is at the image's edge.
    assert places(picture, (255, 255, 255))[0] == (0, 0, 200, 150)
    assert tuple(np.asarray(picture)[100, 100]) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_colour_and_the_image_stays(mode):
    image = plain(120, 80, (10, 200, 90)).convert(mode)
    before = np.asarray(image).copy()
    picture = draw_boxes(image, boxes([10, 20, 60, 70]), labels=labels(0), class_names=NAMES)
    assert picture.mode == "RGB" and picture.size == (120, 80)
    np.testing.assert_array_equal(np.asarray(image), before)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"labels": labels(0, 1), "class_names": NAMES}, "different lengths: {'boxes': 1, 'labels': 2}"),
        ({"dashed": np.zeros(3, bool)}, "different lengths: {'boxes': 1, 'dashed': 3}"),
        ({"scores": np.ones(1, np.float32)}, "scores without labels"),
        ({"labels": labels(10), "class_names": NAMES}, "labels 10 to 10 of 10 class_names"),
        ({"labels": labels(-1), "class_names": NAMES}, "labels -1 to -1"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, what):
    with pytest.raises(ValueError, match=what):
        draw_boxes(plain(50, 50, "white"), boxes([1, 2, 30, 40]), **arguments)


def test_a_box_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="box 1 is .*nan.*; boxes must be finite"):
        draw_boxes(plain(50, 50, "white"), boxes([1, 2, 30, 40], [1, np.nan, 30, 40]))


def test_a_sheet_has_every_picture_in_its_cell_and_none_enlarged():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    sizes = [(400, 200), (50, 100), (100, 50)]
    pictures = [("caption", plain(*size, colour)) for size, colour in zip(sizes, colours, strict=True)]
    sheet = contact_sheet(pictures, columns=2, side=200)
    found = [places(sheet, colour)[0] for colour in colours]
    assert [(x2 - x1, y2 - y1) for x1, y1, x2, y2 in found] == [(200, 100), (50, 100), (100, 50)]
    assert found[0][1] == found[1][1] and found[0][0] == found[2][0]
    assert found[1][0] >= found[0][2] and found[2][1] >= found[0][3]
    # Each caption is black on white above its picture.
    for x1, y1, _, _ in found:
        assert (np.asarray(sheet)[y1 - 12 : y1, x1 : x1 + 40] < 100).any()


def test_a_caption_too_long_for_its_cell_is_cut():
    sheet = np.asarray(contact_sheet([("x" * 200, plain(60, 60, "red")), ("", plain(60, 60, "red"))], columns=2))
    first, second = sheet[:20, 8:68], sheet[:20, 76:]
    assert (first < 128).any() and not (second < 128).any()
    for wrong in ({"pictures": [], "columns": 1}, {"pictures": [("", plain(9, 9, "red"))], "columns": 0}):
        with pytest.raises(ValueError, match="allowed are numbers from 1"):
            contact_sheet(**wrong)


def test_real_images_keep_their_pixels_away_from_the_lines(real_data):

    source = open_boxes("bccd", "test", data_dir=real_data)
    example = source[0]
    image = Image.open(io.BytesIO(example.image))
    picture = draw_boxes(image, example.boxes, labels=example.labels, class_names=source.class_names)
    changed = (np.asarray(picture) != np.asarray(image.convert("RGB"))).any(-1)
    assert 0.02 < changed.mean() < 0.2
    for label in set(example.labels.tolist()):
        assert places(picture, class_colour(label))[1] > 100
