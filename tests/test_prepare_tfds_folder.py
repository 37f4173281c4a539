"""Copying a TFDS data set: the same examples in the same order, or named otherwise and smaller."""

import io
import json

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2
from tfrecord_files import as_tfrecord

from resnet_jax.cli import main
from resnet_jax.data.builders import array_records, smaller_images, tfds_folder
from resnet_jax.data.decode import decode
from resnet_jax.data.prepare import prepare

RAW = {"deserialize_method": tfds.decode.DeserializeMethod.RAW_BYTES}
# (width, height): landscape, portrait, square, already small, and an odd proportion.
SIZES = [(40, 30), (21, 64), (33, 33), (16, 40), (12, 12), (57, 31)]


def pixels(size, seed=0):
    coarse = np.random.default_rng(seed).integers(256, size=(4, 4, 3), dtype=np.uint8)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def source(tmp_path):
    """An ArrayRecord set of twelve photos, six in each of two splits."""
    for seed, size in enumerate(SIZES * 2):
        split = "train" if seed < 6 else "val"
        folder = tmp_path / "photos" / split / "ab"[seed % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(size, seed)).save(folder / f"{seed}.jpg", quality=98)
    return prepare("image_folder", data_dir=tmp_path / "source", source=tmp_path / "photos")


@pytest.fixture
def tfrecord_source(source, tmp_path):
    shards = {"train": [2, 3, 1], "validation": [6]}
    return as_tfrecord(source, tmp_path / "tfrecord" / "photos" / "1.0.0", shards)


def examples(folder, split):
    decoders = {"image": tfds.decode.SkipDecoding()}
    return list(tfds.builder_from_directory(folder).as_data_source(split, decoders=decoders))


def description(folder):
    return json.loads((folder / "dataset_info.json").read_text())


@pytest.mark.parametrize("form", ["source", "tfrecord_source"])
def test_copy_has_the_same_examples_in_the_same_order_and_files(tmp_path, request, source, form):
    folder = prepare("tfds_folder", data_dir=tmp_path / "data", source=request.getfixturevalue(form))
    assert folder == tmp_path / "data" / "photos" / "1.0.0"
    copied, original = tfds.builder_from_directory(folder), tfds.builder_from_directory(source)
    for split in ("train", "validation", "train[1:4]+validation"):
        assert list(copied.as_data_source(split, **RAW)) == list(original.as_data_source(split, **RAW))
    assert (folder / "features.json").read_text() == (source / "features.json").read_text()
    assert (folder / "label.labels.txt").read_text() == (source / "label.labels.txt").read_text()
    expected = description(request.getfixturevalue(form)) | {"fileFormat": "array_record"}
    assert {key: value for key, value in description(folder).items() if key != "redistributionInfo"} == {
        key: value for key, value in expected.items() if key != "redistributionInfo"
    }


def test_splits_are_chosen(tmp_path, source):
    folder = prepare("tfds_folder", data_dir=tmp_path / "data", source=source, splits=["validation"])
    assert list(tfds.builder_from_directory(folder).info.splits) == ["validation"]
    assert len(examples(folder, "validation")) == 6


