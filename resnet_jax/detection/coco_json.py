"""Images and boxes in COCO's form: one JSON file of annotations, one folder of images."""

import hashlib
import json
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from resnet_jax.data.prepare import PathLike
from resnet_jax.detection.annotations import Annotated, BoxSource, annotated, size_of


class CocoJson(BoxSource):
    """The images of a file such as `instances_train2014.json`, in its order.

    COCO's category numbers have gaps; label k is the k-th of them in rising order. Boxes without a width or height, of
    which COCO's training set has some, are no objects and are left out. A file without annotations, such as
    `image_info_test2015.json`, has images without objects.

    Attributes:
      class_names: the categories' names, by label.
      category_ids: the categories' numbers in the file, by label; results are written with them.
      image_ids: the images' numbers in the file, by index.

    Raises (when an image is read):
      FileNotFoundError: there is no file of it.
      UndecodableImage: it has no readable header.
      ValueError: the image has another size than the JSON file says, or objects that `annotations.annotated` refuses.
    """

    def __init__(self, path: PathLike, images: PathLike, *, keep_empty: bool = True):
        """Reads the JSON file.

        Args:
          path: of the JSON file.
          images: the folder of the images.
          keep_empty: whether images without an object stay; a test needs all, training learns little from them.

        Raises:
          FileNotFoundError: there is no such file or folder.
          ValueError: the file is not of COCO's form; the message says what is wrong.
        """
        self.path, self.folder = Path(path).expanduser(), Path(images).expanduser()
        if not self.folder.is_dir():
            raise FileNotFoundError(f"images={str(self.folder)!r} is not a folder")
        try:
            content = json.loads(self.path.read_bytes())
            self._read(content, keep_empty)
        except KeyError as error:
            raise ValueError(f"{self.path} is not of COCO's form: an entry has no {error}") from error
        except (ValueError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"{self.path} is not of COCO's form: {error}") from error
        if not self._images:
            raise ValueError(f"{self.path} has no images{'' if keep_empty else ' with objects'}")

    def _read(self, content: dict[str, Any], keep_empty: bool) -> None:
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.category_ids = tuple(category["id"] for category in categories)
        self.class_names = tuple(category["name"] for category in categories)
        self._labels = {number: label for label, number in enumerate(self.category_ids)}
        objects: dict[int, list[dict]] = {image["id"]: [] for image in content["images"]}
        if len(objects) < len(content["images"]) or len(self._labels) < len(categories):
            raise ValueError("two images or two categories have one id")
        for each in content.get("annotations", []):
            if each["image_id"] not in objects or each["category_id"] not in self._labels:
                raise ValueError(
                    f"annotation {each.get('id')} is of image {each['image_id']} and category {each['category_id']}; "
                    f"both must be in the file"
                )
            # Numbers that are not finite stay, and are refused when the image is read.
            if not (each["bbox"][2] <= 0 or each["bbox"][3] <= 0):
                objects[each["image_id"]].append(each)
        self._images = [image for image in content["images"] if keep_empty or objects[image["id"]]]
        if unsafe := [image["file_name"] for image in self._images if not _inside(image["file_name"])]:
            raise ValueError(f"file_name {unsafe[0]!r} leads out of the folder of images")
        self.image_ids = tuple(image["id"] for image in self._images)
        self._objects = [objects[number] for number in self.image_ids]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Annotated:
        name, objects, where = self._images[index]["file_name"], self._objects[index], partial(self.where, index)
        image = (self.folder / name).read_bytes()
        corners = [(x, y, x + width, y + height) for x, y, width, height in (each["bbox"] for each in objects)]
        areas = [each.get("area", each["bbox"][2] * each["bbox"][3]) for each in objects]
        return annotated(
            image,
            name,
            corners,
            [self._labels[each["category_id"]] for each in objects],
            size=size_of(image, where, self.size(index)),
            num_classes=len(self.class_names),
            where=where,
            ignored=[each.get("iscrowd", 0) for each in objects],
            areas=areas,
        )

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image in pixels, as the JSON file says."""
        return self._images[index]["height"], self._images[index]["width"]

    def count(self, index: int) -> int:
        """How many objects an image has."""
        return len(self._objects[index])

    def digest(self) -> str:
        """Of all that the file says of images and objects; see `BoxSource.digest`."""
        return hashlib.sha256(repr((self.class_names, self._images, self._objects)).encode()).hexdigest()

    def where(self, index: int) -> str:
        """Names an image in a message: JSON file, index, file."""
        return f"{self.path}, example {index} ({self._images[index]['file_name']})"


def _inside(name: str) -> bool:
    path = PurePath(name)
    return not path.is_absolute() and ".." not in path.parts
