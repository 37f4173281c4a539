"""A tensor as a file holds it: what it is is known at once, and its values are read when they are asked for."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file that may be from anywhere.

    Whoever makes one has checked that the file holds as many bytes as it says, so that reading cannot ask for more
    memory than the file's own size.

    Attributes:
      shape: of the array.
      dtype: numpy's name of it, e.g. "float32", or "bfloat16".
      read: makes the array, C-contiguous, of this shape and dtype; nothing keeps it but the caller.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]