@pytest.mark.parametrize(
    "encoding, quality, suffix",
    [(None, None, "_short16_jpeg95"), ("jpeg", 80, "_short16_jpeg80"), ("bmp", None, "_short16_bmp")],
)
def test_smaller_images_are_another_data_set(tmp_path, tfrecord_source, encoding, quality, suffix):
    options = {"short_side": 16, "encoding": encoding, "quality": quality}
    folder = prepare("tfds_folder", data_dir=tmp_path / "data", source=tfrecord_source, **options)
    assert folder == tmp_path / "data" / f"photos{suffix}" / "1.0.0"
    builder = tfds.builder_from_directory(folder)
    assert (builder.name, builder.info.splits["train"].shard_lengths) == (f"photos{suffix}", [2, 3, 1])
    assert "shorter side of at most 16 pixels" in builder.info.description
    original = list(prepared_examples(tfrecord_source, tmp_path))
    for before, after in zip(original, examples(folder, "train"), strict=True):
        assert {**before, "image": None} == {**after, "image": None}
        image, smaller = decode(before["image"]), decode(after["image"])
        height, width = image.shape[:2]
        scale = min(1, 16 / min(height, width))
        assert smaller.shape == (round(height * scale), round(width * scale), 3)
        expected = cv2.resize(image, smaller.shape[1::-1], interpolation=cv2.INTER_AREA)
        if encoding == "bmp":
            assert after["image"][:2] == b"BM"
            np.testing.assert_array_equal(smaller, expected)
        elif scale == 1:
            assert after["image"] == before["image"]
        else:
            assert after["image"][:2] == b"\xff\xd8"
            assert np.abs(smaller.astype(int) - expected).mean() < 12


def prepared_examples(tfrecord_source, tmp_path):
    """The examples of the TFRecord set, by way of a plain copy."""
    return examples(prepare("tfds_folder", data_dir=tmp_path / "plain", source=tfrecord_source), "train")


@pytest.mark.parametrize("encoding, stored", [("jpeg", "jpeg"), ("bmp", None)])
def test_shape_that_all_images_had_is_declared_no_more(tmp_path, encoding, stored):
    for name in "ab":
        (tmp_path / "same" / name).mkdir(parents=True)
        Image.fromarray(pixels((40, 30))).save(tmp_path / "same" / name / "1.png")
    source = prepare("image_folder", data_dir=tmp_path / "source", source=tmp_path / "same")
    assert tfds.builder_from_directory(source).info.features["image"].shape == (30, 40, 3)
    folder = prepare("tfds_folder", data_dir=tmp_path / "data", source=source, short_side=15, encoding=encoding)
    features = tfds.builder_from_directory(folder).info.features
    assert features["image"].shape == (None, None, 3)
    assert features["image"].encoding_format == stored
    assert features["label"].names == ["a", "b"]
    assert {decode(example["image"]).shape for example in examples(folder, "train")} == {(15, 20, 3)}


@pytest.mark.parametrize(
    "size, expected",
    [((375, 500), (256, 341)), ((500, 333), (384, 256)), ((256, 900), (256, 900)), ((300, 300), (256, 256))],
)
def test_aspect_is_kept_and_the_longer_side_rounded(size, expected):
    assert smaller_images.smaller_size(size, 256) == expected


def test_quality_and_chroma_of_the_jpeg():
    encoded = smaller_images.SmallerImages(16, "jpeg", 50).encode(cv2.imencode(".png", pixels((40, 30)))[1].tobytes())
    with Image.open(io.BytesIO(encoded)) as image:
        # The luminance table of quality 50 is that of the standard (ITU T.81, table K.1), which begins so.
        assert image.quantization[0][:3] == [16, 11, 10]
        assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]


def damage(source, number):
    """Cuts one training image of the set short, and returns its name."""
    raw = list(tfds.builder_from_directory(source).as_data_source("train", **RAW))
    example = tf_example_pb2.Example.FromString(raw[number])
    image = example.features.feature["image"].bytes_list.value
    image[0] = image[0][:-40]
    raw[number] = example.SerializeToString()
    array_records.write_split(source, "photos", "train", raw, shard_lengths=[6])
    return example.features.feature["file_name"].bytes_list.value[0].decode()


@pytest.mark.parametrize("number", [0, 4])
def test_image_that_cannot_be_decoded_is_named_and_nothing_left(tmp_path, source, number):
    name = damage(source, number)
    with pytest.raises(ValueError, match=rf"photos/1\.0\.0, split 'train', example {number} \({name}\): .*decoded"):
        prepare("tfds_folder", data_dir=tmp_path / "data", source=source, short_side=16)
    assert not (tmp_path / "data").exists() or list((tmp_path / "data").iterdir()) == []


