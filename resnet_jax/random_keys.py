"""Every random number of a run comes from its seed, the name of its use, and a position."""

import zlib

import jax


def named_key(seed: int, name: str) -> jax.Array:
    """The key of one use of randomness, e.g. "order" or "augment"; different for each seed and each name."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
