"""No image or label that a net cannot mean reaches a device: it is refused where its record is known, and named."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from colored_images import build_colored_images, encoded_image
from written_records import INTEGER, replace_records, write_records

from resnet_jax.data import arrays
from resnet_jax.data.arrays import load_arrays
from resnet_jax.data.augment import TrainView
from resnet_jax.data.check_batch import check_image, check_labels
from resnet_jax.data.datasets import dataset_info
from resnet_jax.data.decode import UndecodableImage, decode
from resnet_jax.data.examples import Examples
from resnet_jax.data.streaming import TrainBatches, ViewedExamples

CLASSES = 5
# Features that a record's label may have been written with, a good label of them, and a bad one with how it is named.
BAD_LABELS = {
    "-1, as TFDS marks a missing one": (INTEGER, int, -1, "-1"),
    "the number of classes": (INTEGER, int, CLASSES, "5"),
    "one more": (INTEGER, int, CLASSES + 1, "6"),
    "far beyond 32 bits, where 0 is left of it": (INTEGER, int, 2**32, "4294967296"),
    "a fraction": (tfds.features.Scalar(np.float32), None, np.float32(1.5), "1.5"),
    "two labels": (tfds.features.Tensor(shape=(2,), dtype=np.int64), None, np.array([1, 2]), r"\[1, 2\]"),
    "a name": (tfds.features.Text(), None, "dog", "b'dog'"),
}
WRONG = 3


def where(index):
    return f"example {index}"


@pytest.fixture(params=BAD_LABELS)
def bad(request, tmp_path):
    """A set of which example 3 of both splits has a label that is none, and the message of that."""
    feature, good, label, named = BAD_LABELS[request.param]
    folder = build_colored_images(tmp_path, classes=CLASSES, train=8, test=6)
    for split, count in (("train", 8), ("test", 6)):
        labels = [label if good is None or index == WRONG else index % CLASSES for index in range(count)]
        write_records(folder, split, [encoded_image(0)] * count, labels, feature)
    index = WRONG if good else r"\d"
    message = rf"^data set 'colors', split '%s', example {index} \(image\d.jpg\) has label {named}; allowed is 0 to 4"
    return dataset_info("colors", data_dir=tmp_path), message


def batches(examples, **changes):
    return TrainBatches(examples, TrainView(image_size=8, crop="inception"), seed=0, batch_size=4, **changes)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_label_that_is_none_is_refused_as_it_is_read(bad, split):
    info, message = bad
    with pytest.raises(ValueError, match=message % split):
        Examples(info, split)[WRONG]
    with pytest.raises(ValueError, match=message % split):
        load_arrays(info, split)
    with pytest.raises(ValueError, match=message % split):
        list(ViewedExamples(Examples(info, split), decode, size=2, unreadable="skip"))


@pytest.mark.parametrize("unreadable", ["stop", "skip"])
def test_no_policy_for_unreadable_images_passes_over_a_label(bad, unreadable):
    info, message = bad
    source = batches(Examples(info, "train"), unreadable=unreadable)
    with pytest.raises(ValueError, match=message % "train") as error:
        [source[step] for step in range(2)]
    assert not isinstance(error.value, UndecodableImage)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_worker_that_meets_such_a_label_names_the_record(tmp_path, workers):
    folder = build_colored_images(tmp_path, classes=CLASSES, train=8)
    write_records(folder, "train", [encoded_image(0)] * 8, [0, 1, 2, CLASSES, 4, 0, 1, 2])
    source = batches(Examples(dataset_info("colors", data_dir=tmp_path), "train"))
    message = r"split 'train', example 3 \(image3.jpg\) has label 5; allowed is 0 to 4"
    with source.stream(first_step=0, stop_step=2, workers=workers) as stream:
        with pytest.raises(ValueError, match=message):
            list(stream)


def test_a_record_without_an_image_is_damaged(tmp_path):
    folder = build_colored_images(tmp_path, classes=CLASSES, train=2)
    replace_records(folder, "train", [b"", b""])
    examples = Examples(dataset_info("colors", data_dir=tmp_path), "train")
    with pytest.raises(UndecodableImage, match="example 1: its record is damaged: 0 images in it, not one"):
        examples[1]


class Given(Examples):
    """What a source of examples hands on, whatever that is: every image and label is the one that is given."""

    def __init__(self, image, label):
        self.image, self.label = image, label
        self.info = type("Info", (), {"num_classes": CLASSES})

    def __len__(self):
        return 4

    def where(self, index):
        return where(index)

    def decoded(self, index, decode):
        return self.image, self.label

    def all_decoded(self, decode):
        return (self.decoded(index, decode) for index in range(len(self)))


IMAGE = np.full((8, 8, 3), 7, np.uint8)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (IMAGE.astype(np.float32), r"float32 \[8, 8, 3\]"),
        (IMAGE.astype(np.int8), r"int8 \[8, 8, 3\]"),
        # These numpy would broadcast.
        (IMAGE[:1, :1], r"uint8 \[1, 1, 3\]"),
        (IMAGE[..., :1], r"uint8 \[8, 8, 1\]"),
        (IMAGE[None], r"uint8 \[1, 8, 8, 3\]"),
        (7, "7"),
    ],
)
def test_an_image_of_another_type_or_shape_is_in_no_batch(image, found):
    source = batches(Given(image, 0))
    assert (batches(Given(IMAGE, 0))[0].image == 7).all()
    with pytest.raises(ValueError, match=rf"^example {source.example_at(0)}: its image is {found}; allowed is uint8 "):
        source[0]


@pytest.mark.parametrize(
    ("label", "found"),
    [
        *((-1, "-1"), (CLASSES, "5"), (CLASSES + 1, "6"), (1.0, "1.0"), (True, "True"), (None, "None")),
        *((np.float32(1), "1.0"), (np.array([1]), r"int64 \[1\]"), ([1], r"\[1\]"), (2**32, "4294967296")),
    ],
)
def test_a_label_that_is_none_is_in_no_batch(label, found):
    source = batches(Given(IMAGE, label))
    assert batches(Given(IMAGE, np.int64(4)))[0].label.tolist() == [4] * 4
    message = rf"^example {source.example_at(0)} has label {found}; .*; and 1 more; allowed is 0 to 4, an integer$"
    with pytest.raises(ValueError, match=message):
        source[0]


def test_a_split_in_memory_is_checked_when_it_is_loaded(monkeypatch, tmp_path):
    info = dataset_info("digits", data_dir=tmp_path)
    monkeypatch.setattr(arrays, "Examples", lambda info, split: Given(np.zeros((8, 8, 1), np.uint8), 10))
    message = "^example 0 has label 10; example 1 has label 10; .*; and 1 more; allowed is 0 to 9, an integer$"
    with pytest.raises(ValueError, match=message):
        load_arrays(info, "test")


def test_an_image_left_out_needs_no_label(tmp_path):
    build_colored_images(tmp_path, classes=CLASSES, broken=(1,), train=4)
    source = batches(Examples(dataset_info("colors", data_dir=tmp_path), "train"), unreadable="skip")
    batch = source[0]
    row = [source.example_at(position) for position in range(4)].index(1)
    assert (batch.weight[row], batch.label[row], batch.image[row].max(), batch.weight.sum()) == (0, 0, 0, 3)


def test_labels_become_what_the_devices_take():
    labels = check_labels([0, np.int64(4), np.uint8(2)], CLASSES, where)
    assert (labels.dtype, labels.tolist()) == (np.int32, [0, 4, 2])
    assert check_labels([], CLASSES, where).shape == (0,)
    assert check_labels(np.arange(CLASSES), CLASSES, where).tolist() == list(range(CLASSES))


def test_all_wrong_labels_are_counted_and_the_first_named():
    with pytest.raises(ValueError) as error:
        check_labels([0, 5, 1, 6, 7, 8, -1], CLASSES, where)
    assert str(error.value) == (
        "example 1 has label 5; example 3 has label 6; example 4 has label 7; and 2 more; allowed is 0 to 4, an integer"
    )


def test_a_label_of_each_shape_of_array_is_refused():
    for labels in (np.zeros((4, 1), np.int32), np.zeros(4, np.float32), np.zeros(4, bool)):
        with pytest.raises(ValueError, match="^example 0 has label .*; allowed is 0 to 4, an integer$"):
            check_labels(labels, CLASSES, where)


def test_the_image_is_named_only_when_it_is_refused():
    check_image(IMAGE, (8, 8, 3), lambda: pytest.fail("a name that nobody needs takes longer than the check"))
    check_labels([1], CLASSES, lambda index: pytest.fail("so does this one"))
