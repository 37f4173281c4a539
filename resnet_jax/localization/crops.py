"""Random crops of images with boxes, as of images without in training for classification (appendix C)."""

from dataclasses import dataclass

import numpy as np

from resnet_jax.data.augment import scale_crop_box
from resnet_jax.data.decode import decode_box, image_size
from resnet_jax.data.resize import check_resize
from resnet_jax.detection.annotations import Annotated, BoxSource
from resnet_jax.detection.batches import BoxExample, padded, too_many
from resnet_jax.localization.image_label import image_label


@dataclass(frozen=True)
class CropFraming:
    """How crops are made; a place of `detection.batches.Framing` in `BoxBatches`.

    The crop is that of section 3.4, `augment.scale_crop_box`. Boxes are cut at its edges. An object of which less than
    `least_share` is left is no target, and anchors near what is left of it are no background either.

    Attributes:
      image_size: height and width of the crops, in pixels.
      short_sides: least and greatest shorter side of the scaled image, in pixels; at least `image_size`.
      least_share: of an object's area, above 0 and up to 1.
      max_boxes: objects that an image can have.
      fill: colour of what fills a batch up, 0 to 255: what becomes 0 when the image is normalised.
      resize: see `resize_image`.

    Raises:
      ValueError: a value outside what is allowed.
    """

    image_size: int = 224
    short_sides: tuple[int, int] = (256, 480)
    least_share: float = 0.5
    max_boxes: int = 100
    fill: tuple[int, int, int] = (0, 0, 0)
    resize: str = "area"

    def __post_init__(self):
        checks = {
            "image_size": (self.image_size >= 1, "from 1"),
            "short_sides": (
                self.image_size <= self.short_sides[0] <= self.short_sides[1],
                f"two in ascending order, from image_size={self.image_size}",
            ),
            "least_share": (0 < self.least_share <= 1, "above 0, up to 1"),
            "max_boxes": (self.max_boxes >= 1, "from 1"),
            "fill": (all(0 <= value <= 255 for value in self.fill), "three numbers from 0 to 255"),
        }
        for name, (is_allowed, allowed) in checks.items():
            if not is_allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}; allowed: {allowed}")
        check_resize(self.resize)

    def buckets(self, source: BoxSource) -> list[tuple[int, int]]:
        """(height, width) of each image's crop."""
        return [(self.image_size, self.image_size)] * len(source)

    def example(self, example: Annotated, index: int, rng: np.random.Generator, *, flip: bool) -> BoxExample:
        """A random crop, and with `flip` half of the time its mirror image; see `cropped`."""
        size = image_size(example.image)
        box = scale_crop_box(rng, *size, image_size=self.image_size, short_sides=self.short_sides)
        return cropped(example, index, self, box, mirror=flip and bool(rng.random() < 0.5))


def cropped(
    example: Annotated, index: int, framing: CropFraming, box: tuple[int, int, int, int], *, mirror: bool = False
) -> BoxExample:
    """Decodes and scales a box of an image, and moves, scales and cuts the objects' boxes.

    Args:
      example: from a source; its objects are all of one class.
      index: its place there.
      framing: how.
      box: (top, left, height, width) in pixels of the image.
      mirror: whether left and right are exchanged.

    Raises:
      UndecodableImage: see `decode_box`; the message does not name the image.
      ValueError: more than `framing.max_boxes` objects, none, or of several classes.
    """
    where = f"example {index} ({example.name})"
    image_label(example, where)
    if len(example.labels) > framing.max_boxes:
        raise ValueError(f"{where}: {too_many(len(example.labels), framing.max_boxes)}")
    side = framing.image_size
    top, left, height, width = box
    pixels = decode_box(example.image, box, (side, side), resize=framing.resize)
    scale = np.array([side / height, side / width], np.float32)
    boxes = (example.boxes - np.array([left, top] * 2, np.float32)) * scale[[1, 0, 1, 0]]
    kept = boxes.clip(0, side)
    share = _areas(kept) / _areas(boxes)
    if mirror:
        pixels = pixels[:, ::-1]
        kept = np.stack([side - kept[:, 2], kept[:, 1], side - kept[:, 0], kept[:, 3]], 1)
    return BoxExample(
        image=np.ascontiguousarray(pixels),
        boxes=padded(kept.astype(np.float32), framing.max_boxes),
        labels=padded(example.labels, framing.max_boxes),
        valid=padded(share > 0, framing.max_boxes),
        ignored=padded(example.ignored | (share < framing.least_share), framing.max_boxes),
        size=np.array([side, side], np.int32),
        scale=scale,
        image_index=np.array(index, np.int32),
    )


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
