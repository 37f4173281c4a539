"""Stochastic depth (Huang et al. 2016): in training, a random choice of branches does not count."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def draw_branch_weights(
    key: Key[Array, ""], *, blocks: int, images: int, drop_rate: float
) -> Float[Array, "blocks images"]:
    """What each block's branch is multiplied by, image by image: 0 where it is dropped, else 1 / (1 - its rate).

    The rate grows linearly from 0 at the net's input to `drop_rate` at the last block (the paper's linear decay): block
    l of L has drop_rate l / L. The paper draws once for a batch; here each image draws, as other libraries do too. And
    the paper scales the branch by 1 - rate in tests; here it is divided by that in training, so that the net to be
    tested is the ordinary one, and its weights are of use where nobody knows of stochastic depth. Every branch is
    computed, since batch normalization takes its statistics from all images.

    Args:
      key: the draws depend on it and the shape alone, not on how a batch is divided among devices.
      blocks: of the whole net.
      images: of the batch.
      drop_rate: of the last block, in [0, 1).
    """
    kept = 1 - drop_rate * jnp.arange(1, blocks + 1) / blocks
    return jax.random.bernoulli(key, kept[:, None], (blocks, images)) / kept[:, None]
