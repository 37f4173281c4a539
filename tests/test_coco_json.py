"""COCO's form: categories by their order, boxes as corners, and what does not fit is said."""

import json

import numpy as np
import pytest
from box_sets import CATEGORY_IDS, CLASSES, assert_same, coco_content, expected, write_coco_folder
from colored_images import encoded_image

from resnet_jax.detection.coco_json import CocoJson
from resnet_jax.detection.data import JoinedBoxes, open_boxes


@pytest.fixture
def folder(tmp_path):
    return write_coco_folder(tmp_path / "coco", train2014=range(8), val2014=range(8, 11))


@pytest.fixture
def opened(folder):
    """Opens the training set with a changed file of annotations."""

    def change(edit, **arguments):
        content = coco_content(range(8))
        edit(content)
        path = folder / "annotations" / "changed.json"
        path.write_text(json.dumps(content))
        return CocoJson(path, folder / "train2014", **arguments)

    return change


def test_objects_are_as_annotated(folder):
    source = open_boxes(str(folder), "train2014")
    assert isinstance(source, CocoJson) and len(source) == 8
    assert (source.class_names, source.category_ids) == (CLASSES, CATEGORY_IDS)
    assert source.image_ids == tuple(range(0, 80, 10))
    for index, example in enumerate(source):
        assert_same(example, expected(index, whole=False, name=f"{index}.jpg"), atol=1e-5)
        assert source.size(index) == (50 - index, 40 + 7 * index)
        assert source.count(index) == index % 4


def test_images_without_objects_can_be_dropped(folder):
    path = folder / "annotations" / "instances_train2014.json"
    source = CocoJson(path, folder / "train2014", keep_empty=False)
    assert [example.name for example in source] == ["1.jpg", "2.jpg", "3.jpg", "5.jpg", "6.jpg", "7.jpg"]
    assert source.image_ids == (10, 20, 30, 50, 60, 70)
    assert source.where(3) == f"{path}, example 3 (5.jpg)"


def test_splits_and_single_files(folder):
    both = open_boxes(str(folder), "train2014+val2014")
    assert isinstance(both, JoinedBoxes) and len(both) == 11
    path = folder / "train2014" / "all_of_them.json"
    path.write_text(json.dumps(coco_content(range(8))))
    assert len(open_boxes(str(path), "all")) == 8
    with pytest.raises(ValueError, match="split='train' of .*; allowed is 'all'"):
        open_boxes(str(path), "train")
    with pytest.raises(FileNotFoundError, match="no .*instances_test2014.json; there are instances_train2014.json"):
        open_boxes(str(folder), "test2014")


def test_images_without_public_objects_can_be_read(folder):
    content = coco_content(range(8, 11))
    del content["annotations"]
    (folder / "annotations" / "instances_val2014.json").unlink()
    (folder / "annotations" / "image_info_val2014.json").write_text(json.dumps(content))
    source = open_boxes(str(folder), "val2014")
    assert [len(example.boxes) for example in source] == [0, 0, 0]


def test_boxes_without_area_are_left_out_and_areas_are_those_of_outlines(opened):
    def edit(content):
        first, second, third = content["annotations"][:3]
        first["bbox"][3], second["area"] = 0.0, 7.5
        del third["area"]

    source = opened(edit)
    assert source.count(1) == 0 and len(source[1].boxes) == 0
    areas, whole = source[2].areas, expected(2, whole=False, name="").areas
    np.testing.assert_allclose(areas, [7.5, whole[1]], rtol=1e-5)


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (lambda content: content.pop("categories"), "an entry has no 'categories'"),
        (lambda content: content["annotations"][0].pop("bbox"), "an entry has no 'bbox'"),
        (lambda content: content["annotations"][0].update(image_id=5), "annotation 1 is of image 5 and category"),
        (lambda content: content["annotations"][0].update(category_id=4), "and category 4; both must be in the file"),
        (lambda content: content["images"][1].update(id=0), "two images or two categories have one id"),
        (lambda content: content["annotations"][0].update(bbox=[1, 2]), "index out of range"),
        (lambda content: content["images"][1].update(file_name="../1.jpg"), "leads out of the folder"),
        (lambda content: content["images"][1].update(file_name="/etc/1.jpg"), "leads out of the folder"),
    ],
)
def test_a_file_of_another_form_is_refused(opened, edit, what):
    with pytest.raises(ValueError, match=f"changed.json is not of COCO's form: .*{what}"):
        opened(edit)


def test_other_files_are_refused(folder, tmp_path):
    path = tmp_path / "other.json"
    for text in ("[]", "{", "3"):
        path.write_text(text)
        with pytest.raises(ValueError, match="other.json is not of COCO's form"):
            CocoJson(path, folder / "train2014")
    path.write_text('{"images": [], "categories": []}')
    with pytest.raises(ValueError, match="other.json has no images"):
        CocoJson(path, folder / "train2014")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        CocoJson(path, folder / "nothing")


def test_wrong_objects_and_images_are_named_when_read(opened):
    source = opened(lambda content: content["annotations"][0].update(bbox=[1, 1, 500, 3]))
    with pytest.raises(ValueError, match=r"changed.json, example 1 \(1.jpg\): object 0: its box .* is not inside"):
        source[1]
    source = opened(lambda content: content["annotations"][0].update(bbox=[1, 1, float("nan"), 3]))
    with pytest.raises(ValueError, match=r"example 1 \(1.jpg\): object 0: its box .* is not finite"):
        source[1]
    source = opened(lambda content: content["images"][2].update(height=30))
    with pytest.raises(ValueError, match=r"example 2 \(2.jpg\): its annotation is for \(30, 54\) pixels"):
        source[2]
    source = opened(lambda content: content["images"][2].update(file_name="22.jpg"))
    with pytest.raises(FileNotFoundError, match="22.jpg"):
        source[2]
    assert source[3].image == encoded_image(3)


def test_labels_are_in_the_order_of_numbers_not_of_names(opened):
    def edit(content):
        content["categories"] = [{"id": 18, "name": "ant"}, {"id": 3, "name": "yak"}, {"id": 7, "name": "bee"}]

    source = opened(edit)
    assert (source.class_names, source.category_ids) == (("yak", "bee", "ant"), (3, 7, 18))
    assert_same(source[7], expected(7, whole=False, name="7.jpg"), atol=1e-5)
