"""Normalisation and augmentation inside the jitted step.

The random numbers of one image belong to its position in the stream of examples alone, those of a batch to its step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from resnet_jax.data.batch import Batch
from resnet_jax.data.mixing import mix
from resnet_jax.distributed import split_batch
from resnet_jax.random_keys import named_key


def normalize(
    images: UInt8[Array, "n h w c"] | Float[Array, "n h w c"],
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


def cutout(
    images: Float[Array, "n h w c"], positions: Int[Array, " n"], key: Array, *, size: int
) -> Float[Array, "n h w c"]:
    """Sets a square of each image to zero (DeVries and Taylor 2017).

    Its centre is any of the image's pixels with the same probability; what sticks out is clipped.

    Args:
      images: normalised images, so that zero is the mean.
      positions: see `pad_crop_flip`.
      key: of the squares.
      size: pixels of a side; 16 for CIFAR-10 in the paper; 0 for none.
    """
    if not size:
        return images

    def square(position):
        centres = jax.random.randint(jax.random.fold_in(key, position), (2,), 0, jnp.array(images.shape[1:3]))
        offsets = (jnp.arange(length) - centre for length, centre in zip(images.shape[1:3], centres, strict=True))
        rows, columns = ((-(size // 2) <= offset) & (offset < size - size // 2) for offset in offsets)
        return rows[:, None] & columns[None, :]

    return jnp.where(jax.vmap(square)(positions)[..., None], 0.0, images)


def pca_color(
    images: Float[Array, "n h w c"],
    positions: Int[Array, " n"],
    key: Array,
    *,
    std: float,
    eigenvalues: Float[Array | np.ndarray, " c"],
    eigenvectors: Float[Array | np.ndarray, "c c"],
) -> Float[Array, "n h w c"]:
    """Shifts each image's colour along the principal components of all pixels (section 3.4; Krizhevsky et al. 2012).

    Args:
      images: pixel values 0 to 255, not yet normalised; the result may leave that range.
      positions: see `pad_crop_flip`.
      key: of the colours.
      std: of the normal draws, one for each component; 0.1 in the paper.
      eigenvalues: what one draw multiplies, in pixel values.
      eigenvectors: one in each column.
    """

    values, vectors = jnp.asarray(eigenvalues, jnp.float32), jnp.asarray(eigenvectors, jnp.float32)

    def shift(position):
        draws = std * jax.random.normal(jax.random.fold_in(key, position), values.shape)
        # Sums of products and not a dot product, which accelerators round to bfloat16.
        return (vectors * (draws * values)[None, :]).sum(-1)

    return images + jax.vmap(shift)(positions)[:, None, None, :]


Prepare = Callable[[Array, Array, Array, Any], Batch]


def make_prepare(
    mesh: Mesh,
    *,
    seed: int,
    mean: np.ndarray,
    std: np.ndarray,
    pca_std: float,
    eigenvalues: np.ndarray | None,
    eigenvectors: np.ndarray | None,
    cutout_size: int = 0,
    mixup_alpha: float,
    cutmix_alpha: float,
    batch_size: int,
) -> Prepare:
    """Returns the pure function (images, labels, weights, step) -> batch for images that come cropped from the host.

    The images are uint8 [batch_size, h, w, c]. Their colours are shifted, then they are normalised, those of weight 0
    become zeros (the mean), as squares of the others do, and they are mixed.

    Args:
      mesh: devices that share the batch.
      seed: of the augmentation.
      mean: mean image or channel mean, in pixel values.
      std: per channel.
      pca_std: see `pca_color`; 0 for none.
      eigenvalues: see `pca_color`; None where pca_std is 0.
      eigenvectors: likewise.
      cutout_size: see `cutout`.
      mixup_alpha: see `mix`.
      cutmix_alpha: see `mix`.
      batch_size: examples over all devices.
    """
    if pca_std and (eigenvalues is None or eigenvectors is None):
        raise ValueError(f"pca_std={pca_std}: needs the colours' eigenvalues and eigenvectors")
    color_key, cutout_key, mix_key = (named_key(seed, name) for name in ("color", "cutout", "mix"))

    def prepare(images, labels, weights, step) -> Batch:
        if len(images) != batch_size:
            raise ValueError(f"batch_size={batch_size}, but {len(images)} images came; pad with images of weight 0")
        images, labels, weights = jax.lax.with_sharding_constraint((images, labels, weights), split_batch(mesh))
        images = images.astype(jnp.float32)
        positions = step * batch_size + jnp.arange(batch_size)
        if pca_std and eigenvalues is not None and eigenvectors is not None:
            images = pca_color(
                images, positions, color_key, std=pca_std, eigenvalues=eigenvalues, eigenvectors=eigenvectors
            )
        images = jnp.where(weights[:, None, None, None] > 0, normalize(images, mean, std), 0.0)
        images = cutout(images, positions, cutout_key, size=cutout_size)
        batch = Batch(image=images, label=labels, weight=weights)
        batch = mix(batch, step, mix_key, mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha)
        return jax.lax.with_sharding_constraint(batch, split_batch(mesh))

    return prepare
