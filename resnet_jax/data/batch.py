"""A batch as the net takes it."""

from typing import Any

import flax
import jax.numpy as jnp
from jaxtyping import Array


class Batch(flax.struct.PyTreeNode):
    """Examples and their weights.

    With `partner_label` and `share` an image is a mixture of two, and so is its target:
    share * one_hot(label) + (1 - share) * one_hot(partner_label).

    Attributes:
      image: normalised floats [n, h, w, c].
      label: int32 class numbers [n].
      weight: 1 for an example, 0 for padding, float32 [n].
      partner_label: class of the image mixed in, int32 [n]; None without mixing.
      share: what is left of the image itself, float32 [n], 1 where nothing was mixed in; None without mixing.
    """

    image: Any
    label: Any
    weight: Any
    partner_label: Any = None
    share: Any = None

    @property
    def unreadable(self) -> Array:
        """How many images could not be decoded, and so have weight 0."""
        return jnp.sum(self.weight == 0, dtype=jnp.int32)
