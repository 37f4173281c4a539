"""What the comparison of the detector with torchvision's shares: sizes, images, objects, and all tensors' numbers."""

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import parity_nets

FIXTURE = Path(__file__).parent / "fixtures" / "detection" / "faster_rcnn.npz"

CLASSES, ANCHOR_SIZES, RATIOS = 3, (16.0, 32.0, 64.0), (0.5, 1.0, 2.0)
IMAGES, HEIGHT, WIDTH = 2, 96, 128
BEFORE, AFTER, RPN_THRESHOLD, MIN_SIDE = 100, 40, 0.7, 1e-3
SCORE, THRESHOLD, COUNT = 0.05, 0.3, 20
BETA = 1.0 / 9.0
# Of each object: image, label, x1, y1, x2, y2.
OBJECTS = [(0, 0, 10, 12, 70, 60), (0, 2, 40, 30, 120, 90), (1, 1, 5, 50, 40, 92)]
OPERATIONS = ("align", "pool")


def pictures() -> np.ndarray:
    """Normal noise [n, h, w, 3]."""
    return np.random.RandomState(0).standard_normal((IMAGES, HEIGHT, WIDTH, 3)).astype(np.float32)


def fill(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Values of torchvision's tensors; offsets small enough that boxes stay near their anchors."""
    found = dict(parity_nets.fill({name: shape for name, shape in shapes.items() if name.startswith("body.")}))
    for name, shape in shapes.items():
        if not name.startswith("body."):
            noise = np.random.RandomState(zlib.crc32(name.encode())).random_sample(shape) * 2 - 1
            scale = 0.1 if "bbox" in name or len(shape) == 1 else 1.0
            fan_in = np.prod(shape[1:]) if len(shape) > 1 else 3
            found[name] = (noise * scale * np.sqrt(3 / fan_in)).astype(np.float32)
    return found
