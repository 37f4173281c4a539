"""Examples by their index: the same from ArrayRecord and TFRecord files, with wrong labels and files named."""

import io
import shutil

import numpy as np
import pytest
from colored_images import build_colored_images, encoded_image
from PIL import Image
from tfrecord_files import as_tfrecord

from resnet_jax.data.arrays import load_arrays
from resnet_jax.data.augment import TrainView
from resnet_jax.data.datasets import dataset_info, split_size
from resnet_jax.data.decode import UndecodableImage, decode
from resnet_jax.data.examples import Examples
from resnet_jax.data.streaming import TrainBatches


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same set in two forms, under two folders."""
    array_record = tmp_path_factory.mktemp("array_record")
    built = build_colored_images(array_record, classes=5, broken=(7,), train=23, test=6)
    tfrecord = tmp_path_factory.mktemp("tfrecord")
    as_tfrecord(built, tfrecord / "colors" / "1.0.0", {"train": (9, 8, 6), "test": (6,)})
    return {"array_record": array_record, "tfrecord": tfrecord}


@pytest.fixture(params=["array_record", "tfrecord"])
def info(request, folders):
    return dataset_info("colors", data_dir=folders[request.param])


@pytest.mark.parametrize("split", ["train", "test", "train[5:17]", "train[50%:]", "train+test"])
def test_both_forms_hold_the_same_examples_in_the_same_order(folders, split):
    infos = [dataset_info("colors", data_dir=folder) for folder in folders.values()]
    assert [info.file_format for info in infos] == ["array_record", "tfrecord"]
    left, right = (Examples(info, split) for info in infos)
    assert len(left) == len(right) == split_size(infos[0], split)
    assert [left[index] for index in range(len(left))] == [right[index] for index in range(len(left))]


def test_an_example_is_its_file_s_bytes_and_its_label(info):
    examples = Examples(info, "train")
    assert len(examples) == 23
    assert examples[4] == (encoded_image(4), 4)
    assert examples[22] == (encoded_image(22), 2)
    assert examples.where(4) == "data set 'colors', split 'train', example 4 (image4.jpg)"


def test_decoding_goes_through_and_a_broken_file_is_named(info):
    examples = Examples(info, "train")
    image, label = examples.decoded(3, decode)
    np.testing.assert_array_equal(image, np.asarray(Image.open(io.BytesIO(encoded_image(3)))))
    assert label == 3
    with pytest.raises(UndecodableImage, match=r"^data set 'colors', split 'train', example 7 \(image7.jpg\): "):
        examples.decoded(7, decode)


@pytest.mark.parametrize("form", ["array_record", "tfrecord"])
def test_a_damaged_record_is_named_and_can_be_left_out(folders, form, tmp_path):
    copy = shutil.copytree(folders[form], tmp_path / form)
    path = next(path for path in sorted((copy / "colors" / "1.0.0").iterdir()) if "train" in path.name)
    content = bytearray(path.read_bytes())
    # In the midst of an image that no other record shares.
    place = content.index(encoded_image(2)[-60:-20])
    content[place : place + 40] = bytes(40)
    path.write_bytes(content)
    examples = Examples(dataset_info("colors", data_dir=copy), "train")
    with pytest.raises(UndecodableImage, match="^data set 'colors', split 'train', example 2: its record is damaged: "):
        examples[2]
    # Also where it is read with its neighbours.
    with pytest.raises(UndecodableImage, match="^data set 'colors', split 'train', example 2: its record is damaged: "):
        list(examples.all_decoded(len))
    assert examples.where(2) == "data set 'colors', split 'train', example 2"
    # Whether that stops a run is for its policy to say.
    examples.check_some()
    view = TrainView(image_size=8, crop="inception")
    batches = TrainBatches(examples, view, seed=0, batch_size=23, unreadable="skip")
    order = [batches.example_at(position) for position in range(23)]
    np.testing.assert_array_equal(batches[0].weight == 0, [index in (2, 7) for index in order])


def test_all_are_decoded_in_their_order(info, monkeypatch):
    monkeypatch.setattr("resnet_jax.data.examples._READ_AT_ONCE", 5)  # of 23
    examples = Examples(info, "train")
    assert list(examples.all_decoded(bytes)) == [examples.decoded(index, bytes) for index in range(23)]


def test_a_sample_of_labels_is_checked_at_once(info):
    examples = Examples(info, "train")
    examples.check_some(4)
    # What the set's description says, not what it holds.
    object.__setattr__(examples.info, "num_classes", 4)
    try:
        with pytest.raises(ValueError, match=r"example \d+ \(image\d+.jpg\) has label 4; allowed is 0 to 3"):
            examples.check_some(22)
    finally:
        object.__setattr__(examples.info, "num_classes", 5)


def test_a_set_of_one_size_is_loaded_from_either_form(tmp_path):
    digits = dataset_info("digits", data_dir=tmp_path)
    as_tfrecord(digits.directory, tmp_path / "copy" / "digits" / "1.0.0", {"train": (1000, 438), "test": (359,)})
    copy = load_arrays(dataset_info("digits", data_dir=tmp_path / "copy"), "test")
    original = load_arrays(digits, "test")
    np.testing.assert_array_equal(copy.images, original.images)
    np.testing.assert_array_equal(copy.labels, original.labels)
