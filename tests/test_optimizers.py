"""The optimizers' arithmetic against the equations, and which parameters decay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.training.optimizers import is_kernel, lamb, optimizer_named, sgd

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


def test_clipping_scales_a_gradient_that_is_too_long_and_leaves_a_short_one():
    length = np.sqrt(3 * 0.5**2)
    clipped, _ = two_directions(clip_norm=0.1, weight_decay=0.0)
    np.testing.assert_allclose([float(leaf[0]) for leaf in jax.tree.leaves(clipped)], 0.5 * 0.1 / length, rtol=1e-6)
    untouched, _ = two_directions(clip_norm=1.0)
    jax.tree.map(np.testing.assert_array_equal, untouched, two_directions()[0])


@pytest.mark.parametrize("name", ["sgd", "lamb"])
def test_a_clip_norm_of_zero_is_refused(name):
    with pytest.raises(ValueError, match="clip_norm=0.0: choose a norm above 0"):
        optimizer_named(name, momentum=0.9, nesterov=False, weight_decay=0.1, decay="all", clip_norm=0.0)


def lamb_by_hand(weights, gradients, *, momentum, weight_decay, scaled):
    """Directions after each gradient (You et al. 2020, algorithm 2), with fixed weights, in double precision."""
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    for step, gradient in enumerate(gradients, 1):
        first = momentum * first + (1 - momentum) * gradient
        second = 0.999 * second + 0.001 * gradient**2
        adam = (first / (1 - momentum**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-6)
        if not scaled:
            yield adam
            continue
        direction = adam + weight_decay * weights
        yield direction * np.linalg.norm(weights) / np.linalg.norm(direction)


@pytest.mark.parametrize("decay", ["kernels", "all"])
def test_lamb_is_the_equation(decay):
    random = np.random.default_rng(0)
    params = {"conv": {"kernel": random.normal(size=(3, 4))}, "norm": {"scale": random.normal(size=4)}}
    gradients = [jax.tree.map(lambda leaf: random.normal(size=leaf.shape), params) for _ in range(3)]

    def single(tree):
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)

    optimizer = lamb(momentum=0.9, weight_decay=0.02, decay=decay)
    state = optimizer.init(single(params))
    for step, gradient in enumerate(gradients):
        found, state = optimizer.update(single(gradient), state, single(params))
        for layer, name in (("conv", "kernel"), ("norm", "scale")):
            expected = list(
                lamb_by_hand(
                    params[layer][name],
                    [tree[layer][name] for tree in gradients],
                    momentum=0.9,
                    weight_decay=0.02,
                    scaled=decay == "all" or name == "kernel",
                )
            )
            np.testing.assert_allclose(found[layer][name], expected[step], rtol=1e-4, err_msg=f"{name} {step}")


def test_lamb_moves_a_kernel_of_zeros():
    params = {"classifier": {"kernel": jnp.zeros((2, 2))}}
    optimizer = lamb(momentum=0.9, weight_decay=0.02, decay="kernels")
    direction, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(direction["classifier"]["kernel"], 1.0, rtol=1e-5)


def test_optimizers_have_names_and_the_same_settings():
    settings = {"momentum": 0.9, "nesterov": False, "weight_decay": 0.1, "decay": "kernels", "clip_norm": None}
    for name, function in (("sgd", sgd), ("lamb", lamb)):
        named, expected = optimizer_named(name, **settings), function(**settings)
        found, _ = named.update(GRADIENTS, named.init(PARAMS), PARAMS)
        jax.tree.map(np.testing.assert_array_equal, found, expected.update(GRADIENTS, expected.init(PARAMS), PARAMS)[0])
    with pytest.raises(ValueError, match="optimizer='adam' is not one of sgd, lamb"):
        optimizer_named("adam", **settings)


def test_lamb_refuses_nesterov_and_an_unknown_decay():
    with pytest.raises(ValueError, match="nesterov=True: lamb has no such form"):
        lamb(momentum=0.9, weight_decay=0.1, decay="all", nesterov=True)
    with pytest.raises(ValueError, match="decay='weights' is not one of kernels, all"):
        lamb(momentum=0.9, weight_decay=0.1, decay="weights")
