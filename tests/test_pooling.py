"""The maximum of nine slices is XLA's own maximum, bit for bit; and a GPU adds nothing in any order."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from resnet_jax.models import pooling
from resnet_jax.models.pooling import max_pool

BOTH, END = ((1, 1), (1, 1)), ((0, 1), (0, 1))


def gradient(pool):
    """Of a sum in which every output has its own weight."""

    def total(x):
        y = pool(x)
        return jnp.sum(y * jnp.arange(1, y.size + 1, dtype=y.dtype).reshape(y.shape) / y.size)

    return jax.jit(jax.grad(total))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("padding", "sides"), [(BOTH, (16, 16)), (BOTH, (9, 14)), (END, (16, 12))])
def test_values_and_gradients_are_those_of_xla_bit_for_bit(dtype, padding, sides):
    # After a ReLU half of the values are equal.
    x = nn.relu(jax.random.normal(jax.random.key(0), (4, *sides, 3))).astype(dtype)

    def slices(x):
        return pooling._largest_slice(x, padding)

    def own(x):
        return nn.max_pool(x, (3, 3), (2, 2), padding)

    # As it is, and as it is on the way to its gradient.
    differentiated = jax.jit(lambda x: jax.vjp(slices, x)[0])
    values = [(jax.jit(slices)(x), own(x)), (differentiated(x), own(x))]
    for made, wanted in (*values, (gradient(slices)(x), gradient(own)(x))):
        np.testing.assert_array_equal(np.asarray(made, np.float32), np.asarray(wanted, np.float32))


def test_the_gradient_keeps_one_byte_a_window():
    x = jnp.zeros((1, 8, 8, 1), jnp.bfloat16)
    _, pull = jax.vjp(lambda x: pooling._largest_slice(x, BOTH), x)
    # The images themselves give their shape alone, and are in no compiled program.
    assert {(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(pull)} == {
        (x.shape, "bfloat16"),
        ((1, 4, 4, 1), "uint8"),
    }


@pytest.mark.parametrize("place", [(0, 0), (3, 4), (7, 7)])
def test_what_is_not_a_number_is_not_lost(place):
    x = jnp.zeros((1, 8, 8, 1)).at[0, *place, 0].set(jnp.nan)
    value, _ = jax.vjp(lambda x: pooling._largest_slice(x, BOTH), x)
    assert bool(jnp.isnan(value).any())


@pytest.mark.parametrize(("platform", "scatters"), [("cuda", False), ("rocm", False), ("cpu", False), ("tpu", True)])
def test_only_a_tpu_s_program_scatters(platform, scatters):
    x = jnp.zeros((2, 8, 8, 3))
    program = gradient(lambda x: max_pool(x, BOTH)).trace(x).lower(lowering_platforms=(platform,)).as_text()
    assert bool(re.search("scatter", program)) == scatters
