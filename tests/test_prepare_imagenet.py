"""ImageNet from its archives or folders: TFDS's names, labels and order, and every damage named before the work."""

import io
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from resnet_jax.cli import main
from resnet_jax.data.builders import imagenet
from resnet_jax.data.datasets import dataset_info
from resnet_jax.data.prepare import build, prepare

# Some of each split; of the validation images the first six.
CLASSES = ["n01751748", "n09193705", "n02105855", "n04263257", "n03125729"]
TRAIN = {f"{name}_{number}.JPEG": name for name in CLASSES for number in (7, 12, 100)}
VALIDATION = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": name for i, name in enumerate(imagenet.validation_class_names()[:6])}


def image(name):
    """A different JPEG for every name; one is a PNG all the same, and one CMYK, as in the original."""
    pixels = np.random.default_rng(list(name.encode())).integers(256, size=(5, 6, 3), dtype=np.uint8)
    file, mode = io.BytesIO(), "CMYK" if name == "n01751748_12.JPEG" else "RGB"
    form = "PNG" if name == "n02105855_7.JPEG" else "JPEG"
    Image.fromarray(pixels).convert(mode).save(file, form)
    return file.getvalue()


def tar(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def class_tars():
    return {
        f"{name}.tar": tar({file: image(file) for file, class_name in TRAIN.items() if class_name == name})
        for name in CLASSES
    }


@pytest.fixture(autouse=True)
def small_counts(monkeypatch):
    counts = {"train": (5, len(TRAIN)), "validation": (len(set(VALIDATION.values())), len(VALIDATION))}
    monkeypatch.setattr(imagenet, "_COUNTS", counts)


@pytest.fixture
def archives(tmp_path):
    folder = tmp_path / "archives"
    folder.mkdir()
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar(class_tars()))
    names = sorted(VALIDATION, reverse=True)  # the original's are in no order
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar({name: image(name) for name in names}))
    return folder


@pytest.fixture
def folders(tmp_path):
    return make_folders(tmp_path / "folders")


def make_folders(root, *, flat_validation=False):
    for split, files in (("train", TRAIN), ("val", VALIDATION)):
        for name, class_name in files.items():
            folder = root / split if split == "val" and flat_validation else root / split / class_name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(image(name))
    (root / "train" / ".DS_Store").touch()
    return root


def stored(folder, split):
    """Every example as it is stored, in order, images still encoded."""
    decoders = {"image": tfds.decode.SkipDecoding()}
    return list(tfds.builder_from_directory(folder).as_data_source(split, decoders=decoders))


class BuiltByTFDS(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """TFDS's own features, names and keys, without its rewriting of CMYK and PNG, and without TensorFlow."""

    VERSION = tfds.core.Version("5.1.0")
    code_path = None
    name = "imagenet2012"

    def _info(self):
        names_file = tfds.core.tfds_path("datasets/imagenet2012/labels.txt")
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names_file=names_file),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(TRAIN), "validation": self._generate_examples(VALIDATION)}

    def _generate_examples(self, files):
        for name, class_name in files.items():
            yield name, {"file_name": name, "image": image(name), "label": class_name}


@pytest.mark.parametrize("layout", ["archives", "folders", "flat validation", "one of each"])
def test_every_layout_gives_what_tfds_writes(tmp_path, archives, layout):
    source = archives
    if layout != "archives":
        source = make_folders(tmp_path / "folders", flat_validation=layout == "flat validation")
    if layout == "one of each":
        (source / "val").rename(source / "moved")
        (archives / "ILSVRC2012_img_val.tar").rename(source / "ILSVRC2012_img_val.tar")
    folder = prepare("imagenet2012", data_dir=tmp_path / "data", source=source)
    assert folder == tmp_path / "data" / "imagenet2012" / "5.1.0"
    expected = build(BuiltByTFDS, tmp_path / "expected")
    for split, files in (("train", TRAIN), ("validation", VALIDATION)):
        assert stored(folder, split) == stored(expected, split)
        assert len(stored(folder, split)) == len(files)
    for name in ("features.json", "label.labels.txt"):
        assert (folder / name).read_text() == (expected / name).read_text()
    info = dataset_info("imagenet2012", data_dir=tmp_path / "data")
    assert (info.num_classes, info.split_sizes) == (1000, {"train": len(TRAIN), "validation": len(VALIDATION)})


