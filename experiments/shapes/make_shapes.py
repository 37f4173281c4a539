"""Writes a data set of drawn shapes as a folder in the form of PASCAL VOC, for detectors that train in minutes.

Discs, rings and triangles, one to four in an image, of random size, proportions, rotation, place and colour, on
coloured noise. Each image is a function of (seed, split, index) alone: more images leave the first ones as they are.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from resnet_jax.atomic_files import write_text_atomically

CLASSES = ("disc", "ring", "triangle")
SPLITS = ("train", "val", "test")
SIDES = 96, 160
# Half of an object's length, from so many pixels to a part of the image's shorter side.
LEAST_RADIUS, LARGEST_RADIUS = 10, 0.33
# Of an object's width to its length, and of a ring's hole to the ring.
THINNEST, HOLE = 0.75, 0.55
# How far an object's colour is, in one channel at least, from the background's mean and from other objects'.
APART = 90
# Of the background, 0 to 255: the noise's standard deviation, which never takes it further than half of APART.
NOISE = 18
TRIES = 20


class Scene(NamedTuple):
    """An image and its objects.

    Attributes:
      image: [h, w, 3], 0 to 255.
      boxes: [n, 4], (x1, y1, x2, y2), edges from 0: around the object's visible pixels, as VOC's are.
      labels: [n], numbers of `CLASSES`.
      covered: [n], which part of the object's pixels others cover.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    covered: np.ndarray


class Kind(NamedTuple):
    """How hard images are.

    Attributes:
      most: objects of an image, from 1; with 1 all images have one object, as localization wants them.
      covered: of an object's pixels others may cover at most this part, from 0.
    """

    most: int = 4
    covered: float = 0.6


KIND = Kind()


