"""Data sets held whole in device memory as uint8, and the order in which training visits them.

Training reads an endless stream: epoch after epoch, each a fresh permutation of all examples. Batch k holds the
stream's positions k * batch_size and on, so it may span two epochs and nothing is dropped. It depends on the seed and
on k alone, not on devices, hosts or restarts.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, UInt8

from resnet_jax.data.batch import Batch
from resnet_jax.data.device_augment import cutout, normalize, pad_crop_flip
from resnet_jax.data.device_policies import apply_policy
from resnet_jax.data.mixing import mix
from resnet_jax.distributed import split_batch
from resnet_jax.random_keys import Seed, named_key


class ResidentData(flax.struct.PyTreeNode):
    """All examples of a split.

    Attributes:
      images: uint8 of shape [n, h, w, c].
      labels: int32 class numbers of shape [n].
    """

    images: Any
    labels: Any

    def __len__(self) -> int:
        return self.images.shape[0]


class EpochOrders:
    """The permutations of two consecutive epochs at a time, made on the device when first needed.

    Args:
      seed: of the order; or several, int32 [s], and the orders have a leading axis of them.
      count: examples of the split.
    """

    def __init__(self, *, seed: Seed, count: int):
        self.count = count
        self._seed = jnp.asarray(seed, jnp.int32)
        self._permute = jax.jit(jax.vmap(self._permutations, (0, None)) if self._seed.ndim else self._permutations)
        self._epoch = -1
        self._pair: Array | None = None

    def at(self, position: int) -> tuple[Array, int]:
        """The orders needed from a position on.

        Args:
          position: of an example in the stream.

        Returns:
          Example numbers of the position's epoch and of the next one, int32 [2 * count], and the position
          at which that epoch starts.
        """
        epoch = position // self.count
        if epoch != self._epoch:
            self._epoch, self._pair = epoch, self._permute(self._seed, epoch)
        assert self._pair is not None
        return self._pair, epoch * self.count

    def _permutations(self, seed, epoch):
        keys = [jax.random.fold_in(named_key(seed, "order"), epoch + offset) for offset in (0, 1)]
        return jnp.concatenate([jax.random.permutation(key, self.count) for key in keys])


def take_rows(data: ResidentData, rows: Int[Array, " b"]) -> tuple[UInt8[Array, "b h w c"], Int[Array, " b"]]:
    """Images and labels of the given examples."""
    return jnp.take(data.images, rows, axis=0), jnp.take(data.labels, rows, axis=0)


BatchAt = Callable[[ResidentData, Array, Any, Any], Batch]


def make_batch_at(
    mesh: Mesh,
    *,
    seed: Seed,
    batch_size: int,
    mean: np.ndarray,
    std: np.ndarray,
    pad: int,
    flip: bool,
    policy: str = "none",
    policy_operations: int = 2,
    policy_magnitude: int = 9,
    cutout_size: int = 0,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
) -> BatchAt:
    """Returns the pure function (data, orders, epoch_start, k) -> the k-th training batch.

    A policy sees whole images as they are stored; then they are normalised, cropped, mirrored, squares of them set
    to the mean, and mixed.

    Args:
      mesh: devices that share the batch.
      seed: of the augmentation.
      batch_size: examples over all devices.
      mean: mean image or channel mean, in pixel values.
      std: per channel.
      pad: pixels, see `pad_crop_flip`.
      flip: see `pad_crop_flip`.
      policy: see `apply_policy`.
      policy_operations: likewise.
      policy_magnitude: likewise.
      cutout_size: see `cutout`.
      mixup_alpha: see `mix`.
      cutmix_alpha: see `mix`.
    """
    key, policy_key, cutout_key, mix_key = (named_key(seed, name) for name in ("augment", "policy", "cutout", "mix"))
    augment = partial(apply_policy, policy=policy, operations=policy_operations, magnitude=policy_magnitude)

    def batch_at(data: ResidentData, orders, epoch_start, k) -> Batch:
        positions = k * batch_size + jnp.arange(batch_size)
        rows = jax.lax.with_sharding_constraint(orders[positions - epoch_start], split_batch(mesh))
        images, labels = take_rows(data, rows)
        images = augment(images, positions, policy_key)
        images = pad_crop_flip(normalize(images, mean, std), positions, key, pad=pad, flip=flip)
        images = cutout(images, positions, cutout_key, size=cutout_size)
        images = jax.lax.with_sharding_constraint(images, split_batch(mesh))
        batch = Batch(image=images, label=labels, weight=jnp.ones(batch_size, jnp.float32))
        return mix(batch, k, mix_key, mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha)

    return batch_at
