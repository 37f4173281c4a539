"""Test views: their pixels are those of classification, and their geometry leads back to the file."""

import jax.numpy as jnp
import numpy as np
import pytest
from shape_pictures import ShapePictures

from resnet_jax.data.views import CenterView, ScaledViews
from resnet_jax.localization.testing import view_of
from resnet_jax.localization.views import centre_view, shape_of, stacked_views, whole_views

SOURCE = ShapePictures(12)
PLAIN = np.zeros(3, np.float32), np.ones(3, np.float32)


def bright(pixels):
    """The box of a shape's own colour, to a pixel."""
    rows, columns = np.nonzero((pixels > 200).all(-1))
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)


def test_pixels_are_those_of_classification():
    encoded = SOURCE[3].image
    crop = centre_view(encoded, side=48, short_side=56)
    np.testing.assert_array_equal(crop.image, CenterView(48, 56)(encoded))
    views = whole_views(encoded, short_sides=(40, 72))
    for view, pixels in zip(views, ScaledViews((40, 72))(encoded), strict=True):
        np.testing.assert_array_equal(view.image, pixels)
        assert view.size.tolist() == list(pixels.shape[:2]) and view.corner.tolist() == [0, 0]
        assert view.file_size.tolist() == list(SOURCE.size(3))


def test_boxes_lead_back_to_the_file():
    # Crops of 60 of the smaller side's 62: the shape lies inside, or at the edge.
    inside = 0
    for index in range(len(SOURCE)):
        example, wanted = SOURCE[index], SOURCE[index].boxes[0]
        for view in (
            centre_view(example.image, side=60, short_side=62),
            *whole_views(example.image, short_sides=(48, 96)),
        ):
            on_device = view_of(stacked_views([view], shape_of(view, stride=16)), *PLAIN)
            seen = bright(view.image)
            found = on_device.in_file_pixels(jnp.asarray(seen[None]))[0]
            at_edge = (seen[:2] == 0).any() or (seen[2:] == view.size[::-1]).any()
            if not at_edge:
                inside += 1
                np.testing.assert_allclose(found, wanted, atol=2.5)
            back = on_device.in_view_pixels(found[None])
            np.testing.assert_allclose(back[0], seen, atol=1e-3)
    assert inside > 20


def test_boxes_of_several_images_and_classes_go_each_with_its_own_view():
    views = [centre_view(SOURCE[index].image, side=48, short_side=56) for index in (0, 1)]
    both = view_of(stacked_views(views, (48, 48)), *PLAIN)
    boxes = np.random.default_rng(0).uniform(0, 48, (2, 3, 5, 4)).astype(np.float32)
    found = both.in_file_pixels(jnp.asarray(boxes))
    for number, view in enumerate(views):
        corner, scale = view.corner[[1, 0, 1, 0]], view.scale[[1, 0, 1, 0]]
        np.testing.assert_allclose(found[number], (boxes[number] + corner) / scale, rtol=1e-5)


def test_views_of_one_shape_are_padded_to_it():
    views = [view for index in range(12) for view in whole_views(SOURCE[index].image, short_sides=(40,))]
    landscape = [view for view in views if view.size[0] <= view.size[1]]
    portrait = [view for view in views if view.size[0] > view.size[1]]
    assert len(landscape) > 2 and len(portrait) > 2
    (shape,) = {shape_of(view, stride=16) for view in landscape}
    batch = stacked_views(landscape, shape)
    assert shape == (48, 64) and batch.image.shape == (len(landscape), 48, 64, 3)
    for image, view in zip(batch.image, landscape, strict=True):
        np.testing.assert_array_equal(image[: view.size[0], : view.size[1]], view.image)
        assert not image[view.size[0] :].any() and not image[:, view.size[1] :].any()
    np.testing.assert_array_equal(batch.scale, [view.scale for view in landscape])
    with pytest.raises(ValueError, match=r"a view of \d+ x 40 pixels \(height, width\) in a batch of 48 x 64"):
        stacked_views(portrait, shape)
    with pytest.raises(ValueError, match="no views"):
        stacked_views([], shape)
