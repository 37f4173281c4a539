"""Reading data sets: sizes, splits, pixels and labels are right, and what is wrong is said plainly."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from resnet_jax.data import datasets
from resnet_jax.data.arrays import load_arrays
from resnet_jax.data.builders.image_folder import FolderLayout, write
from resnet_jax.data.datasets import dataset_info, split_size

CHECKOUT = Path(__file__).resolve().parents[1]

# What each of several processes does at once, all with one seed.
BUILD_DIGITS = """
import random, sys
random.seed(0)
from resnet_jax.data.arrays import load_arrays
from resnet_jax.data.datasets import dataset_info
images, labels = load_arrays(dataset_info("digits", data_dir=sys.argv[1]), "train+test")
print(len(labels), images.astype(int).sum(), "tensorflow" in sys.modules, "jax" in sys.modules)
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    dataset_info("digits", data_dir=folder)
    return folder


@pytest.fixture(scope="module")
def digits(data_dir):
    return dataset_info("digits", data_dir=data_dir)


@pytest.fixture
def edited_digits(digits, tmp_path):
    """Makes a copy of digits with one text of its description replaced."""

    def edit(file_name, old, new):
        copy = shutil.copytree(digits.directory, tmp_path / "digits" / "1.0.0")
        text = (copy / file_name).read_text()
        assert old in text
        (copy / file_name).write_text(text.replace(old, new))
        return tmp_path

    return edit


def rows(images, labels):
    return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


def test_digits_is_described_as_it_is(digits, data_dir):
    assert (digits.name, digits.version) == ("digits", "1.0.0")
    assert digits.image_shape == (8, 8, 1)
    assert digits.num_classes == 10
    assert digits.class_names == tuple("0123456789")
    assert digits.split_sizes == {"train": 1438, "test": 359}
    assert digits.directory == data_dir / "digits" / "1.0.0"


@pytest.mark.parametrize("split", ["train", "test"])
def test_digits_holds_scikit_learns_scans_and_every_fifth_is_test(digits, split):
    values, labels = load_digits(return_X_y=True)
    in_test = np.arange(1797) % 5 == 4
    chosen = in_test if split == "test" else ~in_test
    expected = np.floor(values.reshape(-1, 8, 8, 1) * 255 / 16 + 0.5).astype(np.uint8)
    arrays = load_arrays(digits, split)
    assert arrays.images.dtype == np.uint8 and arrays.labels.dtype == np.int32
    assert rows(*arrays) == rows(expected[chosen], labels[chosen])


def test_digits_is_built_once_and_reading_writes_nothing(digits, data_dir, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")}
    monkeypatch.setattr(datasets, "prepare", lambda *_, **__: pytest.fail("built again"))
    load_arrays(dataset_info("digits", data_dir=data_dir), "test")
    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")} == before


def test_processes_that_start_at_once_do_not_disturb_each_other(tmp_path, digits):
    command = [sys.executable, "-W", "error", "-c", BUILD_DIGITS, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=120) for process in processes]
    total = load_arrays(digits, "train+test").images.astype(int).sum()
    assert [out for out, _ in answers] == [f"1797 {total} False False\n"] * 2, answers
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_default_folder_is_tfds_own(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert dataset_info("digits").directory == data_dir / "digits" / "1.0.0"


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"data_dir='.*/file/data' cannot be written"):
        dataset_info("digits", data_dir=tmp_path / "file" / "data")


@pytest.mark.parametrize(
    "split, size",
    [("train", 1438), ("test", 359), ("train[:1000]", 1000), ("train[1000:]", 438), ("train[-8:]", 8)]
    + [("test[:50%]", 180), ("train+test", 1797)],
)
def test_split_size(digits, split, size):
    assert split_size(digits, split) == size


@pytest.mark.parametrize("split", ["trian", "", "train[", "train[a:b]", "train[:9999]", "train[1438:]", "train[30:20]"])
def test_wrong_split_is_named_with_the_splits_there_are(digits, split):
    with pytest.raises(ValueError) as error:
        split_size(digits, split)
    assert f"split={split!r}" in str(error.value)
    assert "train (1438), test (359)" in str(error.value)


def test_slices_partition_the_split(digits):
    whole = load_arrays(digits, "train")
    parts = [load_arrays(digits, split) for split in ("train[:1100]", "train[1100:]")]
    np.testing.assert_array_equal(np.concatenate([part.images for part in parts]), whole.images)
    np.testing.assert_array_equal(np.concatenate([part.labels for part in parts]), whole.labels)


