"""Batch normalization: over the whole batch, over groups of it, or frozen to constants."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class BatchNorm(nn.Module):
    """Batch normalization (Ioffe and Szegedy 2015) right after each convolution, as in the paper's section 3.4.

    Which statistics normalise and whether the running ones are updated are two separate switches. Under `jit` the
    batch axis is the global batch, so statistics are those of all devices. With `group_size` they are taken over
    groups of that many consecutive examples, whatever the number of devices (the paper: 32 on ImageNet, 64 on CIFAR,
    one GPU's share); the running statistics then follow the groups' average.

    Attributes:
      use_running_average: normalise by the running statistics instead of the batch's.
      update_statistics: move the running statistics towards the batch's; `batch_stats` must be mutable then.
      group_size: examples per statistics group; None takes the whole batch.
      momentum: weight of the old running value.
      epsilon: added to the variance.
      dtype: of the output; statistics, scale and bias are float32.
      scale_init: initialiser of gamma.
    """

    use_running_average: bool
    update_statistics: bool
    group_size: int | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    scale_init: Callable = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Normalises over all axes but the last."""
        channels = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_variance = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        groups, mean, variance = x[None], running_mean.value, running_variance.value
        if not self.is_initializing() and (self.update_statistics or not self.use_running_average):
            batch_groups = _split_into_groups(x, self.group_size)
            batch_mean, batch_variance = _moments(batch_groups)
            if self.update_statistics:
                old = self.momentum
                running_mean.value = old * running_mean.value + (1 - old) * batch_mean.mean(0)
                running_variance.value = old * running_variance.value + (1 - old) * batch_variance.mean(0)
            if not self.use_running_average:
                groups, mean, variance = batch_groups, batch_mean, batch_variance
        return _normalize(groups, mean, variance, scale, bias, self.epsilon, self.dtype).reshape(x.shape)


class FrozenBatchNorm(nn.Module):
    """Batch normalization as a constant affine map: all four vectors are in `batch_stats`, none in `params`.

    For detection and fine-tuning (the paper's appendix A: "the BN layers are fixed"). `freeze_batch_norm` turns
    the variables of a trained net into this form.
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Applies the stored mean, variance, scale and bias."""
        channels = x.shape[-1:]
        mean, variance, scale, bias = (
            self.variable("batch_stats", name, init, channels, jnp.float32).value
            for name, init in (
                ("mean", jnp.zeros),
                ("var", jnp.ones),
                ("scale", jnp.ones),
                ("bias", jnp.zeros),
            )
        )
        return _normalize(x[None], mean, variance, scale, bias, self.epsilon, self.dtype)[0]


def freeze_batch_norm(variables: dict) -> dict:
    """Moves every scale and bias of batch normalization from `params` to `batch_stats`, for `norm="frozen"`."""

    def merge(params: dict, statistics: dict) -> tuple[dict, dict]:
        if "mean" in statistics:
            return {}, {**statistics, **params}
        kept, frozen = {}, {}
        for name, value in params.items():
            if name not in statistics:
                kept[name] = value
                continue
            rest, frozen[name] = merge(value, statistics[name])
            if rest:
                kept[name] = rest
        return kept, frozen

    params, batch_stats = merge(variables["params"], variables["batch_stats"])
    return {"params": params, "batch_stats": batch_stats}


def _split_into_groups(x: Array, group_size: int | None) -> Array:
    """[n, h, w, c] to [groups, group_size, h, w, c]."""
    size = x.shape[0] if group_size is None else group_size
    if size < 1 or x.shape[0] % size:
        raise ValueError(
            f"bn_group_size={group_size} does not divide the batch of {x.shape[0]} examples; "
            "choose a divisor of the batch size, or None for the whole batch"
        )
    return x.reshape(x.shape[0] // size, size, *x.shape[1:])


def _moments(groups: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each group, float32, shape [groups, c]."""
    groups = groups.astype(jnp.float32)
    axes = (1, 2, 3)
    mean = groups.mean(axes)
    # One pass over the activations; rounding can leave a tiny negative difference.
    variance = jnp.maximum(jnp.square(groups).mean(axes) - jnp.square(mean), 0.0)
    return mean, variance


def _normalize(groups, mean, variance, scale, bias, epsilon, dtype):
    """Groups [g, n, h, w, c] by mean and variance [g, c] or [c]; scale and bias [c]."""
    mean, variance, scale, bias = (v.reshape(-1, 1, 1, 1, v.shape[-1]) for v in (mean, variance, scale, bias))
    multiplier = jax.lax.rsqrt(variance + epsilon) * scale
    return ((groups.astype(jnp.float32) - mean) * multiplier + bias).astype(dtype)
