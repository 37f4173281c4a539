"""Making data sets: what is stored equals the source, and nothing else is accepted for it."""

import dataclasses
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import tarfile
import urllib.request

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from resnet_jax import download
from resnet_jax.data.arrays import load_arrays
from resnet_jax.data.builders import cifar, image_folder
from resnet_jax.data.datasets import dataset_info
from resnet_jax.data.prepare import build, prepare
from resnet_jax.download import RemoteFile

CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()
TRAIN_RECORDS, TEST_RECORDS = 4, 3


def records(count, *num_classes):
    """Random records in the published binary form: label bytes, then the red, green and blue plane."""
    generator = np.random.default_rng(count)
    labels = np.stack([generator.integers(n, size=count) for n in num_classes], axis=1)
    pixels = generator.integers(256, size=(count, 3072))
    return np.concatenate([labels, pixels], axis=1).astype(np.uint8)


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def cifar10_members():
    train = records(5 * TRAIN_RECORDS, 10)
    members = {
        f"cifar-10-batches-bin/data_batch_{i + 1}.bin": part.tobytes() for i, part in enumerate(np.split(train, 5))
    }
    members["cifar-10-batches-bin/test_batch.bin"] = records(TEST_RECORDS, 10).tobytes()
    members["cifar-10-batches-bin/batches.meta.txt"] = ("\n".join(CIFAR10_NAMES) + "\n\n").encode()
    return members


def published(path):
    """The description under which a file at hand passes for the published one."""
    content = path.read_bytes()
    return RemoteFile(f"https://example.org/{path.name}", hashlib.sha256(content).hexdigest(), size=len(content))


def stored(folder, split):
    """Every example as it is stored, in order, images still encoded."""
    decoders = {"image": tfds.decode.SkipDecoding()}
    return list(tfds.builder_from_directory(folder).as_data_source(split, decoders=decoders))


@pytest.fixture
def cifar10_tar(tmp_path):
    return write_tar(tmp_path / "cifar-10-binary.tar.gz", cifar10_members())


@pytest.fixture
def small_cifar10(cifar10_tar, monkeypatch):
    monkeypatch.setattr(cifar, "CIFAR10_ARCHIVE", published(cifar10_tar))
    return cifar10_tar


@pytest.fixture
def website(tmp_path, monkeypatch):
    """Lets files in `tmp_path` be downloaded from example.org; tests/test_download.py has the network."""

    def open_file(url, seconds):
        return urllib.request.urlopen((tmp_path / url.removeprefix("https://example.org/")).as_uri())

    monkeypatch.setattr(download, "_open", open_file)


@pytest.mark.parametrize("split, count", [("train", 5 * TRAIN_RECORDS), ("test", TEST_RECORDS)])
def test_cifar10_is_stored_pixel_for_pixel(tmp_path, small_cifar10, split, count):
    folder = prepare("cifar10", data_dir=tmp_path / "data", source=small_cifar10)
    assert folder == tmp_path / "data" / "cifar10" / "3.0.2"
    info = dataset_info("cifar10", data_dir=tmp_path / "data")
    assert info.image_shape == (32, 32, 3)
    assert info.class_names == tuple(CIFAR10_NAMES)
    arrays, source = load_arrays(info, split), records(count, 10)
    positions = [int(example["id"].decode().removeprefix(f"{split}_")) for example in stored(folder, split)]
    assert sorted(positions) == list(range(count))
    np.testing.assert_array_equal(arrays.labels, source[positions, 0])
    for channel in range(3):
        plane = source[positions, 1 + 1024 * channel : 1 + 1024 * (channel + 1)]
        np.testing.assert_array_equal(arrays.images[..., channel].reshape(count, 1024), plane)