def test_labels_and_bytes_are_the_files_own(tmp_path, archives):
    folder = prepare("imagenet2012", data_dir=tmp_path, source=archives)
    builder = tfds.builder_from_directory(folder)
    for split, files in (("train", TRAIN), ("validation", VALIDATION)):
        for example in stored(folder, split):
            name = example["file_name"].decode()
            assert example["image"] == image(name)
            assert builder.info.features["label"].int2str(example["label"]) == files[name]


def test_features_are_those_of_the_set_in_use(tmp_path, archives, real_data):
    folder = prepare("imagenet2012", data_dir=tmp_path, source=archives)
    for name in ("features.json", "label.labels.txt"):
        assert (folder / name).read_text() == (real_data / "imagenet2012" / "5.1.0" / name).read_text()


def test_images_are_read_one_by_one_from_where_they_lie(archives, monkeypatch):
    path = archives / "ILSVRC2012_img_train.tar"
    content = path.read_bytes()
    for file in imagenet.scan(path, "train"):
        assert content[file.offset : file.offset + file.size] == image(file.file_name) == file.read()


def test_there_are_1000_classes_and_50000_validation_labels():
    assert len(set(imagenet.class_names())) == 1000
    assert len(imagenet.validation_class_names()) == 50_000
    assert set(imagenet.validation_class_names()) == set(imagenet.class_names())


def test_missing_split_is_an_error_unless_it_is_not_wanted(tmp_path, archives):
    (archives / "ILSVRC2012_img_val.tar").unlink()
    message = r"train: found ILSVRC2012_img_train\.tar; validation: no ILSVRC2012_img_val\.tar and no val/"
    with pytest.raises(ValueError, match=message):
        prepare("imagenet2012", data_dir=tmp_path / "data", source=archives)
    assert not (tmp_path / "data").exists()
    folder = prepare("imagenet2012", data_dir=tmp_path / "data", source=archives, splits=["train"])
    assert list(tfds.builder_from_directory(folder).info.splits) == ["train"]


def test_split_in_both_forms_is_an_error(archives):
    (archives / "train").mkdir()
    with pytest.raises(ValueError, match=r"train: both ILSVRC2012_img_train\.tar and train/; validation: found"):
        imagenet.locate(archives, imagenet.SPLITS)


def test_set_that_is_there_stays(tmp_path, archives):
    folder = prepare("imagenet2012", data_dir=tmp_path, source=archives)
    assert prepare("imagenet2012", data_dir=tmp_path) == folder
    with pytest.raises(ValueError, match=r"imagenet2012/5\.1\.0 is there already"):
        prepare("imagenet2012", data_dir=tmp_path, source=archives)


def rename(path, name):
    path.rename(path.with_name(name))


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda f: (f / "train/n01751748/n01751748_7.JPEG").unlink(),
            "train has 14 images, ImageNet's train split has 15",
        ),
        (
            lambda f: [path.unlink() for path in (f / "train/n01751748").iterdir()],
            "train has images of 4 classes, ImageNet has 5; missing are n01440764, ",
        ),
        (
            lambda f: rename(f / "train/n01751748/n01751748_7.JPEG", "n02105855_8.JPEG"),
            "train/n01751748/n02105855_8.JPEG is an image of n02105855, and lies with n01751748",
        ),
        (
            lambda f: rename(f / "train/n01751748/n01751748_7.JPEG", "n99999999_7.JPEG"),
            "n99999999_7.JPEG: n99999999 is none of ImageNet's 1,000 classes",
        ),
        (
            lambda f: rename(f / "train/n01751748/n01751748_7.JPEG", "n01751748_7.jpg"),
            "train/n01751748/n01751748_7.jpg is not named like an image of ImageNet's train split",
        ),
        (
            lambda f: rename(f / "val/n01751748/ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG"),
            "val/n01751748/ILSVRC2012_val_00000002.JPEG is an image of n09193705, and lies with n01751748",
        ),
        (
            lambda f: rename(f / "val/n01751748/ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00050001.JPEG"),
            "ILSVRC2012_val_00050001.JPEG: the validation images are numbered 1 to 50000",
        ),
        (
            lambda f: (f / "train/n01751748/more").mkdir(),
            "train/n01751748/more is a folder where images are expected",
        ),
    ],
)
def test_what_is_wrong_in_the_folders_is_named(tmp_path, folders, make, message):
    make(folders)
    with pytest.raises(ValueError) as error:
        prepare("imagenet2012", data_dir=tmp_path / "data", source=folders)
    assert message in str(error.value)
    assert not (tmp_path / "data").exists()


