"""Random views for training: what is drawn has the distributions of the definitions, and stays inside the image."""

import io
import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from resnet_jax.data.augment import TrainView, example_rng, inception_crop_box, scale_crop_box
from resnet_jax.data.decode import decode, decode_box

SHAPES = [(1, 1), (1, 2), (2, 1), (1, 5000), (5000, 1), (3, 700), (700, 3), (223, 225), (375, 500), (500, 375)]
# Five sigma: a draw this far off has the probability 3e-7, and the seeds are fixed.
LEAST_P = 3e-7
CHECKOUT = Path(__file__).resolve().parent.parent


def gradient(height=300, width=400):
    """Red counts rows and green columns in steps of two pixels; blue is constant."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows // 2, columns // 2, np.full((height, width), 90)], -1).astype(np.uint8)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def assert_even(values, low, high):
    """All whole numbers from `low` to `high` come up, equally often."""
    counts = np.bincount(np.asarray(values) - low, minlength=high - low + 1)
    assert len(counts) == high - low + 1
    assert stats.chisquare(counts).pvalue > LEAST_P


def assert_uniform(values, low, high):
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > LEAST_P


def assert_inside(box, height, width):
    top, left, box_height, box_width = box
    assert 0 <= top < top + box_height <= height and 0 <= left < left + box_width <= width


def test_a_position_has_its_own_numbers_whatever_was_drawn_before():
    first = example_rng(3, 7).random(1000)
    np.testing.assert_array_equal(first, example_rng(3, 7).random(1000))
    others = [example_rng(*key).random(1000) for key in ((3, 8), (4, 7), (7, 3), (3, 2**40), (2**63, 7))]
    for other in others:
        assert not np.isin(other, first).any()


def test_numbers_of_neighbouring_positions_are_independent():
    draws = np.array([example_rng(0, position).random(2) for position in range(4000)])
    assert_uniform(draws[:, 0], 0, 1)
    assert_uniform(draws[:, 1], 0, 1)
    for first, second in ((draws[1:, 0], draws[:-1, 0]), (draws[:, 0], draws[:, 1]), (draws[1:, 0], draws[:-1, 1])):
        assert abs(stats.pearsonr(first, second).statistic) < 5 / math.sqrt(4000)


@pytest.mark.parametrize(("seed", "position"), [(-1, 0), (0, -1), (2**64, 0), (0, 2**64)])
def test_seeds_and_positions_out_of_range_are_refused(seed, position):
    with pytest.raises(ValueError, match="allowed are 0 to"):
        example_rng(seed, position)


def test_the_scale_is_even_over_all_whole_numbers_and_both_ends():
    # In an image of 24,000 pixels a side the box tells the scale: 224 / scale of it.
    rng = np.random.default_rng(0)
    boxes = [scale_crop_box(rng, 24_000, 24_000, image_size=224) for _ in range(9000)]
    scales = [round(224 * 24_000 / box[2]) for box in boxes]
    assert_even(scales, 256, 480)
    for box in boxes:
        assert abs(box[2] - box[3]) <= 1


def test_offsets_of_the_scale_crop_are_even_over_all_that_fit():
    # At the scale of the image itself a box is a crop in whole pixels.
    rng = np.random.default_rng(0)
    boxes = np.array([scale_crop_box(rng, 256, 280, image_size=224, short_sides=(256, 256)) for _ in range(6000)])
    assert_even(boxes[:, 0], 0, 256 - 224)
    assert_even(boxes[:, 1], 0, 280 - 224)
    assert abs(stats.pearsonr(boxes[:, 0], boxes[:, 1]).statistic) < 5 / math.sqrt(6000)
    assert (boxes[:, 2:] == 224).all()


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (100, 100), (2000, 1500)])
def test_the_scale_crop_is_a_square_of_the_resized_image_to_within_a_pixel(shape):
    rng = np.random.default_rng(0)
    for _ in range(500):
        _, _, height, width = scale_crop_box(rng, *shape, image_size=224)
        assert abs(height - width) <= 1 + 0.01 * height
        assert 224 / 480 * min(shape) - 1 <= height <= 224 / 256 * min(shape) + 1


def test_the_area_and_the_logarithm_of_the_aspect_are_uniform():
    # Boxes of at most 0.3 of a large square always fit, so that none is drawn again.
    rng = np.random.default_rng(0)
    side = 40_000
    boxes = np.array([inception_crop_box(rng, side, side, area=(0.08, 0.3)) for _ in range(5000)])
    assert_uniform(boxes[:, 2] * boxes[:, 3] / side**2, 0.08, 0.3)
    assert_uniform(np.log(boxes[:, 3] / boxes[:, 2]), math.log(3 / 4), math.log(4 / 3))
    # Offsets as a share of those that fit.
    assert_uniform(boxes[:, 0] / (side - boxes[:, 2]), 0, 1)
    assert_uniform(boxes[:, 1] / (side - boxes[:, 3]), 0, 1)


def test_small_offsets_of_the_inception_crop_are_even():
    rng = np.random.default_rng(0)
    boxes = np.array([inception_crop_box(rng, 10, 12, area=(0.3, 0.3), aspect=(1, 1)) for _ in range(4000)])
    assert (boxes[:, 2:] == 6).all()
    assert_even(boxes[:, 0], 0, 4)
    assert_even(boxes[:, 1], 0, 6)


def test_the_whole_range_of_areas_is_used_by_default():
    rng = np.random.default_rng(0)
    shares = [math.prod(inception_crop_box(rng, 300, 400)[2:]) / 120_000 for _ in range(3000)]
    assert 0.07 < min(shares) < 0.09 and 0.97 < max(shares) <= 1


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((1, 5000), (0, 2499, 1, 1)),
        ((5000, 1), (2499, 0, 1, 1)),
        ((30, 3000), (0, 1480, 30, 40)),
        ((3000, 30), (1480, 0, 40, 30)),
    ],
)
def test_where_no_box_fits_the_largest_in_the_centre_is_taken(shape, box):
    assert inception_crop_box(np.random.default_rng(0), *shape, area=(1, 1)) == box


def test_where_no_box_fits_an_image_within_the_aspects_is_taken_whole():
    found = inception_crop_box(np.random.default_rng(0), 300, 350, area=(1, 1), aspect=(0.75, 1.17))
    assert found == (0, 0, 300, 350)


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_lie_inside_images_of_any_shape(shape):
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert_inside(scale_crop_box(rng, *shape, image_size=224), *shape)
        assert_inside(scale_crop_box(rng, *shape, image_size=8, short_sides=(8, 9)), *shape)
        assert_inside(inception_crop_box(rng, *shape), *shape)


@pytest.mark.parametrize("crop", ["scale", "inception"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", ["none", "randaugment", "trivialaugment"])
def test_a_view_is_a_function_of_image_seed_and_position(crop, channels, policy):
    view = TrainView(32, crop, short_sides=(40, 60), channels=channels, policy=policy)
    encoded = png(gradient(70, 90))
    views = [view(encoded, example_rng(0, position)) for position in range(8)]
    again = [pickle.loads(pickle.dumps(view))(encoded, example_rng(0, position)) for position in range(8)]
    for first, second in zip(views, again, strict=True):
        assert first.shape == (32, 32, channels) and first.dtype == np.uint8
        np.testing.assert_array_equal(first, second)
    assert len({pixels.tobytes() for pixels in views}) == 8


@pytest.mark.parametrize("crop", ["scale", "inception"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (5, 3)])
def test_any_image_has_a_view(crop, shape):
    encoded = png(np.full((*shape, 3), 77, np.uint8))
    view = TrainView(32, crop, short_sides=(40, 60))
    for position in range(20):
        assert (view(encoded, example_rng(0, position)) == 77).all()


@pytest.mark.parametrize("crop", ["scale", "inception"])
def test_a_view_shows_the_box_that_the_same_generator_draws(crop):
    image = gradient()
    encoded = png(image)
    view = TrainView(48, crop, short_sides=(60, 90), area=(0.2, 0.9), aspect=(0.8, 1.2), flip=False, resize="bilinear")
    for position in range(20):
        rng = example_rng(5, position)
        if crop == "scale":
            box = scale_crop_box(rng, 300, 400, image_size=48, short_sides=(60, 90))
        else:
            box = inception_crop_box(rng, 300, 400, area=(0.2, 0.9), aspect=(0.8, 1.2))
        found = view(encoded, example_rng(5, position))
        np.testing.assert_array_equal(found, decode_box(encoded, box, (48, 48), resize="bilinear"))
        top, left, height, width = box
        rows = found[:, 0, 0] * 2.0 + 1
        columns = found[0, :, 1] * 2.0 + 1
        np.testing.assert_allclose(rows, top + (np.arange(48) + 0.5) * height / 48, atol=2)
        np.testing.assert_allclose(columns, left + (np.arange(48) + 0.5) * width / 48, atol=2)


def test_half_of_the_views_are_mirrored():
    encoded = png(gradient(40, 50))
    view = TrainView(16, "scale", short_sides=(16, 20))
    mirrored = 0
    for position in range(1000):
        found = view(encoded, example_rng(0, position))
        plain = TrainView(16, "scale", short_sides=(16, 20), flip=False)(encoded, example_rng(0, position))
        is_mirrored = found[0, 0, 1] > found[0, -1, 1]
        np.testing.assert_array_equal(found[:, ::-1] if is_mirrored else found, plain)
        mirrored += is_mirrored
    assert abs(mirrored - 500) < 5 * math.sqrt(250)


def test_the_policy_is_applied_to_the_cropped_and_mirrored_view():
    encoded = png(gradient())
    plain = TrainView(32, "inception")
    strong = TrainView(32, "inception", policy="randaugment", policy_operations=1, policy_magnitude=30)
    idle = TrainView(32, "inception", policy="randaugment", policy_operations=0)
    changed = 0
    for position in range(50):
        expected = plain(encoded, example_rng(0, position))
        np.testing.assert_array_equal(idle(encoded, example_rng(0, position)), expected)
        changed += not np.array_equal(strong(encoded, example_rng(0, position)), expected)
    # Of 14 operations only the identity changes nothing.
    assert 35 < changed < 50


def test_a_view_of_a_grey_image_is_grey_in_three_channels():
    found = TrainView(16, "inception")(png(gradient()[..., 0]), example_rng(0, 0))
    np.testing.assert_array_equal(found, found[..., :1].repeat(3, -1))


def test_an_image_of_the_crops_own_size_is_shown_as_it_is():
    image = gradient(32, 32)
    view = TrainView(32, "scale", short_sides=(32, 32), flip=False)
    np.testing.assert_array_equal(view(png(image), example_rng(0, 0)), decode(png(image)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0, "short_sides": (0, 9)}, "image_size=0; allowed: at least 1"),
        ({"crop": "random"}, "crop='random'; allowed: scale or inception"),
        ({"short_sides": (200, 480)}, r"short_sides=\(200, 480\); allowed: .* from image_size=224"),
        ({"short_sides": (480, 256)}, r"short_sides=\(480, 256\)"),
        ({"area": (0.0, 1.0)}, r"area=\(0.0, 1.0\)"),
        ({"area": (0.5, 1.5)}, r"area=\(0.5, 1.5\)"),
        ({"aspect": (2.0, 1.0)}, r"aspect=\(2.0, 1.0\)"),
        ({"resize": "cubic"}, "resize='cubic'"),
        ({"policy": "autoaugment"}, "policy='autoaugment'; allowed: none or randaugment or trivialaugment"),
        ({"policy_operations": -1}, "policy_operations=-1"),
        ({"policy_magnitude": 31}, "policy_magnitude=31; allowed: 0 to 30"),
        ({"channels": 4}, "channels=4"),
    ],
)
def test_bad_attributes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TrainView(**{"image_size": 224, "crop": "scale", **options})


def test_worker_processes_start_without_jax():
    code = "import sys, resnet_jax.data.augment, resnet_jax.data.views; print('jax' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "False"


def test_short_sides_are_of_the_scale_crop_alone():
    assert TrainView(600, "inception").short_sides == (256, 480)
