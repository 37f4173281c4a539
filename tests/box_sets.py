"""A few images with boxes, as TFDS sets in VOC's and in COCO's form, as a VOC folder and as a COCO folder."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from colored_images import encoded_image

from resnet_jax.data.decode import image_size
from resnet_jax.data.prepare import build
from resnet_jax.detection.annotations import Annotated

CLASSES = ("cat", "dog", "pot")
# COCO's numbers have gaps, and come in any order.
CATEGORY_IDS = (3, 7, 18)


class Thing(NamedTuple):
    """(x1, y1, x2, y2) in pixels, class number, and whether it is ignored."""

    box: tuple[float, float, float, float]
    label: int
    ignored: bool


def things(index: int, *, whole: bool) -> list[Thing]:
    """The objects of image `index`, of whole pixels or not: 0 to 3 of them, one at the image's edges."""
    rng = np.random.default_rng(100 + index)
    height, width = image_size(encoded_image(index))
    found = []
    for number in range(index % 4):
        x1, y1 = rng.uniform(0, [width - 12, height - 12])
        x2, y2 = rng.uniform([x1 + 2, y1 + 2], [width, height])
        box = (0, 0, width, height) if number == 2 else (x1, y1, x2, y2)
        box = tuple(float(round(value)) for value in box) if whole else tuple(round(value, 2) for value in box)
        found.append(Thing(box, int(rng.integers(3)), bool(rng.integers(2))))
    return found


def expected(index: int, *, whole: bool, name: str) -> Annotated:
    """Image `index` as a source gives it."""
    found = things(index, whole=whole)
    boxes = np.array([thing.box for thing in found], np.float32).reshape(-1, 4)
    return Annotated(
        image=encoded_image(index),
        name=name,
        boxes=boxes,
        labels=np.array([thing.label for thing in found], np.int32),
        ignored=np.array([thing.ignored for thing in found], bool),
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
    )


def assert_same(left: Annotated, right: Annotated, *, atol: float = 0.0) -> None:
    """Two images are the same, boxes up to `atol` pixels."""
    assert (left.image, left.name) == (right.image, right.name)
    for name in ("boxes", "labels", "ignored"):
        values, others = getattr(left, name), getattr(right, name)
        assert (values.dtype, values.shape) == (others.dtype, others.shape), name
        np.testing.assert_allclose(values, others, rtol=0, atol=atol if name == "boxes" else 0, err_msg=name)
    np.testing.assert_allclose(left.areas, right.areas, rtol=1e-4)


class BoxImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The images in order; `form` is "voc" (whole pixels counted from 1) or "coco"."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def __init__(self, *, name: str, sizes: dict[str, int], form: str, extra: dict | None = None, **arguments):
        self.name, self._sizes, self._form, self._extra = name, sizes, form, extra or {}
        super().__init__(**arguments)

    def _info(self):
        own = {"is_difficult": np.bool_} if self._form == "voc" else {"is_crowd": np.bool_, "area": np.int64}
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image/filename": tfds.features.Text(),
            "objects": tfds.features.Sequence(
                {"bbox": tfds.features.BBoxFeature(), "label": tfds.features.ClassLabel(names=CLASSES), **own}
            ),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(count) for split, count in self._sizes.items()}

    def _generate_examples(self, count):
        for index in range(count):
            objects = [self._stored(index, thing) for thing in things(index, whole=self._form == "voc")]
            objects += self._extra.get(index, [])
            yield index, {"image": encoded_image(index), "image/filename": f"{index}.jpg", "objects": objects}

    def _stored(self, index, thing):
        height, width = image_size(encoded_image(index))
        x1, y1, x2, y2 = thing.box
        if self._form == "voc":
            own, x1, y1 = {"is_difficult": thing.ignored}, x1 + 1, y1 + 1
        else:
            own = {"is_crowd": thing.ignored, "area": int((x2 - x1) * (y2 - y1))}
        box = tfds.features.BBox(y1 / height, x1 / width, y2 / height, x2 / width)
        return {"bbox": box, "label": CLASSES[thing.label], **own}


class LabelledBoxImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images of one class each: the first box of `things`, or all in a sequence; those without any are left out."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def __init__(self, *, name: str, sizes: dict[str, int], sequence: bool, **arguments):
        self.name, self._sizes, self._sequence = name, sizes, sequence
        super().__init__(**arguments)

    def _info(self):
        box = tfds.features.BBoxFeature()
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image/filename": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=CLASSES),
            "bbox": tfds.features.Sequence(box) if self._sequence else box,
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(count) for split, count in self._sizes.items()}

    def _generate_examples(self, count):
        for index in range(count):
            if found := things(index, whole=False):
                height, width = image_size(encoded_image(index))
                boxes = [
                    tfds.features.BBox(y1 / height, x1 / width, y2 / height, x2 / width)
                    for x1, y1, x2, y2 in (thing.box for thing in found)
                ]
                common = {"image": encoded_image(index), "image/filename": f"{index}.jpg"}
                yield index, common | {"label": CLASSES[index % 3], "bbox": boxes if self._sequence else boxes[0]}


def build_labelled_boxes(folder: Path, *, name: str, sequence: bool, **sizes: int) -> Path:
    """Makes a TFDS set in the form of `caltech_birds2011` under a folder."""
    return build(LabelledBoxImages, folder, name=name, sizes=sizes, sequence=sequence)


def build_box_images(folder: Path, form: str, *, name: str = "things", extra=None, **sizes: int) -> Path:
    """Makes the TFDS set under a folder."""
    return build(BoxImages, folder, name=name, sizes=sizes, form=form, extra=extra)


def write_voc_folder(folder: Path, **splits: range) -> Path:
    """Makes the folder of a development kit; image k is called 00000k."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for split, indices in splits.items():
        (folder / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{index:06}\n" for index in indices))
        for index in indices:
            (folder / "JPEGImages" / f"{index:06}.jpg").write_bytes(encoded_image(index))
            (folder / "Annotations" / f"{index:06}.xml").write_text(voc_xml(index))
    return folder


def voc_xml(index: int) -> str:
    """An annotation in VOC's form, a part of an object among the rest."""
    height, width = image_size(encoded_image(index))
    objects = ""
    for thing in things(index, whole=True):
        x1, y1, x2, y2 = (int(value) for value in thing.box)
        part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
        objects += (
            f"<object><name>{CLASSES[thing.label]}</name><difficult>{int(thing.ignored)}</difficult>{part}<bndbox>"
            f"<xmax>{x2}</xmax><xmin>{x1 + 1}</xmin><ymax>{y2}</ymax><ymin>{y1 + 1}</ymin></bndbox></object>\n"
        )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{index:06}.jpg</filename>{size}\n{objects}</annotation>\n"


def coco_content(indices: range) -> dict:
    """What a file of annotations holds; image k is number 10 k and called k.jpg."""
    images, annotations = [], []
    for index in indices:
        height, width = image_size(encoded_image(index))
        images.append({"id": 10 * index, "file_name": f"{index}.jpg", "height": height, "width": width})
        for thing in things(index, whole=False):
            x1, y1, x2, y2 = thing.box
            annotations.append(
                {
                    **{"id": len(annotations) + 1, "image_id": 10 * index, "category_id": CATEGORY_IDS[thing.label]},
                    **{
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": int(thing.ignored),
                    },
                }
            )
    categories = [{"id": number, "name": name} for number, name in zip(CATEGORY_IDS, CLASSES, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories[::-1]}


def write_coco_folder(folder: Path, **splits: range) -> Path:
    """Makes `annotations/instances_SPLIT.json` and `SPLIT/` for each split."""
    (folder / "annotations").mkdir(parents=True)
    for split, indices in splits.items():
        (folder / split).mkdir()
        for index in indices:
            (folder / split / f"{index}.jpg").write_bytes(encoded_image(index))
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco_content(indices)))
    return folder
