"""Images with boxes from TFDS sets and by name: boxes are edges in pixels, and what is wrong is said plainly."""

import pickle
import re
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from box_sets import (
    CLASSES,
    assert_same,
    build_box_images,
    build_labelled_boxes,
    expected,
    voc_xml,
    write_coco_folder,
    write_voc_folder,
)
from colored_images import build_colored_images, encoded_image
from ml_collections import ConfigDict
from tfrecord_files import as_tfrecord

from resnet_jax.data.decode import UndecodableImage, image_size
from resnet_jax.detection.annotations import annotated, size_of, truths
from resnet_jax.detection.coco_json import CocoJson
from resnet_jax.detection.data import JoinedBoxes, open_boxes, open_splits, open_union
from resnet_jax.detection.tfds_boxes import TfdsBoxes, edges
from resnet_jax.detection.voc_folder import VocFolder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Sets "voc_things" and "coco_things", the latter with a box that has no height in image 1."""
    folder = tmp_path_factory.mktemp("boxes")
    build_box_images(folder, "voc", name="voc_things", train=9, test=4)
    flat = {"bbox": tfds.features.BBox(0.5, 0.1, 0.5, 0.4), "label": "cat", "is_crowd": False, "area": 0}
    build_box_images(folder, "coco", name="coco_things", extra={1: [flat]}, train=9)
    return folder


@pytest.mark.parametrize(("form", "atol"), [("voc", 0.0), ("coco", 1e-4)])
def test_tfds_boxes_are_edges_in_pixels(data_dir, form, atol):
    source = open_boxes(f"{form}_things", "train", data_dir=data_dir)
    assert len(source) == 9 and source.class_names == CLASSES
    for index, example in enumerate(source):
        assert_same(
            example, expected(index, whole=form == "voc", name=f"{index}.jpg")._replace(areas=example.areas), atol=atol
        )
        assert source.size(index) == image_size(encoded_image(index))
        assert source.count(index) == index % 4
    areas = source[7].areas
    assert areas.dtype == np.float32 and len(areas) == 3
    exact = expected(7, whole=form == "voc", name="").areas
    # TFDS's COCO cuts them to whole numbers.
    np.testing.assert_array_equal(areas, exact if form == "voc" else np.floor(exact))


@pytest.mark.parametrize("sequence", [False, True])
def test_images_of_one_class_have_its_label_at_each_box(tmp_path, sequence):
    build_labelled_boxes(tmp_path, name="birds", sequence=sequence, train=9)
    source = open_boxes("birds", "train", data_dir=tmp_path)
    indices = [index for index in range(9) if index % 4]
    assert len(source) == len(indices) and source.class_names == CLASSES
    for place, index in enumerate(indices):
        wanted = expected(index, whole=False, name=f"{index}.jpg")
        number = len(wanted.labels) if sequence else 1
        found = source[place]
        np.testing.assert_allclose(found.boxes, wanted.boxes[:number], atol=1e-4)
        assert found.labels.tolist() == [index % 3] * number and not found.ignored.any()
        assert (found.image, found.name) == (wanted.image, wanted.name)
        assert source.size(place) == image_size(encoded_image(index)) and source.count(place) == number
    assert (
        "birds" in source.where(0)
        and pickle.loads(pickle.dumps(source))[2].labels.tolist() == source[2].labels.tolist()
    )


def test_voc_s_numbers_are_whole_again_and_fractions_stay():
    sides = np.arange(1, 1001)
    for width in (333, 500, 1000):
        x = sides[sides <= width]
        relative = (np.stack([x / 7, x / width, x / 7, x / width], 1)).astype(np.float32).astype(np.float64)
        boxes = edges(relative, (7, width), whole_pixels=True)
        np.testing.assert_array_equal(boxes[:, 0], x - 1)
        np.testing.assert_array_equal(boxes[:, 2], x)
    fraction = np.array([[1 / 10, 45.7 / 500, 5 / 10, 99.5 / 500]])
    np.testing.assert_allclose(edges(fraction, (10, 500), whole_pixels=True), [[44.7, 0, 99.5, 5]])
    np.testing.assert_allclose(edges(fraction, (10, 500), whole_pixels=False), [[45.7, 1, 99.5, 5]])


def test_both_file_forms_hold_the_same(data_dir, tmp_path):
    as_tfrecord(data_dir / "voc_things" / "1.0.0", tmp_path / "voc_things" / "1.0.0", {"train": (5, 4), "test": (4,)})
    left, right = (TfdsBoxes("voc_things", "train+test", data_dir=folder) for folder in (data_dir, tmp_path))
    assert len(left) == len(right) == 13
    for one, other in zip(left, right, strict=True):
        assert_same(one, other)


def test_all_sources_agree_and_can_be_pickled(data_dir, tmp_path):
    folder = write_voc_folder(tmp_path / "kit", train=range(9), val=range(9, 12))
    coco = write_coco_folder(tmp_path / "coco", train2014=range(9))
    sources = [
        open_boxes("voc_things", "train", data_dir=data_dir),
        open_boxes(str(folder), "train"),
        open_boxes("coco_things", "train", data_dir=data_dir),
        open_boxes(str(coco), "train2014"),
    ]
    assert isinstance(sources[1], VocFolder) and isinstance(sources[3], CocoJson)
    for source in sources:
        copy = pickle.loads(pickle.dumps(source))
        assert (len(copy), copy.class_names) == (9, CLASSES)
        for one, other in zip(source, copy, strict=True):
            assert_same(one, other)
    for index in range(9):
        whole, kit, exact, json = (source[index] for source in sources)
        assert_same(whole, kit._replace(name=whole.name))
        assert_same(exact, json._replace(areas=exact.areas), atol=1e-4)


def test_sets_are_joined_in_order(data_dir, tmp_path):
    folder = write_voc_folder(tmp_path / "kit", train=range(4), val=range(4, 7))
    source = open_union(f"voc_things:train[:5]+test, {folder}:train+val", data_dir=data_dir)
    assert len(source) == 5 + 4 + 7
    indices = [*range(5), *range(4), *range(7)]
    for place, index in enumerate(indices):
        example = source[place]
        assert_same(example, expected(index, whole=True, name=example.name))
        assert source.size(place) == image_size(encoded_image(index))
        assert source.count(place) == index % 4
    assert source.where(9) == f"{folder}, split 'train', example 0 (000000)"
    assert source.where(13) == f"{folder}, split 'val', example 0 (000004)"
    with pytest.raises(IndexError):
        source[16]
    assert [truth.image for truth in truths(source)] == [b""] * 16


def test_joined_sets_have_the_same_classes(data_dir, tmp_path):
    coco = open_boxes(str(write_coco_folder(tmp_path, train=range(2))), "train")
    coco.class_names = coco.class_names[::-1]
    with pytest.raises(
        ValueError, match=r"classes \(pot, dog, cat\) are not \(cat, dog, pot\), those of data set 'voc_"
    ):
        JoinedBoxes([TfdsBoxes("voc_things", "test", data_dir=data_dir), coco])
    with pytest.raises(ValueError, match="no sources"):
        JoinedBoxes([])


@pytest.mark.parametrize("sets", ["", "voc_things", "voc_things:", ":train", "voc_things:train,", "a:b,,c:d"])
def test_a_union_is_of_names_and_splits(sets, data_dir):
    with pytest.raises(ValueError, match="allowed is NAME:SPLIT"):
        open_union(sets, data_dir=data_dir)


def test_what_cannot_be_opened_is_said(data_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match="no data set 'voc/2007' in"):
        open_boxes("voc/2007", "train", data_dir=data_dir)
    with pytest.raises(ValueError, match="split='trainval' of data set 'voc_things'"):
        open_boxes("voc_things", "trainval", data_dir=data_dir)
    with pytest.raises(FileNotFoundError, match="there is no such file or folder"):
        open_boxes(str(tmp_path / "nothing"), "train")
    with pytest.raises(ValueError, match="has neither ImageSets/Main"):
        open_boxes(str(tmp_path), "train")
    build_colored_images(tmp_path, train=3)
    with pytest.raises(ValueError, match="is no set of images with boxes: it needs .* 'objects/label' .ClassLabel"):
        open_boxes("colors", "train", data_dir=tmp_path)
    copy = shutil.copytree(data_dir / "coco_things", tmp_path / "coco_things")
    features = copy / "1.0.0" / "features.json"
    features.write_text(features.read_text().replace("REL_YXYX", "REL_XYXY"))
    with pytest.raises(ValueError, match="'objects/bbox' is .*; allowed is REL_YXYX"):
        open_boxes("coco_things", "train", data_dir=tmp_path)


def make(boxes, labels=(0,), **arguments):
    given = {"size": (20, 30), "num_classes": 3, "where": lambda: "set, example 5", **arguments}
    return annotated(b"", "name", boxes, list(labels), **given)


@pytest.mark.parametrize(
    ("boxes", "what"),
    [
        ([[0, 0, 31.5, 5]], r"object 0: its box .* is not inside the image of 20 x 30 pixels"),
        ([[-1.5, 0, 3, 5]], "is not inside the image"),
        ([[0, 0, 3, 21.5]], "is not inside the image"),
        ([[1, 1, np.nan, 5]], "is not finite"),
        ([[1, 1, np.inf, 5]], "is not finite"),
        ([[4, 1, 4, 5]], "has no area"),
        ([[1, 6, 4, 5]], "has no area"),
        ([[30, 1, 31, 5]], "has no area"),
    ],
)
def test_a_wrong_box_is_named(boxes, what):
    with pytest.raises(ValueError, match=f"^set, example 5: .*{what}"):
        make(boxes)


def test_other_wrong_objects_are_named():
    good = [[1, 1, 4, 5], [0, 0, 30, 20]]
    with pytest.raises(ValueError, match="^set, example 5: object 1: its box"):
        make([good[0], [3, 3, 2, 2]], (0, 0))
    with pytest.raises(ValueError, match="^set, example 5 has label 3; allowed is 0 to 2"):
        make(good, (0, 3))
    with pytest.raises(ValueError, match="^set, example 5 has label 1.5"):
        make(good, (0, 1.5))
    with pytest.raises(ValueError, match=r"different numbers: {'boxes': 2, 'labels': 1, 'ignored': 2}"):
        make(good, (0,))
    with pytest.raises(ValueError, match=r"different numbers: .*'areas': 1"):
        make(good, (0, 1), areas=[3.0])


def test_a_box_up_to_a_pixel_outside_is_clipped():
    found = make([[-1, -0.5, 31, 20.75]])
    np.testing.assert_array_equal(found.boxes, [[0, 0, 30, 20]])
    np.testing.assert_array_equal(found.areas, [600])


def test_an_image_has_the_size_that_its_annotation_says():
    image = encoded_image(3)
    size = image_size(image)
    assert size_of(image, lambda: "here", size) == size_of(image, lambda: "here") == size
    with pytest.raises(ValueError, match=r"^here: its annotation is for \(61, 47\) pixels .* its image has \(47, 61\)"):
        size_of(image, lambda: "here", size[::-1])
    with pytest.raises(UndecodableImage, match="^here: "):
        size_of(b"no image", lambda: "here")


@pytest.mark.parametrize(
    ("split", "count", "objects"), [("train", 205, 2804), ("validation", 87, 1137), ("test", 72, 945)]
)
def test_real_images_have_voc_s_boxes(real_data, split, count, objects):
    source = open_boxes("bccd", split, data_dir=real_data)
    found = truths(source)
    assert len(found) == len(source) == count
    assert source.class_names == ("RBC", "WBC", "Platelets")
    boxes = np.concatenate([truth.boxes for truth in found])
    assert len(boxes) == objects
    # Numbers of pixels from 1 to the image's sides have become edges from 0 to the sides.
    np.testing.assert_array_equal(boxes, boxes.round())
    np.testing.assert_array_equal(boxes.min(0)[:2], [0, 0])
    np.testing.assert_array_equal(boxes.max(0)[2:], [640, 480])


def test_a_set_without_any_object_neither_trains_nor_tests(tmp_path):
    folder = write_voc_folder(tmp_path / "voc", train=range(3), test=range(3, 5))
    sets = {"train_sets": f"{folder}:train", "test_sets": f"{folder}:test", "validation_sets": None, "data_dir": None}
    config = ConfigDict({"data": sets})
    assert set(open_splits(config)) == {"train", "test"}
    for index in (3, 4):
        (folder / "Annotations" / f"{index:06}.xml").write_text(
            re.sub("<object>.*</object>", "", voc_xml(index), flags=re.DOTALL)
        )
    with pytest.raises(ValueError, match="data.test_sets=.*:test: none of its 2 images has an object"):
        open_splits(config)
