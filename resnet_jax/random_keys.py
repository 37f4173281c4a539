"""Every random number of a run comes from its seed, the name of its use, and a position."""

import zlib

import jax

# In a jitted function a traced number: what is compiled for one seed then serves all.
Seed = int | jax.Array


def named_key(seed: Seed, name: str) -> jax.Array:
    """The key of one use of randomness, e.g. "order" or "augment"; different for each seed and each name."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
