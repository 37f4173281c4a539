"""Training batches with boxes: every image once an epoch, in batches of one shape, the same whoever decodes them."""

import io

import numpy as np
import pytest
from PIL import Image

from resnet_jax.detection.annotations import BoxSource, annotated
from resnet_jax.detection.batches import Framing
from resnet_jax.detection.streaming import BoxBatches, make_prepare

FRAMING = Framing(short_side=32, long_side=48, stride=16, max_boxes=3, fill=(10, 20, 30))
# (height, width): seven that are wider than high, four that are not.
SIZES = [(20, 30)] * 7 + [(30, 20)] * 4


class Pictures(BoxSource):
    """Image k is of the colour k and has a box of its left half."""

    class_names = ("half",)

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, index):
        height, width = SIZES[index]
        file = io.BytesIO()
        Image.new("RGB", (width, height), (index, index, index)).save(file, "PNG")
        box = [[0, 0, width // 2, height]]
        return annotated(
            file.getvalue(), str(index), box, [0], size=SIZES[index], num_classes=1, where=lambda: self.where(index)
        )

    def size(self, index):
        return SIZES[index]

    def where(self, index):
        return f"picture {index}"


def batches(**options):
    return BoxBatches(Pictures(), FRAMING, **{"seed": 1, "batch_size": 4, **options})


def test_every_image_comes_once_an_epoch_and_batches_have_one_shape():
    found = batches()
    assert found.steps_per_epoch == 3
    orders = []
    for epoch in range(3):
        seen, shapes = [], set()
        for step in range(3 * epoch, 3 * epoch + 3):
            batch = found[step]
            shapes.add(batch.examples.image.shape)
            assert (batch.examples.image_index >= 0).tolist() == batch.weight.astype(bool).tolist()
            seen += batch.examples.image_index[batch.weight > 0].tolist()
            colours = batch.examples.image[np.arange(4), 0, 0, 0][batch.weight > 0]
            assert colours.tolist() == batch.examples.image_index[batch.weight > 0].tolist()
        assert sorted(seen) == list(range(11)) and shapes == {(4, 32, 48, 3), (4, 48, 32, 3)}
        orders.append(seen)
    assert orders[0] != orders[1] != orders[2]


def test_rows_that_fill_a_batch_up_have_no_object_and_the_colour_of_padding():
    found = batches(batch_size=5)
    filled = [found[step] for step in range(3) if not found[step].weight.all()]
    # Of either shape one.
    assert {batch.examples.image.shape[1:3] for batch in filled} == {(32, 48), (48, 32)}
    for batch in filled:
        empty = batch.weight == 0
        assert not batch.examples.valid[empty].any() and batch.examples.valid[~empty].any(1).all()
        assert (batch.examples.image[empty] == (10, 20, 30)).all()


def test_hosts_decode_rows_of_the_same_batches_at_any_step():
    whole, halves = batches(), [batches(rows=range(2)), batches(rows=range(2, 4))]
    for step in (7, 0, 4):
        parts = [half[step] for half in halves]
        for expected, *found in zip(whole[step].examples, *(part.examples for part in parts), strict=True):
            np.testing.assert_array_equal(np.concatenate(found), expected)
        assert np.concatenate([part.position for part in parts]).tolist() == list(range(4 * step, 4 * step + 4))
    streamed = list(whole.stream(first_step=2, stop_step=5, workers=0))
    for step, batch in zip((2, 3, 4), streamed, strict=True):
        np.testing.assert_array_equal(batch.examples.image, whole[step].examples.image)


def test_half_of_the_images_are_mirrored_unless_none_are():
    left = {True: 0, False: 0}
    for flip in left:
        found = batches(flip=flip)
        for step in range(30):
            examples, weight = found[step].examples, found[step].weight
            left[flip] += int((examples.boxes[weight > 0, 0, 0] == 0).sum())
    assert left[False] == 110 and 35 < left[True] < 75


@pytest.mark.parametrize("seed", [1, 2])
def test_the_devices_get_normalised_pixels_and_the_objects(seed):
    batch = batches(seed=seed)[0]
    found = make_prepare(np.array([10.0, 20.0, 30.0]), np.array([2.0, 2.0, 2.0]))(*batch, 0)
    expected = (batch.examples.image.astype(np.float32) - (10, 20, 30)) / 2
    np.testing.assert_allclose(found.image, expected)
    np.testing.assert_array_equal(found.truth.boxes, batch.examples.boxes)
    np.testing.assert_array_equal(found.sizes, batch.examples.size)
    # What fills up is zero, as padding is.
    assert not np.any(found.image[batch.weight == 0])
