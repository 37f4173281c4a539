"""Mixup and CutMix on the devices: images blended with their neighbours in the batch, and so their targets."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from resnet_jax.data.batch import Batch


def mixup(batch: Batch, step, key: Array, *, alpha: float) -> Batch:
    """Blends every image with its neighbour, share : 1 - share (Zhang et al. 2018).

    Args:
      batch: normalised images; see `mix` for padding and for who is whose neighbour.
      step: of training; with `key` it fixes the share, which the whole batch has in common.
      key: of the mixing.
      alpha: the share is drawn from Beta(alpha, alpha).
    """
    share = _draw_share(step, key, alpha)
    return _blend(batch, jnp.full(batch.image.shape[1:3], share), share)


def cutmix(batch: Batch, step, key: Array, *, alpha: float) -> Batch:
    """Cuts a box out of every image and fills it from its neighbour (Yun et al. 2019).

    The box has the image's aspect and 1 - share of its area, around a point anywhere in the image; what sticks out is
    clipped, and the share becomes the part of the image that is left. Arguments as those of `mixup`.
    """
    own = _outside_box(step, key, alpha, batch.image.shape[1:3])
    return _blend(batch, own, own.mean())


def mix(batch: Batch, step, key: Array, *, mixup_alpha: float, cutmix_alpha: float) -> Batch:
    """Applies `mixup` or `cutmix`, with probability one half each where both are given, as torchvision and timm do.

    An image's neighbour is the one before it in the batch; the first's is the last. With the batch split over
    devices, then, one image a device crosses to the next; mirroring the batch, as timm does, would move all of
    them. Where either of the two has weight 0 the image stays as it is, so padding mixes with nothing.

    Args:
      batch: normalised images, not mixed yet.
      step: of training; with `key` it fixes all draws, which the whole batch has in common.
      key: of the mixing.
      mixup_alpha: see `mixup`; 0 for none.
      cutmix_alpha: see `cutmix`; 0 for none.
    """
    if not mixup_alpha and not cutmix_alpha:
        return batch
    if not cutmix_alpha:
        return mixup(batch, step, key, alpha=mixup_alpha)
    if not mixup_alpha:
        return cutmix(batch, step, key, alpha=cutmix_alpha)
    size = batch.image.shape[1:3]
    share, outside = _draw_share(step, key, mixup_alpha), _outside_box(step, key, cutmix_alpha, size)
    cut = jax.random.bernoulli(_step_keys(step, key)[2])
    return _blend(batch, jnp.where(cut, outside, jnp.full(size, share)), jnp.where(cut, outside.mean(), share))


def _step_keys(step, key: Array) -> Array:
    """Three keys: of the share, of the box's place, of the choice between the two ways."""
    return jax.random.split(jax.random.fold_in(key, step), 3)


def _draw_share(step, key: Array, alpha: float) -> Array:
    return jax.random.beta(_step_keys(step, key)[0], alpha, alpha)


def _outside_box(step, key: Array, alpha: float, size: tuple[int, int]) -> Array:
    """1 outside of the box, 0 in it, float32 [h, w]."""
    side = jnp.sqrt(1 - _draw_share(step, key, alpha))

    def in_range(place_key, length):
        half = (side * length).astype(jnp.int32) // 2
        offset = jnp.arange(length) - jax.random.randint(place_key, (), 0, length)
        return (-half <= offset) & (offset < half)

    rows, columns = map(in_range, jax.random.split(_step_keys(step, key)[1]), size)
    return 1.0 - (rows[:, None] & columns[None, :])


def _blend(batch: Batch, own: Array, share: Array) -> Batch:
    """Own [h, w] times each image plus 1 - own times its neighbour; `share` is the mean of `own`."""
    own = own[None, :, :, None]
    partner = jax.tree.map(partial(jnp.roll, shift=1, axis=0), batch)
    both = (batch.weight > 0) & (partner.weight > 0)
    image = jnp.where(both[:, None, None, None], own * batch.image + (1 - own) * partner.image, batch.image)
    return batch.replace(image=image, partner_label=partner.label, share=jnp.where(both, share, 1.0))