def test_image_twice_is_named(tmp_path, folders, monkeypatch):
    monkeypatch.setattr(imagenet, "_COUNTS", {"validation": (6, 7)})
    again = folders / "val" / "ILSVRC2012_val_00000001.JPEG"
    again.write_bytes(image(again.name))
    with pytest.raises(ValueError, match="split 'validation' has two examples called 'ILSVRC2012_val_00000001.JPEG'"):
        prepare("imagenet2012", data_dir=tmp_path / "data", source=folders, splits=["validation"])
    assert list((tmp_path / "data").iterdir()) == []


def test_archive_of_something_else_is_refused(archives):
    path = archives / "ILSVRC2012_img_train.tar"
    path.write_bytes(tar({"n01751748/n01751748_7.JPEG": image("n01751748_7.JPEG")}))
    with pytest.raises(ValueError, match="n01751748_7.JPEG is no class's archive such as n01440764.tar"):
        imagenet.scan(path, "train")


@pytest.mark.parametrize("content", [b"", b"no archive" * 100])
def test_what_is_no_archive_is_named(archives, content):
    path = archives / "ILSVRC2012_img_val.tar"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"ILSVRC2012_img_val\.tar is damaged or cut short"):
        imagenet.scan(path, "validation")


def test_archive_cut_short_is_named_wherever_the_cut_is(archives):
    path = archives / "ILSVRC2012_img_train.tar"
    content = path.read_bytes()
    used = len(content.rstrip(b"\0"))
    # tarfile itself takes some of these cuts, those at a header, for the archive's end.
    for end in range(0, used, 512):
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"ILSVRC2012_img_train\.tar.* is damaged or cut short"):
            imagenet.scan(path, "train")


@pytest.mark.parametrize("inner", [False, True])
def test_damaged_header_within_an_archive_is_named_and_not_its_end(archives, inner):
    path = archives / "ILSVRC2012_img_train.tar"
    content = bytearray(path.read_bytes())
    name = b"n02105855_7.JPEG" if inner else b"n02105855.tar"
    content[content.index(name) + 3] ^= 1
    path.write_bytes(content)
    where = r"train\.tar: n02105855\.tar" if inner else r"train\.tar"
    last = r"member n02105855_\d+\.JPEG|its start" if inner else r"member n09193705\.tar"
    with pytest.raises(ValueError, match=rf"{where} is damaged or cut short.* after ({last})"):
        imagenet.scan(path, "train")


def test_damaged_image_is_named_and_leaves_nothing(tmp_path, archives):
    path = archives / "ILSVRC2012_img_train.tar"
    content = path.read_bytes()
    start = content.index(image("n09193705_12.JPEG"))
    path.write_bytes(content[:start] + bytes(10) + content[start + 10 :])
    with pytest.raises(ValueError, match=r"img_train\.tar: n09193705_12\.JPEG, \d+ bytes from byte \d+, is damaged"):
        prepare("imagenet2012", data_dir=tmp_path / "data", source=archives)
    assert list((tmp_path / "data").iterdir()) == []


def test_command_line_says_first_what_there_is(tmp_path, archives, capsys):
    flags = [f"--source={archives}", f"--data_dir={tmp_path / 'data'}", "--splits=validation,train"]
    assert main(["prepare", "imagenet2012", *flags]) == 0
    output = capsys.readouterr()
    assert output.out == f"{tmp_path}/data/imagenet2012/5.1.0\n"
    lines = output.err.splitlines()
    assert lines[0].startswith("train: 15 images, ") and lines[0].endswith("ILSVRC2012_img_train.tar")
    assert lines[1].startswith("validation: 6 images, ")
    assert "to write" in lines[2] and "free" in lines[2]