def test_cifar100_has_the_fine_label_and_the_coarse_one(tmp_path):
    coarse, fine = [[f"{kind}_{i}" for i in range(n)] for kind, n in (("coarse", 20), ("fine", 100))]
    tar = write_tar(
        tmp_path / "cifar-100-binary.tar.gz",
        {
            "cifar-100-binary/coarse_label_names.txt": "\n".join(coarse).encode(),
            "cifar-100-binary/fine_label_names.txt": "\n".join(fine).encode(),
            "cifar-100-binary/train.bin": records(7, 20, 100).tobytes(),
            "cifar-100-binary/test.bin": records(5, 20, 100).tobytes(),
        },
    )
    folder = build(cifar.Cifar100, tmp_path / "data", archive=tar)
    info = dataset_info("cifar100", data_dir=tmp_path / "data")
    assert (info.version, info.num_classes, info.class_names) == ("3.0.2", 100, tuple(fine))
    found = {e["id"]: (e["coarse_label"], e["label"]) for e in stored(folder, "train")}
    assert found == {f"train_{i:05d}".encode(): tuple(r[:2]) for i, r in enumerate(records(7, 20, 100).tolist())}


def test_prepared_set_stays_and_needs_no_archive(tmp_path, small_cifar10):
    folder = prepare("cifar10", data_dir=tmp_path, source=small_cifar10)
    with pytest.raises(ValueError, match="is there already"):
        prepare("cifar10", data_dir=tmp_path, source=small_cifar10)
    small_cifar10.unlink()
    assert prepare("cifar10", data_dir=tmp_path) == folder


def test_download_is_checked_and_kept(tmp_path, small_cifar10, website):
    folder = prepare("cifar10", data_dir=tmp_path / "data")
    assert len(stored(folder, "train")) == 5 * TRAIN_RECORDS
    kept = tmp_path / "data" / "downloads"
    assert [path.name for path in kept.iterdir()] == ["cifar-10-binary.tar.gz"]
    assert (kept / "cifar-10-binary.tar.gz").read_bytes() == small_cifar10.read_bytes()


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"size": 100}, {"size": 10**6}])
def test_wrong_download_leaves_nothing(tmp_path, cifar10_tar, website, change):
    archive = dataclasses.replace(published(cifar10_tar), **change)
    with pytest.raises(ValueError, match=f"expected {archive.size} bytes with sha256 {archive.sha256}, found"):
        cifar.download_archive(archive, tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_download_stops_when_more_comes_than_should(tmp_path, website):
    (tmp_path / "endless.tar.gz").write_bytes(bytes(1000))
    with pytest.raises(ValueError, match="expected 100 bytes .* found 1000 bytes announced"):
        cifar.download_archive(
            RemoteFile("https://example.org/endless.tar.gz", "0" * 64, size=100), tmp_path / "downloads"
        )


def test_damaged_file_among_the_downloads_is_not_used(tmp_path, cifar10_tar):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / cifar10_tar.name).write_bytes(cifar10_tar.read_bytes()[:-1])
    with pytest.raises(ValueError, match="downloads/cifar-10-binary.tar.gz is not .* expected .* found"):
        cifar.download_archive(published(cifar10_tar), tmp_path / "downloads")


