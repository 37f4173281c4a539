"""SGD's arithmetic against the equations, and which parameters decay."""

import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.training.optimizers import is_kernel, sgd

PARAMS = {"conv": {"kernel": jnp.array([2.0])}, "norm": {"scale": jnp.array([3.0]), "bias": jnp.array([1.0])}}
GRADIENTS = {
    "conv": {"kernel": jnp.array([0.5])},
    "norm": {"scale": jnp.array([0.5]), "bias": jnp.array([0.5])},
}


def two_directions(**options):
    optimizer = sgd(**{"momentum": 0.9, "nesterov": False, "weight_decay": 0.1, "decay": "kernels", **options})
    state = optimizer.init(PARAMS)
    first, state = optimizer.update(GRADIENTS, state, PARAMS)
    second, _ = optimizer.update(GRADIENTS, state, PARAMS)
    return first, second


def test_decay_joins_the_gradient_before_the_momentum():
    first, second = two_directions()
    g = 0.5 + 0.1 * 2.0
    np.testing.assert_allclose(first["conv"]["kernel"], [g], rtol=1e-6)
    np.testing.assert_allclose(second["conv"]["kernel"], [0.9 * g + g], rtol=1e-6)


def test_only_kernels_decay_unless_all_is_asked_for():
    assert is_kernel(PARAMS) == {"conv": {"kernel": True}, "norm": {"scale": False, "bias": False}}
    kernels, _ = two_directions(decay="kernels")
    everything, _ = two_directions(decay="all")
    np.testing.assert_allclose(kernels["norm"]["scale"], [0.5])
    np.testing.assert_allclose(everything["norm"]["scale"], [0.5 + 0.1 * 3.0], rtol=1e-6)


def test_nesterov_looks_ahead():
    g = 0.5 + 0.1 * 2.0
    first, _ = two_directions(nesterov=True)
    np.testing.assert_allclose(first["conv"]["kernel"], [g + 0.9 * g], rtol=1e-6)


def test_unknown_decay_is_refused():
    with pytest.raises(ValueError, match="decay='weights' is not one of kernels, all"):
        two_directions(decay="weights")
