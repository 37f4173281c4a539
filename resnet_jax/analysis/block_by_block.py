"""A net one block at a time, so that memory holds one block's outputs and as few programs are compiled as differ."""

from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from resnet_jax.models.blocks import Conv, Norm
from resnet_jax.models.normalization import BatchNorm, FrozenBatchNorm
from resnet_jax.models.resnet import ResNet

# (the part's variables, its input) -> its output, and by 3x3 layer the mean and variance of its responses over
# positions, [n, c] each.
Part = Callable[[dict, Any], tuple[Any, OrderedDict[str, tuple[Any, Any]]]]


# Kept, as is what is compiled: a net that trains is looked at again and again.
@lru_cache(maxsize=8)
def parts_of(model: ResNet, *, use_running_average: bool = True) -> tuple[tuple[str, Part], ...]:
    """The stem and every block of the unrolled net by name, in forward order, as functions of variables and input.

    Args:
      model: with scan=True it has the same parts; the variables are to be unstacked.
      use_running_average: normalise by the running statistics, or else by the input's own.
    """
    norm = _with_relu_apart(model.make_norm(use_running_average=use_running_average, update_statistics=False))
    parts = [("stem", _compiled(model.make_stem(norm)))]
    for stage, size in enumerate(model.stage_sizes, 1):
        first, other = (_compiled(model.make_block(stage, norm, first=first)) for first in (True, False))
        parts += [(f"stage{stage}_block{index}", first if index == 1 else other) for index in range(1, size + 1)]
    return tuple(parts)


def _with_relu_apart(norm: Callable[..., nn.Module]) -> Norm:
    """The same constructor, whose layers' outputs are those before the ReLU, which follows them."""

    def make(*, relu: bool = False, **options: Any) -> Callable[[Array], Array]:
        layer = norm(**options)
        return (lambda x: nn.relu(layer(x))) if relu else layer

    return make


def _compiled(module: nn.Module) -> Part:
    @jax.jit
    def run(variables: dict, x: Array) -> tuple[Array, OrderedDict[str, tuple[Array, Array]]]:
        # Ordered, since jit sorts a dict by its keys.
        found: OrderedDict[str, tuple[Array, Array]] = OrderedDict()
        convolution: Conv | None = None

        def record(next_function, args, kwargs, context):
            nonlocal convolution
            output = next_function(*args, **kwargs)
            if isinstance(context.module, Conv):
                convolution = context.module
            elif isinstance(context.module, BatchNorm | FrozenBatchNorm) and convolution and convolution.size == 3:
                # Each normalization follows its own convolution.
                responses = output.astype(jnp.float32)
                found["/".join(convolution.path)] = (responses.mean((1, 2)), responses.var((1, 2)))
            return output

        with nn.intercept_methods(record):
            x = cast(Array, module.apply(variables, x))
        return x, found

    return run