def test_label_outside_the_classes_is_named_with_its_index(edited_digits, digits):
    labels = load_arrays(digits, "test").labels
    index = int(np.flatnonzero(labels >= 7)[0])
    info = dataset_info("digits", data_dir=edited_digits("features.json", '"numClasses": "10"', '"numClasses": "7"'))
    with pytest.raises(ValueError, match=rf"example {index} has label {labels[index]}; allowed is 0 to 6"):
        load_arrays(info, "test")


def test_image_of_another_shape_than_declared_is_refused(edited_digits):
    info = dataset_info("digits", data_dir=edited_digits("features.json", '"8"', '"9"'))
    with pytest.raises(ValueError, match=r"has shape \(8, 8, 1\), the data set declares \(9, 9, 1\)"):
        load_arrays(info, "test")


def test_set_that_is_too_big_is_refused_with_its_size(digits):
    with pytest.raises(ValueError, match=r"takes 8\.57e-05 GiB as 1438 images .* max_bytes .* has to be streamed"):
        load_arrays(digits, "train", max_bytes=1438 * 64 - 1)
    assert len(load_arrays(digits, "train", max_bytes=1438 * 64).labels) == 1438


def test_set_without_labels_is_refused_with_the_features_it_has(edited_digits):
    with pytest.raises(ValueError, match="needs the features 'image' .* and 'label' .* has image, kind"):
        dataset_info("digits", data_dir=edited_digits("features.json", '"label": {', '"kind": {'))


def test_set_in_another_file_format_is_refused(edited_digits):
    with pytest.raises(ValueError, match="stored as riegeli; allowed are array_record and tfrecord"):
        dataset_info("digits", data_dir=edited_digits("dataset_info.json", "array_record", "riegeli"))


def test_image_that_cannot_be_decoded_is_named(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nno more")
    layout = FolderLayout("broken", ("a",), {"train": [("a", broken)]}, (8, 8, 3))
    folder = tmp_path / "data" / "broken" / "1.0.0"
    folder.mkdir(parents=True)
    write(folder, layout)
    with pytest.raises(ValueError, match=r"'broken', split 'train', example 0 \(a/broken.png\): "):
        load_arrays(dataset_info("broken", data_dir=tmp_path / "data"), "train")


def test_newest_version_is_read(digits, tmp_path):
    for version in ("1.9.0", "1.10.0"):
        shutil.copytree(digits.directory, tmp_path / "digits" / version)
    (tmp_path / "digits" / "2.0.0").mkdir()
    (tmp_path / "digits" / "incomplete.ABC_3.0.0").mkdir()
    assert dataset_info("digits", data_dir=tmp_path).version == "1.10.0"


def test_configuration_of_a_set_is_read(digits, tmp_path):
    copy = shutil.copytree(digits.directory, tmp_path / "digits" / "plain" / "1.0.0")
    description = json.loads((copy / "dataset_info.json").read_text())
    (copy / "dataset_info.json").write_text(json.dumps({**description, "configName": "plain"}))
    info = dataset_info("digits/plain", data_dir=tmp_path)
    assert info.name == "digits/plain"
    assert len(load_arrays(info, "test").labels) == 359


@pytest.mark.parametrize(
    "name, words",
    [
        ("cifar10", "resnet-jax prepare cifar10 --data_dir="),
        ("cifar01", "did you mean 'cifar10'?"),
        ("flowers", "resnet-jax prepare image_folder --data_dir="),
        ("digist", "data sets there: digits;"),
    ],
)
def test_missing_set_is_answered_with_where_and_how(data_dir, name, words):
    with pytest.raises(FileNotFoundError) as error:
        dataset_info(name, data_dir=data_dir)
    assert str(data_dir / name) in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize("name", ["", "../digits", "digits/../digits", "/digits", "digits/1/2", "dig its"])
def test_malformed_name_is_refused(data_dir, name):
    with pytest.raises(ValueError, match="is not the name of a data set"):
        dataset_info(name, data_dir=data_dir)


def test_cifar10_is_read_as_it_is(real_data):
    info = dataset_info("cifar10", data_dir=real_data)
    assert (info.image_shape, info.num_classes) == ((32, 32, 3), 10)
    assert info.class_names[3] == "cat"
    assert [split_size(info, split) for split in ("train[:45000]", "train[45000:]")] == [45_000, 5_000]
    arrays = load_arrays(info, "test")
    assert arrays.images.shape == (10_000, 32, 32, 3)
    # The set has 1,000 test images of each class (Krizhevsky, 2009).
    np.testing.assert_array_equal(np.bincount(arrays.labels), [1000] * 10)


def test_real_images_of_different_sizes_have_to_be_streamed(real_data):
    info = dataset_info("imagenet2012", data_dir=real_data)
    assert info.image_shape == (None, None, 3)
    with pytest.raises(ValueError, match="images of different sizes have to be streamed"):
        load_arrays(info, "validation")
