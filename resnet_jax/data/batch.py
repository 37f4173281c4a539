"""A batch as the net takes it."""

from typing import Any

import flax


class Batch(flax.struct.PyTreeNode):
    """Examples and their weights.

    Attributes:
      image: normalised floats [n, h, w, c].
      label: int32 class numbers [n].
      weight: 1 for an example, 0 for padding, float32 [n].
    """

    image: Any
    label: Any
    weight: Any
