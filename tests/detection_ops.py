"""What torchvision gives for seeded numbers: the results that `fixtures/make_detection_ops.py` stored."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax import Array

FILE = Path(__file__).resolve().parent / "fixtures" / "detection" / "ops.npz"


def stored(group: str) -> dict[str, Array]:
    """The arrays "group/name" by name."""
    with np.load(FILE) as file:
        names = [name for name in file if name.startswith(f"{group}/")]
        return {name.removeprefix(f"{group}/"): jnp.asarray(file[name]) for name in names}


def draw_boxes(seed: int, *shape: int, extent: float = 100, side: float = 60) -> Array:
    """Random boxes [*shape 4] with sides of 4 to `side` more pixels."""
    random = np.random.default_rng(seed)
    corner = random.uniform(0, extent, (*shape, 2))
    return jnp.asarray(np.concatenate([corner, corner + random.uniform(4, 4 + side, (*shape, 2))], -1), jnp.float32)
