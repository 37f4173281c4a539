"""Views for testing: where crops lie, in which order, and to which few shapes scaled images are padded."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.decode import UndecodableImage
from resnet_jax.data.resize import resize_image
from resnet_jax.data.views import CenterView, ScaledViews, TenCropView, padded_shape


def noise(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels)).astype(np.uint8)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("shape", "top", "left"),
    # Where a margin is odd its half goes to the even offset: of 5 to 2, of 7 to 4.
    [((32, 42), 4, 9), ((42, 32), 9, 4), ((24, 24), 0, 0), ((29, 31), 2, 4), ((31, 29), 4, 2)],
)
def test_the_centre_view_cuts_the_middle_out_of_the_scaled_image(shape, top, left, channels):
    image = noise(*shape, channels)
    found = CenterView(24, min(shape), channels=channels)(png(image))
    np.testing.assert_array_equal(found, image[top : top + 24, left : left + 24])
    assert found.flags.c_contiguous


@pytest.mark.parametrize("resize", ["area", "bilinear"])
@pytest.mark.parametrize(("shape", "scaled"), [((375, 500), (64, 85)), ((500, 375), (85, 64)), ((20, 31), (64, 99))])
def test_the_whole_image_is_resized_before_the_crop(resize, shape, scaled):
    image = noise(*shape)
    whole = resize_image(image, scaled, resize=resize)
    [found] = ScaledViews((64,), resize)(png(image))
    np.testing.assert_array_equal(found, whole)
    top, left = (round((side - 56) / 2) for side in scaled)
    np.testing.assert_array_equal(CenterView(56, 64, resize)(png(image)), whole[top : top + 56, left : left + 56])


def test_the_five_crops_are_the_corners_row_by_row_and_the_centre():
    image = noise(32, 45)
    crops = TenCropView(24, 32)(png(image))
    assert crops.shape == (5, 24, 24, 3)
    places = [(0, 0), (0, 21), (8, 0), (8, 21), (4, 10)]
    for crop, (top, left) in zip(crops, places, strict=True):
        np.testing.assert_array_equal(crop, image[top : top + 24, left : left + 24])
    np.testing.assert_array_equal(crops[4], CenterView(24, 32)(png(image)))


def test_crops_of_the_whole_short_side_share_their_rows():
    image = noise(24, 40)
    crops = TenCropView(24, 24)(png(image))
    np.testing.assert_array_equal(crops[0], crops[2])
    np.testing.assert_array_equal(crops[1], crops[3])


def test_each_scale_is_made_from_the_image_itself():
    image = noise(60, 90)
    found = ScaledViews((30, 60, 120), "area")(png(image))
    assert [view.shape for view in found] == [(30, 45, 3), (60, 90, 3), (120, 180, 3)]
    np.testing.assert_array_equal(found[1], image)
    np.testing.assert_array_equal(found[0], resize_image(image, (30, 45), resize="area"))
    np.testing.assert_array_equal(found[2], resize_image(image, (120, 180), resize="area"))


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (5, 3)])
def test_small_and_narrow_images_are_enlarged(shape):
    encoded = png(np.full((*shape, 3), 77, np.uint8))
    assert (CenterView(24, 32)(encoded) == 77).all()
    assert (TenCropView(24, 32)(encoded) == 77).all()
    [scaled] = ScaledViews((32,))(encoded)
    assert min(scaled.shape[:2]) == 32 and max(scaled.shape[:2]) == 32 * max(shape) // min(shape)
    assert (scaled == 77).all()


def test_an_image_too_narrow_to_be_scaled_at_all_is_refused():
    encoded = png(np.zeros((1, 60_000, 3), np.uint8))
    for view in (CenterView(56, 64), TenCropView(56, 64), ScaledViews((64,))):
        with pytest.raises(UndecodableImage, match="64 x 3840000 pixels when scaled"):
            view(encoded)


@pytest.mark.parametrize("view", [CenterView(24, 32), TenCropView(24, 32, "bilinear"), ScaledViews((8, 32))])
def test_views_can_be_sent_to_workers(view):
    assert pickle.loads(pickle.dumps(view)) == view
    with pytest.raises(AttributeError):
        view.resize = "bilinear"
    with pytest.raises(UndecodableImage):
        view(b"")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CenterView(224, 200), "image_size=224; allowed: 1 to short_side=200"),
        (lambda: TenCropView(0, 200), "image_size=0"),
        (lambda: CenterView(224, 256, "cubic"), "resize='cubic'"),
        (lambda: TenCropView(224, 256, "area", 2), "channels=2"),
        (lambda: ScaledViews(()), r"short_sides=\(\); allowed: one or more"),
        (lambda: ScaledViews((224, 0)), r"short_sides=\(224, 0\)"),
        (lambda: ScaledViews((224,), "cubic"), "resize='cubic'"),
        (lambda: ScaledViews((224,), channels=2), "channels=2"),
    ],
)
def test_bad_attributes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((224, 224), 224, (224, 352)),  # 336 is no multiple of 32
        ((256, 384), 256, (256, 384)),
        ((256, 385), 256, (256, 512)),
        ((384, 256), 256, (384, 256)),
        ((513, 256), 256, (1024, 256)),
        ((240, 240), 240, (256, 384)),
        ((375, 500), 256, (256, 384)),
        ((1, 5000), 256, (256, 256 * 8192)),
    ],
)
def test_a_scaled_image_is_padded_to_the_first_rung_that_fits(size, short_side, expected):
    assert padded_shape(*size, short_side=short_side) == expected


@pytest.mark.parametrize("short_side", [224, 256, 384, 480, 640])
def test_images_up_to_an_aspect_of_4_have_six_padded_shapes_that_hold_them(short_side):
    shapes = set()
    for longer in range(short_side, 4 * short_side + 1):
        for size in ((short_side, longer), (longer, short_side)):
            padded = padded_shape(*size, short_side=short_side)
            assert padded[0] >= size[0] and padded[1] >= size[1]
            assert padded[0] % 32 == 0 and padded[1] % 32 == 0
            shapes.add(padded)
    assert len(shapes) == 6


def test_the_stride_sets_the_steps():
    assert padded_shape(250, 300, short_side=250, stride=8) == (256, 376)
