"""A VOC folder: its pixels from 1 become edges from 0, XML is read without entities, and wrong files are named."""

import pytest
from box_sets import CLASSES, assert_same, expected, write_voc_folder
from colored_images import encoded_image

from resnet_jax.detection.voc_folder import VOC_CLASSES, VocFolder, parse_xml

ENTITIES = """<?xml version="1.0"?>
<!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation><size><width>40</width><height>50</height></size><folder>&b;</folder></annotation>"""


@pytest.fixture
def folder(tmp_path):
    return write_voc_folder(tmp_path / "kit", train=range(6), val=range(6, 9))


def edit(folder, index, old, new):
    path = folder / "Annotations" / f"{index:06}.xml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_objects_are_as_annotated(folder):
    source = VocFolder(folder, "train")
    assert len(source) == 6 and source.class_names == CLASSES
    for index, example in enumerate(source):
        assert_same(example, expected(index, whole=True, name=f"{index:06}.jpg"))
        assert source.size(index) == (50 - index, 40 + 7 * index)
        assert source.count(index) == index % 4
    assert source.where(4) == f"{folder}, split 'train', example 4 (000004)"


def test_pixels_are_counted_from_1_with_the_last_included(folder):
    # Image 0 has 50 x 40 pixels (height x width).
    first, last = (f"<bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x}</xmax><ymax>{y}</ymax></bndbox>"
                   for x, y in ((1, 1), (40, 50)))  # fmt: skip
    objects = "".join(f"<object><name>cow</name>{box}</object>" for box in (first, last))
    edit(folder, 0, "</annotation>", f"{objects}</annotation>")
    found = VocFolder(folder, "train")[0]
    assert found.boxes.tolist() == [[0, 0, 1, 1], [39, 49, 40, 50]]
    assert found.areas.tolist() == [1, 1]
    assert found.ignored.tolist() == [False, False]


def test_the_classes_are_voc_s_where_there_are_no_others(folder):
    for path in (folder / "Annotations").iterdir():
        path.write_text(path.read_text().replace(">pot<", ">pottedplant<"))
    source = VocFolder(folder, "val")
    assert source.class_names == VOC_CLASSES and len(VOC_CLASSES) == 20
    names = {VOC_CLASSES[label] for example in source for label in example.labels}
    assert names <= {"cat", "dog", "pottedplant"} and len(names) > 1


def test_a_second_column_of_a_list_and_empty_lines_are_passed_over(folder):
    (folder / "ImageSets/Main/cat_train.txt").write_text("000003  1\n\n000001 -1\n")
    assert [example.name for example in VocFolder(folder, "cat_train")] == ["000003.jpg", "000001.jpg"]


def test_other_formats_of_images_are_found(folder):
    (folder / "JPEGImages/000002.jpg").rename(folder / "JPEGImages/000002.png")
    example = VocFolder(folder, "train")[2]
    assert (example.name, example.image) == ("000002.png", encoded_image(2))


def test_entities_are_refused(folder):
    with pytest.raises(ValueError, match="declares a document type"):
        parse_xml(ENTITIES.encode())
    (folder / "Annotations/000001.xml").write_text(ENTITIES)
    with pytest.raises(ValueError, match="000001.xml is no annotation in VOC's form: it declares a document type"):
        VocFolder(folder, "train")


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("<width>47</width>", "", "<annotation> has no <size/width>"),
        ("<width>47</width>", "<width>wide</width>", "'wide'"),
        ("<name>", "<nom>", "mismatched tag"),
        ("</difficult>", "7</difficult>", "<difficult> is '.7'; allowed are 0 and 1"),
        ("</annotation>", "", "no element found"),
    ],
)
def test_a_wrong_annotation_is_named(folder, old, new, what):
    edit(folder, 1, old, new)
    with pytest.raises(ValueError, match=f"000001.xml is no annotation in VOC's form: .*{what}"):
        VocFolder(folder, "train")


def test_what_is_missing_is_named(folder):
    with pytest.raises(FileNotFoundError, match="split='test': no .*test.txt; the splits there are train, val"):
        VocFolder(folder, "test")
    (folder / "ImageSets/Main/test.txt").write_text("\n")
    with pytest.raises(ValueError, match="lists no images"):
        VocFolder(folder, "test")
    (folder / "Annotations/000004.xml").unlink()
    with pytest.raises(FileNotFoundError, match="no .*000004.xml, and 0 more of 6 annotations are missing"):
        VocFolder(folder, "train")
    (folder / "JPEGImages/000007.jpg").unlink()
    source = VocFolder(folder, "val")
    with pytest.raises(FileNotFoundError, match=r"split 'val', example 1 \(000007\): no .*000007.jpg"):
        source[1]


def test_an_image_of_another_size_is_refused(folder):
    edit(folder, 1, "<width>47</width>", "<width>48</width>")
    source = VocFolder(folder, "train")
    with pytest.raises(ValueError, match=r"example 1 \(000001\): its annotation is for \(49, 48\) pixels"):
        source[1]
