"""Batch normalization: over the whole batch, over groups of it, or frozen to constants."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

# Axes of [groups, n, h, w, c] that one group's statistics are over.
_OF_GROUP = (1, 2, 3)


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
      relu: whether a ReLU follows, which the layer then applies: together, their gradients read and write less memory.
    """

    use_running_average: bool
    update_statistics: bool
    group_size: int | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    scale_init: Callable = nn.initializers.ones
    relu: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Normalises over all axes but the last."""
        channels = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_variance = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        mean, variance = running_mean.value, running_variance.value
        if not self.is_initializing() and (self.update_statistics or not self.use_running_average):
            groups = _split_into_groups(x, self.group_size)
            options = (self.epsilon, self.dtype, self.relu)
            normal, batch_mean, batch_variance = _normalize_by_own(groups, scale, bias, *options)
            if self.update_statistics:
                old = self.momentum
                running_mean.value = old * mean + (1 - old) * batch_mean.mean(0)
                running_variance.value = old * variance + (1 - old) * batch_variance.mean(0)
            if not self.use_running_average:
                return normal.reshape(x.shape)
        return _normalize(x[None], mean, variance, scale, bias, self.epsilon, self.dtype, self.relu)[0]


class FrozenBatchNorm(nn.Module):
    """Batch normalization as a constant affine map: all four vectors are in `batch_stats`, none in `params`.

    For detection and fine-tuning (the paper's appendix A: "the BN layers are fixed"). `freeze_batch_norm` turns
    the variables of a trained net into this form.
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    relu: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Applies the stored mean, variance, scale and bias, and a ReLU where `relu` says so."""
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
        return _normalize(x[None], mean, variance, scale, bias, self.epsilon, self.dtype, self.relu)[0]


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
    mean = groups.mean(_OF_GROUP)
    # One pass over the activations; rounding can leave a tiny negative difference.
    variance = jnp.maximum(jnp.square(groups).mean(_OF_GROUP) - jnp.square(mean), 0.0)
    return mean, variance


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _normalize_by_own(groups, scale, bias, epsilon, dtype, relu):
    """Groups normalised by their own mean and variance, and these; to gradients the latter two are constants.

    JAX's own gradient keeps activations a second time, in float32: of 1202 scanned layers, 16 GB instead of 7.5 in
    bfloat16 (experiments/benchmarks/compiled).
    """
    mean, variance = _moments(groups)
    return _normalize(groups, mean, variance, scale, bias, epsilon, dtype, relu), mean, variance


def _forward(groups, scale, bias, epsilon, dtype, relu):
    # Not by the function itself, which hides from a second derivative how mean and variance depend on the groups.
    mean, variance = _moments(groups)
    normal = _normalize(groups, mean, variance, scale, bias, epsilon, dtype, relu)
    return (normal, mean, variance), (groups, mean, variance, scale, bias)


def _backward(epsilon, dtype, relu, residuals, gradients):
    """Through mean and variance, too, which takes two sums of each group."""
    groups, mean, variance, scale, bias = residuals

    def of_result(mean):
        gradient = gradients[0]
        if relu:
            positive = _normalize(groups, mean, variance, scale, bias, epsilon, dtype, relu) > 0
            gradient = jnp.where(positive, gradient, 0)
        return gradient.astype(jnp.float32)

    x, gradient = groups.astype(jnp.float32), of_result(mean)
    count = x[0].size // x.shape[-1]
    inverse = jax.lax.rsqrt(variance + epsilon)
    total, along_x = gradient.sum(_OF_GROUP), (gradient * x).sum(_OF_GROUP)
    if relu:
        # Computed anew, or the compiler writes the ReLU's gradient to memory, once to add it up and once to go on.
        mean, total, along_x = jax.lax.optimization_barrier((mean, total, along_x))
        gradient = of_result(mean)
    # Sums of the deviations x - mean would be no more exact, and a CPU's compiler would keep all deviations for them.
    along = along_x - mean * total
    slope = inverse * scale[None]
    of_groups = _over_group(slope) * (gradient - _over_group(total / count))
    of_groups -= (x - _over_group(mean)) * _over_group(slope * inverse**2 * along / count)
    return of_groups.astype(groups.dtype), (inverse * along).sum(0), total.sum(0)


_normalize_by_own.defvjp(_forward, _backward)


def _over_group(vectors: Array) -> Array:
    """[g, c] to [g, 1, 1, 1, c]."""
    return vectors[:, None, None, None]


def _normalize(groups, mean, variance, scale, bias, epsilon, dtype, relu):
    """Groups [g, n, h, w, c] by mean and variance [g, c] or [c]; scale and bias [c]; then, or not, a ReLU."""
    mean, variance, scale, bias = (v.reshape(-1, 1, 1, 1, v.shape[-1]) for v in (mean, variance, scale, bias))
    multiplier = jax.lax.rsqrt(variance + epsilon) * scale
    normal = ((groups.astype(jnp.float32) - mean) * multiplier + bias).astype(dtype)
    return nn.relu(normal) if relu else normal
