"""Images with boxes at two shapes: boxes stay on their objects, padding holds nothing, and one image is one example."""

import io

import numpy as np
import pytest
from box_sets import write_voc_folder
from PIL import Image

from resnet_jax.data.decode import UndecodableImage, decode
from resnet_jax.data.resize import resize_image
from resnet_jax.detection.annotations import Annotated
from resnet_jax.detection.batches import Framing, check_max_boxes, framed, in_file_pixels, stacked
from resnet_jax.detection.data import open_boxes

SMALL = Framing(short_side=60, long_side=100, stride=32, max_boxes=5, fill=(9, 8, 7))


def example(height, width, boxes=(), *, color=(255, 255, 255)):
    """A black image, as PNG, whose boxes (whole pixels) are filled with a colour."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for x1, y1, x2, y2 in boxes:
        pixels[y1:y2, x1:x2] = color
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    count = len(boxes)
    return Annotated(
        image=file.getvalue(),
        name="drawn.png",
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.arange(1, count + 1, dtype=np.int32),
        ignored=np.arange(count) % 2 == 1,
        areas=np.ones(count, np.float32),
    )


@pytest.mark.parametrize(
    ("size", "scaled", "bucket"),
    [
        ((375, 500), (600, 800), (608, 1024)),
        ((500, 375), (800, 600), (1024, 608)),
        ((333, 500), (600, 901), (608, 1024)),
        ((500, 500), (600, 600), (608, 1024)),
        ((480, 640), (600, 800), (608, 1024)),
        ((300, 500), (600, 1000), (608, 1024)),
        ((200, 500), (400, 1000), (608, 1024)),
        ((1200, 3000), (400, 1000), (608, 1024)),
        ((1, 5000), (1, 1000), (608, 1024)),
        ((2000, 1999), (600, 600), (1024, 608)),
    ],
)
def test_sizes_are_those_of_the_paper_s_scale(size, scaled, bucket):
    framing = Framing()
    assert framing.scaled_size(size) == scaled
    assert framing.bucket_of(size) == bucket


def test_every_scaled_image_fits_its_bucket():
    rng = np.random.default_rng(0)
    for framing in (Framing(), Framing(short_side=800, long_side=1333), Framing(short_side=7, long_side=11, stride=1)):
        for height, width in np.exp(rng.uniform(0, 9, (2000, 2))).astype(int).tolist():
            size, (tall, wide) = framing.scaled_size((height, width)), framing.bucket_of((height, width))
            assert 1 <= size[0] <= tall and 1 <= size[1] <= wide
            assert tall % framing.stride == wide % framing.stride == 0
            limits = framing.short_side, framing.long_side
            assert min(size) == limits[0] or max(size) == limits[1]
            assert min(size) <= limits[0] and max(size) <= limits[1]


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("size", [(30, 40), (53, 37), (120, 300), (101, 99)])
def test_boxes_stay_on_what_they_frame(size, mirror):
    height, width = size
    box = (width // 5, height // 4, width // 2, height - 3)
    found = framed(example(height, width, [box]), 3, SMALL, mirror=mirror)
    bright = (found.image[: found.size[0], : found.size[1], 0] > 127).nonzero()
    seen = np.array([bright[1].min(), bright[0].min(), bright[1].max() + 1, bright[0].max() + 1])
    np.testing.assert_allclose(found.boxes[0], seen, atol=0.51)
    # Exactly by the sides' quotients.
    x1, x2 = (x * found.size[1] / width for x in (box[0], box[2]))
    x1, x2 = (found.size[1] - x2, found.size[1] - x1) if mirror else (x1, x2)
    y1, y2 = (y * found.size[0] / height for y in (box[1], box[3]))
    np.testing.assert_allclose(found.boxes[0], [x1, y1, x2, y2], rtol=1e-6)
    assert found.image_index == 3 and found.image_index.dtype == np.int32


def test_the_image_is_scaled_and_the_rest_is_padding():
    given = example(30, 45, [(3, 4, 20, 22), (10, 0, 45, 30), (0, 0, 1, 1)], color=(200, 100, 50))
    found = framed(given, 0, SMALL)
    np.testing.assert_array_equal(found.size, [60, 90])
    np.testing.assert_allclose(found.scale, [2, 2])
    assert found.image.shape == (64, 128, 3) and found.image.dtype == np.uint8
    np.testing.assert_array_equal(found.image[:60, :90], resize_image(decode(given.image), (60, 90), resize="bilinear"))
    padding = np.ones((64, 128), bool)
    padding[:60, :90] = False
    np.testing.assert_array_equal(np.unique(found.image[padding], axis=0), [SMALL.fill])
    np.testing.assert_array_equal(found.boxes, [*(2 * given.boxes), [0] * 4, [0] * 4])
    np.testing.assert_array_equal(found.labels, [1, 2, 3, 0, 0])
    np.testing.assert_array_equal(found.valid, [True, True, True, False, False])
    np.testing.assert_array_equal(found.ignored, [False, True, False, False, False])
    kinds = [array.dtype for array in found[1:]]
    assert kinds == [np.float32, np.int32, bool, bool, np.int32, np.float32, np.int32]


def test_a_mirrored_image_is_the_image_mirrored():
    given = example(30, 41, [(3, 4, 20, 22)])
    plain, mirrored = (framed(given, 0, SMALL, mirror=mirror) for mirror in (False, True))
    height, width = plain.size
    np.testing.assert_array_equal(mirrored.image[:height, :width], plain.image[:height, :width][:, ::-1])
    np.testing.assert_array_equal(mirrored.image[:, width:], plain.image[:, width:])
    np.testing.assert_allclose(mirrored.boxes[0, [0, 2]], width - plain.boxes[0, [2, 0]])
    np.testing.assert_array_equal(mirrored.boxes[0, [1, 3]], plain.boxes[0, [1, 3]])


def test_boxes_go_back_to_the_file_s_pixels():
    given = example(37, 53, [(3, 4, 20, 22), (0, 0, 53, 37)])
    found = framed(given, 0, SMALL)
    assert found.scale[0] != found.scale[1]
    np.testing.assert_allclose(in_file_pixels(found.boxes[:2], found.scale), given.boxes, rtol=1e-6)


def test_no_objects_are_possible():
    found = framed(example(30, 40), 0, SMALL)
    assert not found.valid.any() and not found.ignored.any() and found.boxes.shape == (5, 4)


def test_examples_of_one_bucket_make_a_batch():
    wide = [framed(example(30, 40 + k, [(1, 1, 5, 5)] * k), k, SMALL) for k in range(3)]
    batch = stacked(wide)
    assert batch.image.shape == (3, 64, 128, 3)
    np.testing.assert_array_equal(batch.image_index, [0, 1, 2])
    np.testing.assert_array_equal(batch.valid.sum(1), [0, 1, 2])
    with pytest.raises(ValueError, match="a batch has images of one bucket"):
        stacked([*wide, framed(example(40, 30), 3, SMALL)])
    with pytest.raises(ValueError, match="a batch has images of one bucket"):
        stacked([])


def test_too_many_objects_are_an_error_at_opening_and_after(tmp_path):
    source = open_boxes(str(write_voc_folder(tmp_path / "kit", train=range(8))), "train")
    check_max_boxes(source, 3)
    what = "it has 3 objects; max_boxes=2 allows fewer: set it to 3 or more"
    with pytest.raises(ValueError, match=f"example 3 .000003.: {what}"):
        check_max_boxes(source, 2)
    framing = Framing(max_boxes=2)
    framed(source[2], 2, framing)
    with pytest.raises(ValueError, match=f"example 7 .000007.jpg.: {what}"):
        framed(source[7], 7, framing)


def test_an_unreadable_image_is_refused():
    with pytest.raises(UndecodableImage):
        framed(example(30, 40)._replace(image=b"nothing"), 0, SMALL)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"short_side": 0}, "short_side=0; allowed: 1 to long_side=1000"),
        ({"short_side": 1001}, "short_side=1001; allowed: 1 to long_side=1000"),
        ({"stride": 0}, "stride=0; allowed: from 1"),
        ({"max_boxes": 0}, "max_boxes=0; allowed: from 1"),
        ({"fill": (0, 0, 256)}, "fill=.*; allowed: three numbers from 0 to 255"),
        ({"resize": "magic"}, "resize='magic'; allowed: "),
    ],
)
def test_values_outside_what_is_allowed_are_refused(arguments, what):
    with pytest.raises(ValueError, match=what):
        Framing(**arguments)


def test_real_images_fit(real_data):
    source = open_boxes("bccd", "test", data_dir=real_data)
    framing = Framing(max_boxes=30)
    check_max_boxes(source, framing.max_boxes)
    for index in (0, 35, 71):
        found = framed(source[index], index, framing)
        assert found.image.shape == (608, 1024, 3)
        np.testing.assert_array_equal(found.size, [600, 800])
        assert found.valid.sum() == source.count(index)
        assert (found.boxes <= [800, 600, 800, 600]).all() and (found.boxes >= 0).all()