def test_example_that_cannot_be_parsed_is_named(tmp_path, source):
    array_records.write_split(source, "photos", "train", [b"\x0a\xffno example"] * 6, shard_lengths=[6])
    with pytest.raises(ValueError, match=r"split 'train', example 0 is damaged"):
        prepare("tfds_folder", data_dir=tmp_path / "data", source=source, short_side=16)


def test_image_that_was_not_sampled_leaves_nothing_either(tmp_path, source, monkeypatch):
    monkeypatch.setattr(tfds_folder, "copied_bytes", lambda *arguments: 0)
    test_image_that_cannot_be_decoded_is_named_and_nothing_left(tmp_path, source, 4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"encoding": "bmp"}, "encoding='bmp' has no effect without short_side"),
        ({"quality": 90}, "quality=90 has no effect without short_side"),
        ({"short_side": 16, "encoding": "bmp", "quality": 90}, "quality=90 has no effect on encoding='bmp'"),
        ({"short_side": 16, "encoding": "gif"}, "encoding='gif'; allowed are jpeg and bmp"),
        ({"short_side": 16, "quality": 101}, "quality=101; allowed are 1 to 100"),
        ({"short_side": 0}, "short_side=0; allowed are whole numbers of pixels from 1"),
        ({"splits": ["train", "test"]}, "splits=train,test: 'test' is none of train, validation"),
        ({"splits": []}, "splits is empty; allowed are train, validation"),
    ],
)
def test_wrong_options_are_named(tmp_path, source, options, message):
    with pytest.raises(ValueError, match=message):
        prepare("tfds_folder", data_dir=tmp_path / "data", source=source, **options)
    assert not (tmp_path / "data").exists()


def test_set_that_is_there_is_not_replaced(tmp_path, source):
    with pytest.raises(ValueError, match="source/photos/1.0.0 is there already"):
        prepare("tfds_folder", data_dir=tmp_path / "source", source=source)


def test_grey_images_are_not_made_smaller(tmp_path):
    digits = prepare("digits", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"'digits/1\.0\.0' has the feature image=.*; short_side takes .* 3 channels"):
        prepare("tfds_folder", data_dir=tmp_path, source=digits, short_side=4)


def test_set_in_another_form_is_refused(tmp_path, source):
    path = source / "dataset_info.json"
    path.write_text(path.read_text().replace('"array_record"', '"riegeli"'))
    with pytest.raises(ValueError, match="is stored as riegeli; allowed are tfrecord and array_record"):
        prepare("tfds_folder", data_dir=tmp_path / "data", source=source)


def test_no_more_examples_are_in_work_than_allowed():
    started = []
    with array_records.ThreadPoolExecutor(2) as executor:
        results = array_records.map_ahead(executor, lambda item: started.append(item) or item, range(100), ahead=5)
        for index, result in enumerate(results):
            assert result == index
            assert len(started) <= index + 5
    assert len(started) == 100


def test_command_line(tmp_path, source, capsys):
    flags = ["--short_side=16", "--encoding=jpeg", "--quality=90", "--splits=train"]
    assert main(["prepare", "tfds_folder", f"--source={source}", f"--data_dir={tmp_path}", *flags]) == 0
    output = capsys.readouterr()
    assert output.out == f"{tmp_path}/photos_short16_jpeg90/1.0.0\n"
    assert "train: 6 examples" in output.err


def test_real_photos_survive(tmp_path, real_data):
    source = real_data / "imagenet2012" / "5.1.0"
    folder = prepare("tfds_folder", data_dir=tmp_path, source=source, splits=["validation"], short_side=256)
    for before, after in zip(examples(source, "validation"), examples(folder, "validation"), strict=True):
        assert (before["file_name"], before["label"]) == (after["file_name"], after["label"])
        assert min(decode(after["image"]).shape[:2]) <= 256
