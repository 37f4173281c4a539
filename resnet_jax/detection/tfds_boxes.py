"""TFDS sets of images with boxes: `voc/2007`, `coco/2014` and their like, `caltech_birds2011`, `cars196` and theirs.

TFDS stores (y1, x1, y2, x2) as parts of the image's height and width, in float32. What these were before differs:

- VOC's annotations are whole pixels from 1, the last one included: the left edge of pixel x is at x - 1, and the right
  edge of pixel x at x. TFDS has divided these numbers by the image's sides as they are. Multiplied again they are whole
  but for the rounding of float32 (4e-5 pixels in 1000), which is undone, and 1 is taken from x1 and y1. A few
  annotations of VOC 2012 are fractions and stay fractions. Sets with VOC's feature `is_difficult` are taken to be such.
- COCO's are edges in hundredths of a pixel, from 0, and are taken as they are; so are those of sets whose images have
  one class, and one box of it or a sequence of boxes.
"""

import hashlib
from functools import partial

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float64

from resnet_jax.data.datasets import builder_of, data_manifest, dataset_info, feature_names
from resnet_jax.data.decode import UndecodableImage
from resnet_jax.data.examples import FILE_NAMES, Examples, numbers
from resnet_jax.data.prepare import PathLike
from resnet_jax.detection.annotations import Annotated, BoxSource, annotated, size_of
from resnet_jax.detection.size_cache import kept_sizes

# Far more than float32 loses, far less than what a fraction in an annotation differs from a whole number by.
_WHOLE = 0.01
_IGNORED = ("is_difficult", "is_crowd")
_USED = ("bbox", "label", *_IGNORED, "area")


class TfdsBoxes(BoxSource):
    """A split of a TFDS set with the features `image` and `objects`, a sequence of {`bbox`, `label`} and, if the set
    has them, `is_difficult` (the boxes are then VOC's), `is_crowd` and `area`; or with `image`, `label` and
    `bbox`, which is a box of that class or a sequence of them.

    Raises (when an image is read):
      UndecodableImage: its record is damaged, or its image has no readable header.
      ValueError: its objects are not as `annotations.annotated` wants them.
    """

    def __init__(self, name: str, split: str, *, data_dir: PathLike | None = None):
        """Opens a split in TFDS's syntax, such as "train+validation".

        Raises:
          FileNotFoundError: no such set, see `dataset_info`, or a file of it is missing.
          ValueError: a set of another form, or a wrong split.
        """
        names = feature_names(name, data_dir=data_dir)
        # What a member of an object is called in a record.
        self._prefix = "" if "objects" not in names and {"bbox", "label"} <= set(names) else "objects/"
        info = dataset_info(name, data_dir=data_dir, label=f"{self._prefix}label")
        features = builder_of(info.directory).info.features
        members = dict((features["objects"].feature if self._prefix else features).items())
        box = members.get("bbox")
        if isinstance(box, tfds.features.Sequence) and not self._prefix:
            box = box.feature
        # None: older releases of TFDS knew no other form and wrote none down.
        form = getattr(getattr(box, "bbox_format", None), "value", None)
        if not isinstance(box, tfds.features.BBoxFeature) or form not in (None, "REL_YXYX"):
            raise ValueError(
                f"data set {name!r} in {info.directory}: '{self._prefix}bbox' is {box}; allowed is REL_YXYX"
            )
        self.class_names = info.class_names
        used = _USED if self._prefix else _USED[:2]
        self._members = tuple(member for member in used if member in members)
        self._examples = Examples(info, split)
        self._info, self._split = info, split
        self._sizes: list[tuple[int, int]] | None = None

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Annotated:
        fields, where = self._examples.fields(index), partial(self.where, index)
        image = self._image(index)
        size = size_of(image, where)
        names = [name.decode(errors="replace") for key in FILE_NAMES for name in fields[key].bytes_list.value]
        of_objects = {member: np.array(numbers(fields[self._prefix + member])) for member in self._members}
        if not self._prefix and of_objects["label"].size == 1:
            of_objects["label"] = np.repeat(of_objects["label"], of_objects["bbox"].size // 4)
        if of_objects["bbox"].size != 4 * of_objects["label"].size:
            raise ValueError(f"{where()}: {of_objects['label'].size} labels and {of_objects['bbox'].size} / 4 boxes")
        relative = of_objects["bbox"].astype(np.float64).reshape(-1, 4)
        boxes = edges(relative, size, whole_pixels="is_difficult" in of_objects)
        # As `CocoJson` does.
        kept = ~(boxes[:, 2:] <= boxes[:, :2]).any(1) if "is_crowd" in of_objects else slice(None)
        return annotated(
            image,
            names[0] if names else str(index),
            boxes[kept],
            of_objects["label"][kept],
            size=size,
            num_classes=len(self.class_names),
            where=where,
            ignored=next((of_objects[member][kept] for member in _IGNORED if member in of_objects), None),
            areas=of_objects["area"][kept] if "area" in of_objects else None,
        )

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image in pixels; its record is read."""
        return size_of(self._image(index), partial(self.where, index))

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of all images in pixels, see `kept_sizes`: 13 GB of COCO 2014 are read the first time."""
        if self._sizes is None:
            self._sizes = kept_sizes(self.digest(), len(self), super().sizes)
        return self._sizes

    def digest(self) -> str:
        """Of the set's files, see `data_manifest`, and the split; see `BoxSource.digest`."""
        return hashlib.sha256(f"{data_manifest(self._info)} {self._split}".encode()).hexdigest()

    def where(self, index: int) -> str:
        """Names an image in a message: set, split, index, file."""
        return self._examples.where(index)

    def _image(self, index: int) -> bytes:
        images = self._examples.fields(index)["image"].bytes_list.value
        if len(images) != 1:
            raise UndecodableImage(f"{self.where(index)}: its record is damaged: {len(images)} images in it, not one")
        return images[0]


def edges(
    relative: Float64[np.ndarray, "n 4"], size: tuple[int, int], *, whole_pixels: bool
) -> Float64[np.ndarray, "n 4"]:
    """Boxes as in `Annotated` from TFDS's.

    Args:
      relative: (y1, x1, y2, x2) as parts of the image's sides.
      size: (height, width) of the image in pixels.
      whole_pixels: whether these were VOC's numbers of the first and last pixel, counted from 1.
    """
    boxes = relative[:, [1, 0, 3, 2]] * np.array([size[1], size[0]] * 2)
    if not whole_pixels:
        return boxes
    whole = boxes.round()
    return np.where(np.abs(boxes - whole) < _WHOLE, whole, boxes) - np.array([1, 1, 0, 0])