def test_unreachable_server_is_answered_with_the_way_around(tmp_path, website):
    archive = RemoteFile("https://example.org/nowhere.tar.gz", "0" * 64, size=1)
    with pytest.raises(ConnectionError, match="cannot download https://example.org/nowhere.*--source=FILE"):
        cifar.download_archive(archive, tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_source_is_checked_against_the_published_archive(tmp_path, cifar10_tar):
    found = published(cifar10_tar)
    with pytest.raises(ValueError) as error:
        prepare("cifar10", data_dir=tmp_path / "data", source=cifar10_tar)
    message = str(error.value)
    assert "170052171 bytes" in message and cifar.CIFAR10_ARCHIVE.sha256 in message
    assert f"{found.size} bytes" in message and found.sha256 in message
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_published_archives_are_those_that_tfds_knows(dataset):
    archive = {"cifar10": cifar.CIFAR10_ARCHIVE, "cifar100": cifar.CIFAR100_ARCHIVE}[dataset]
    known = tfds.core.tfds_path("url_checksums") / f"{dataset}.txt"
    assert f"{archive.url}\t{archive.size}\t{archive.sha256}\t" in known.read_text()


class MakesFolder:
    """Its pickle makes a folder when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_python_version_is_refused_and_not_unpickled(tmp_path):
    content = pickle.dumps(MakesFolder(tmp_path / "harm"))
    tar = write_tar(tmp_path / "any_name.tar.gz", {"cifar-10-batches-py/data_batch_1": content})
    with pytest.raises(ValueError, match=r"made of pickles.*give the binary version, cifar-10-binary\.tar\.gz"):
        prepare("cifar10", data_dir=tmp_path / "data", source=tar)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "member, content, message",
    [
        (
            "test_batch.bin",
            bytes(3073 + 3072),
            "test_batch.bin holds 6145 bytes, no whole number of 3073-byte",
        ),
        ("test_batch.bin", b"", "test_batch.bin holds 0 bytes"),
        ("test_batch.bin", bytes(3073) + b"\x0a" + bytes(3072), "record 1 has label 10, allowed is 0 to 9"),
        ("batches.meta.txt", b"cat\ndog\n", "batches.meta.txt holds 2 class names, expected 10"),
        ("data_batch_3.bin", None, "lacks data_batch_3.bin"),
    ],
)
def test_malformed_archive_is_refused_and_leaves_nothing(tmp_path, member, content, message):
    members = cifar10_members()
    del members[f"cifar-10-batches-bin/{member}"]
    if content is not None:
        members[f"cifar-10-batches-bin/{member}"] = content
    tar = write_tar(tmp_path / "cifar.tar.gz", members)
    with pytest.raises(ValueError, match=re.escape(message)):
        build(cifar.Cifar10, tmp_path / "data", archive=tar)
    assert list((tmp_path / "data").iterdir()) == []


def save_image(path, *, size=(6, 5), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], *([len(mode)] if len(mode) > 1 else []))
    pixels = np.random.default_rng(len(str(path))).integers(256, size=shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return pixels


@pytest.fixture
def photos(tmp_path):
    """Two splits of two classes in a folder whose name is no data set's name."""
    folder = tmp_path / "My Photos-2"
    for split, name in [("train", "a.jpg"), ("train", "b.png"), ("val", "c.JPEG")]:
        for class_name in ("Zebra", "ant"):
            save_image(folder / split / class_name / name)
    (folder / ".hidden").touch()
    return folder


def test_image_folder_is_stored_byte_for_byte(tmp_path, photos):
    folder = prepare("image_folder", data_dir=tmp_path / "data", source=photos)
    assert folder == tmp_path / "data" / "my_photos_2" / "1.0.0"
    info = dataset_info("my_photos_2", data_dir=tmp_path / "data")
    assert info.class_names == ("Zebra", "ant")
    assert info.split_sizes == {"train": 4, "validation": 2}
    assert info.image_shape == (5, 6, 3)
    for split, split_folder in (("train", "train"), ("validation", "val")):
        files = {f"{path.parent.name}/{path.name}": path for path in (photos / split_folder).glob("*/*")}
        examples = stored(folder, split)
        assert sorted(example["file_name"].decode() for example in examples) == sorted(files)
        for example in examples:
            path = files[example["file_name"].decode()]
            assert example["image"] == path.read_bytes()
            assert info.class_names[example["label"]] == path.parent.name
    assert load_arrays(info, "train").images.shape == (4, 5, 6, 3)


def test_class_folders_alone_are_the_training_split(tmp_path):
    pixels = save_image(tmp_path / "greys" / "a" / "1.png", mode="L")
    save_image(tmp_path / "greys" / "b" / "2.png", mode="L")
    prepare("image_folder", data_dir=tmp_path / "data", source=tmp_path / "greys")
    info = dataset_info("greys", data_dir=tmp_path / "data")
    assert info.split_sizes == {"train": 2}
    assert info.image_shape == (5, 6, 1)
    arrays = load_arrays(info, "train")
    np.testing.assert_array_equal(arrays.images[list(arrays.labels).index(0), ..., 0], pixels)


def test_grey_image_among_colour_images_is_read_as_colour(tmp_path):
    pixels = save_image(tmp_path / "mixed" / "a" / "grey.png", mode="L")
    save_image(tmp_path / "mixed" / "b" / "colour.png")
    save_image(tmp_path / "mixed" / "c" / "transparent.png", mode="RGBA")
    prepare("image_folder", data_dir=tmp_path / "data", source=tmp_path / "mixed")
    arrays = load_arrays(dataset_info("mixed", data_dir=tmp_path / "data"), "train")
    grey = arrays.images[list(arrays.labels).index(0)]
    np.testing.assert_array_equal(grey, np.repeat(pixels[..., None], 3, axis=-1))


def test_images_of_different_sizes_have_no_fixed_shape_and_are_not_loaded(tmp_path):
    save_image(tmp_path / "sizes" / "a" / "1.jpg", size=(6, 5))
    save_image(tmp_path / "sizes" / "a" / "2.jpg", size=(5, 6))
    prepare("image_folder", data_dir=tmp_path / "data", source=tmp_path / "sizes")
    info = dataset_info("sizes", data_dir=tmp_path / "data")
    assert info.image_shape == (None, None, 3)
    with pytest.raises(ValueError, match=r"example 1 .*has shape .* have to be streamed"):
        load_arrays(info, "train")


@pytest.mark.parametrize(
    "folder, name",
    [("flowers", "flowers"), ("My Photos-2", "my_photos_2"), ("101_Objects", "images_101_objects")]
    + [("--Käse--", "k_se"), ("犬", "images")],
)
def test_data_set_is_named_after_the_folder(tmp_path, folder, name):
    assert image_folder.data_set_name(tmp_path / folder) == name


def truncate(path):
    save_image(path, size=(64, 64))
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda f: truncate(f / "train/ant/cut.jpg"), "cut.jpg cannot be read as a JPEG or PNG image"),
        (lambda f: truncate(f / "train/ant/cut.png"), "cut.png cannot be read as a JPEG or PNG image"),
        (lambda f: (f / "train/ant/no.jpg").write_bytes(b"no image"), "no.jpg cannot be read"),
        (lambda f: save_image(f / "train/ant/x.jpg", format="WEBP"), "x.jpg cannot be read"),
        (lambda f: save_image(f / "train/ant/x.bmp"), "x.bmp is not an image"),
        (lambda f: (f / "train/ant/deep.jpg").mkdir(), "deep.jpg is not an image"),
        (lambda f: Image.new("I;16", (4, 4)).save(f / "train/ant/16.png"), "16.png has Pillow mode 'I;16'"),
        (lambda f: (f / "train/notes.txt").touch(), "notes.txt is a file where a class folder is expected"),
        (lambda f: (f / "train/empty").mkdir(), "empty holds no images"),
        (lambda f: (f / "extra").mkdir(), "extra is not a split"),
        (lambda f: (f / "validation").mkdir(), "has both 'val' and 'validation'"),
        (lambda f: (f / "test").mkdir(), "test holds no class folders"),
        (
            lambda f: save_image(f / "val/bee/1.jpg"),
            "class 'bee' of split 'validation' is not a class of 'train'",
        ),
        (lambda f: (f / "train").rename(f / "training"), "none called 'train'; it holds training, val"),
    ],
)
def test_what_is_wrong_in_a_folder_of_images_is_named(tmp_path, photos, make, message):
    make(photos)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        prepare("image_folder", data_dir=tmp_path / "data", source=photos)
    assert str(photos) in str(error.value)
    assert not (tmp_path / "data").exists()