def make_scene(seed: int, split: str, index: int, kind: Kind = KIND) -> Scene:
    """The image of a number in a split."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    height, width = (int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, 2))
    mean = rng.integers(70, 186, 3)
    image = _background(rng, (height, width), mean)
    colours, labels, masks = [mean], [], []
    # The number of the object that each pixel shows.
    owner = np.full((height, width), -1)
    for _ in range(rng.integers(1, kind.most + 1)):
        label, colour = int(rng.integers(len(CLASSES))), _colour(rng, colours)
        mask = _free_place(rng, label, owner, masks, kind.covered)
        if mask is not None:
            owner[mask], image[mask] = len(masks), colour
            colours.append(colour)
            labels.append(label)
            masks.append(mask)
    visible = [owner == number for number in range(len(masks))]
    boxes = np.array([_box(mask) for mask in visible])
    covered = 1 - np.array([seen.sum() / mask.sum() for seen, mask in zip(visible, masks, strict=True)])
    return Scene(image, boxes, np.array(labels), covered)


def _background(rng: np.random.Generator, size: tuple[int, int], mean: np.ndarray) -> np.ndarray:
    """Noise in blocks of 8 pixels and in single ones, equally strong."""
    height, width = size
    coarse = rng.normal(size=(-(-height // 8), -(-width // 8), 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    noise = NOISE / np.sqrt(2) * (coarse + rng.normal(size=(height, width, 3)))
    limit = APART // 2
    return (mean + noise.clip(-limit, limit)).clip(0, 255).astype(np.uint8)


def _colour(rng: np.random.Generator, others: list[np.ndarray]) -> np.ndarray:
    while True:
        colour = rng.integers(0, 256, 3)
        if all(np.abs(colour - other).max() >= APART for other in others):
            return colour


def _free_place(
    rng: np.random.Generator, label: int, owner: np.ndarray, masks: list[np.ndarray], covered: float
) -> np.ndarray | None:
    """The pixels of an object that covers no more than this part of any other; None after some tries."""
    for _ in range(TRIES):
        mask = _mask(rng, label, owner.shape)
        left = [((owner == number) & ~mask).sum() / other.sum() for number, other in enumerate(masks)]
        if all(part >= 1 - covered for part in left):
            return mask
    return None


def _mask(rng: np.random.Generator, label: int, size: tuple[int, int]) -> np.ndarray:
    """The pixels of an object somewhere within the image."""
    height, width = size
    radius = rng.uniform(LEAST_RADIUS, LARGEST_RADIUS * min(size))
    x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
    angle, proportion = rng.uniform(0, 2 * np.pi), rng.uniform(THINNEST, 1)
    # From pixels' centres to the object's own coordinates, in which it reaches from -1 to 1.
    down, right = np.ogrid[:height, :width]
    down, right = (down + 0.5 - y) / radius, (right + 0.5 - x) / radius
    u = np.cos(angle) * right + np.sin(angle) * down
    v = (np.cos(angle) * down - np.sin(angle) * right) / proportion
    if CLASSES[label] == "triangle":
        # Its corners are on the circle: three lines at half the radius.
        return np.all([np.cos(turn) * u + np.sin(turn) * v <= 0.5 for turn in np.arange(3) * 2 * np.pi / 3], axis=0)
    distance = np.hypot(u, v)
    return (distance <= 1) & (distance >= HOLE) if CLASSES[label] == "ring" else distance <= 1


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Edges around the pixels that are true."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def annotation(name: str, scene: Scene) -> str:
    """What VOC's form says of an image: first and last pixels, counted from 1."""
    height, width, depth = scene.image.shape
    objects = "".join(
        f"  <object><name>{CLASSES[label]}</name><difficult>0</difficult><bndbox><xmin>{x1 + 1}</xmin>"
        f"<ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>\n"
        for (x1, y1, x2, y2), label in zip(scene.boxes, scene.labels, strict=True)
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>{depth}</depth></size>"
    return f"<annotation>\n  <filename>{name}.png</filename>\n  {size}\n{objects}</annotation>\n"


def split_sizes(images: int) -> dict[str, int]:
    """Images of each split: a fifth of the training images, and one at least, for each of the others."""
    return {"train": images, "val": max(1, images // 5), "test": max(1, images // 5)}


def make_shapes(folder: Path, *, images: int, seed: int, kind: Kind = KIND) -> Path:
    """Writes the folder, the lists of the splits last.

    Args:
      folder: which must not be there, since `VocFolder` reads every annotation that it finds.
      images: of the training split, from 1; see `split_sizes`.
      seed: from 0.
      kind: how hard the images are.

    Raises:
      FileExistsError: there is something at `folder`.
      ValueError: a number below what is allowed.
    """
    if images < 1 or seed < 0:
        raise ValueError(f"images={images}, seed={seed}; allowed are images from 1 and seeds from 0")
    if kind.most < 1 or not 0 <= kind.covered < 1:
        raise ValueError(f"{kind}; allowed are most from 1 and covered from 0 to below 1")
    folder.mkdir(parents=True)
    for part in ("JPEGImages", "Annotations"):
        (folder / part).mkdir()
    for split, count in split_sizes(images).items():
        for name, scene in _named(seed, split, count, kind):
            # PNG: the pixels are those of the scene, whatever the library's version.
            Image.fromarray(scene.image).save(folder / "JPEGImages" / f"{name}.png", compress_level=1)
            (folder / "Annotations" / f"{name}.xml").write_text(annotation(name, scene))
    for split, count in split_sizes(images).items():
        names = "".join(f"{_name(split, index)}\n" for index in range(count))
        write_text_atomically(folder / "ImageSets" / "Main" / f"{split}.txt", names)
    return folder


def _named(seed: int, split: str, count: int, kind: Kind) -> Iterator[tuple[str, Scene]]:
    return ((_name(split, index), make_scene(seed, split, index, kind)) for index in range(count))


def _name(split: str, index: int) -> str:
    return f"{split}_{index:06}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="to be made")
    parser.add_argument(
        "--images", type=int, default=1000, help="of the training split; val and test have a fifth each"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--objects", type=int, default=KIND.most, help="of an image, at most (%(default)s)")
    help = "part of an object's pixels that others may cover (%(default)s)"
    parser.add_argument("--covered", type=float, default=KIND.covered, help=help)
    flags = parser.parse_args()
    kind = Kind(flags.objects, flags.covered)
    print(make_shapes(flags.folder, images=flags.images, seed=flags.seed, kind=kind))


if __name__ == "__main__":
    main()
