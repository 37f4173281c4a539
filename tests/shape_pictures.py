"""Images of one bright shape on noise, whose class is its shape and colour; what a small net localizes in a minute."""

import io

import numpy as np
from PIL import Image

from resnet_jax.detection.annotations import Annotated, BoxSource, annotated

SHAPES = ("disk", "cross", "frame")


class ShapePictures(BoxSource):
    """Image k shows shape k % 3, alone, with sides of 0.4 to 0.75 of the image's shorter side."""

    class_names = SHAPES

    def __init__(self, count: int, *, seed: int = 0):
        self._count, self._seed = count, seed

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Annotated:
        rng = np.random.default_rng([self._seed, range(self._count)[index]])
        height, width = self._size(rng)
        label = index % len(SHAPES)
        side = rng.uniform(0.4, 0.75, 2) * min(height, width)
        y1, x1 = rng.uniform(0, [height - side[0], width - side[1]])
        pixels = rng.integers(0, 120, (height, width, 3))
        rows, columns = np.mgrid[:height, :width] + 0.5
        y, x = 2 * (rows - y1) / side[0] - 1, 2 * (columns - x1) / side[1] - 1
        pixels[_covered(label, x, y)] = 255
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        box = [x1, y1, x1 + side[1], y1 + side[0]]
        options = {"size": (height, width), "num_classes": 3, "where": lambda: self.where(index)}
        return annotated(file.getvalue(), f"{index}.png", [box], [label], **options)

    def size(self, index: int) -> tuple[int, int]:
        return self._size(np.random.default_rng([self._seed, range(self._count)[index]]))

    def where(self, index: int) -> str:
        return f"shape {index}"

    def _size(self, rng: np.random.Generator) -> tuple[int, int]:
        height, width = rng.integers(64, 90, 2)
        return int(height), int(width)


def _covered(label: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where the shape is, in coordinates that are -1 and 1 at its box's edges."""
    inside = np.maximum(np.abs(x), np.abs(y)) <= 1
    if label == 0:
        return x**2 + y**2 <= 1
    return inside & (
        (np.minimum(np.abs(x), np.abs(y)) < 0.3) if label == 1 else (np.maximum(np.abs(x), np.abs(y)) > 0.6)
    )