def test_failed_build_leaves_nothing(tmp_path, photos, monkeypatch):
    layout = image_folder.scan(photos)
    monkeypatch.setattr(image_folder, "scan", lambda folder: layout)
    path = photos / "train" / "ant" / "a.jpg"
    monkeypatch.setattr(type(path), "read_bytes", lambda self: (_ for _ in ()).throw(OSError(f"{self} is gone")))
    with pytest.raises(OSError, match="is gone"):
        prepare("image_folder", data_dir=tmp_path / "data", source=photos)
    assert list((tmp_path / "data").iterdir()) == []


class BuiltByTFDS(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What TFDS's own writer makes of the same files."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None
    name = "my_photos_2"

    def __init__(self, *, photos, **arguments):
        self.photos = photos
        super().__init__(**arguments)

    def _info(self):
        features = {
            "file_name": tfds.features.Text(),
            "image": tfds.features.Image(shape=(5, 6, 3)),
            "label": tfds.features.ClassLabel(names=["Zebra", "ant"]),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples("train"), "validation": self._generate_examples("val")}

    def _generate_examples(self, split):
        for path in (self.photos / split).glob("*/*"):
            key = f"{path.parent.name}/{path.name}"
            yield key, {"file_name": key, "image": path.read_bytes(), "label": path.parent.name}


def test_image_folder_equals_what_tfds_writes(tmp_path, photos):
    for number in range(20):
        save_image(photos / "train" / "ant" / f"{number}.png", size=(6, 5))
    folder = prepare("image_folder", data_dir=tmp_path / "data", source=photos)
    expected = build(BuiltByTFDS, tmp_path / "expected", photos=photos)
    for split in ("train", "validation"):
        assert stored(folder, split) == stored(expected, split)
    assert (folder / "features.json").read_text() == (expected / "features.json").read_text()
    info, expected_info = (json.loads((path / "dataset_info.json").read_text()) for path in (folder, expected))
    for key in ("name", "version", "fileFormat", "splits", "supervisedKeys"):
        assert info[key] == expected_info[key]


def test_image_folder_replaces_no_data_set(tmp_path, photos):
    prepare("image_folder", data_dir=tmp_path / "data", source=photos)
    with pytest.raises(ValueError, match="my_photos_2 is there already"):
        prepare("image_folder", data_dir=tmp_path / "data", source=photos)
    photos.rename(tmp_path / "CIFAR10")
    with pytest.raises(ValueError, match="would be named 'cifar10'"):
        prepare("image_folder", data_dir=tmp_path / "data", source=tmp_path / "CIFAR10")


@pytest.mark.parametrize(
    "dataset, source, error, message",
    [
        (
            "cifar01",
            None,
            ValueError,
            r"'cifar01' cannot be prepared \(did you mean 'cifar10'\?\); allowed: digits,",
        ),
        ("digits", "x", ValueError, "source='x': digits .* takes no source"),
        ("image_folder", None, ValueError, "image_folder needs a source"),
        ("imagenet2012", None, ValueError, "imagenet2012 needs a source"),
        ("tfds_folder", None, ValueError, "tfds_folder needs a source"),
        ("imagenet2012", "/no/where", FileNotFoundError, "source='/no/where' is not a folder"),
        ("tfds_folder", "/no/where", FileNotFoundError, "source='/no/where' holds no dataset_info.json"),
        ("image_folder", "/no/where", FileNotFoundError, "source='/no/where' is not a folder"),
        (
            "cifar10",
            "/no/where",
            FileNotFoundError,
            r"'/no/where' is not a file; expected cifar-10-binary\.tar\.gz",
        ),
    ],
)
def test_wrong_arguments_are_named(tmp_path, dataset, source, error, message):
    with pytest.raises(error, match=message):
        prepare(dataset, data_dir=tmp_path, source=source)


@pytest.mark.parametrize(
    "dataset, options, message",
    [
        ("digits", {"splits": ["train"]}, r"splits=\['train'\]: digits takes no splits; .* imagenet2012, tfds_folder"),
        (
            "imagenet2012",
            {"short_side": 256},
            "short_side=256: imagenet2012 takes no short_side; it is for tfds_folder",
        ),
        ("cifar10", {"quality": 90}, "quality=90: cifar10 takes no quality"),
        ("image_folder", {"encoding": "bmp"}, "encoding='bmp': image_folder takes no encoding"),
    ],
)
def test_option_of_another_data_set_is_named(tmp_path, dataset, options, message):
    with pytest.raises(ValueError, match=message):
        prepare(dataset, data_dir=tmp_path, source=tmp_path, **options)


def test_data_set_without_room_is_refused_before_it_is_made(tmp_path, monkeypatch):
    source = prepare("digits", data_dir=tmp_path / "source")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"has 1e-06 GB free, the data set takes about \S+ GB; name another"):
        prepare("tfds_folder", data_dir=tmp_path / "data", source=source)
    assert list((tmp_path / "data").iterdir()) == []


def test_prepare_digits_is_idempotent(tmp_path):
    folder = prepare("digits", data_dir=tmp_path)
    assert folder == tmp_path / "digits" / "1.0.0"
    assert prepare("digits", data_dir=tmp_path) == folder
