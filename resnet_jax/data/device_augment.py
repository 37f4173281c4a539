"""Normalisation and augmentation inside the jitted step; random numbers belong to an example's position alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8


def normalize(
    images: UInt8[Array, "n h w c"],
    mean: Float[Array | np.ndarray, "h w c"] | Float[Array | np.ndarray, " c"],
    std: Float[Array | np.ndarray, " c"],
) -> Float[Array, "n h w c"]:
    """Subtracts the mean image (or channel mean) from the pixels and divides by `std`; float32."""
    return (images.astype(jnp.float32) - jnp.broadcast_to(mean, images.shape)) / jnp.broadcast_to(std, images.shape)


def pad_crop_flip(
    images: Float[Array, "n h w c"], positions: Int[Array, " n"], key: Array, *, pad: int, flip: bool
) -> Float[Array, "n h w c"]:
    """Pads with zeros, takes a random crop of the old size, mirrors half of the images (section 4.2).

    Args:
      images: normalised images, so that zero is the mean.
      positions: each example's place in the endless stream of training examples; with `key` it fixes the draw.
      key: of the augmentation.
      pad: pixels added on every side; 4 in the paper.
      flip: whether to mirror left and right with probability one half.
    """
    return jax.vmap(partial(_augment_one, key=key, pad=pad, flip=flip))(images, positions)


def _augment_one(image, position, *, key, pad, flip):
    crop_key, flip_key = jax.random.split(jax.random.fold_in(key, position))
    if pad:
        top, left = jax.random.randint(crop_key, (2,), 0, 2 * pad + 1)
        padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
        image = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
    if flip:
        image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
    return image
