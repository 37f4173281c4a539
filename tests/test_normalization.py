"""Batch normalization: its arithmetic, its two switches, its groups, and its frozen form."""

from functools import cache, partial
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from random_variables import random_images, random_variables

from resnet_jax.models.normalization import BatchNorm, FrozenBatchNorm, freeze_batch_norm
from resnet_jax.models.registry import create_model

CHANNELS = 5
MOMENTUM, EPSILON = 0.9, 1e-5


@pytest.fixture(scope="module")
def x():
    random = np.random.default_rng(0)
    return jnp.asarray(random.normal(random.normal(size=CHANNELS), 2.0, (8, 3, 4, CHANNELS)), jnp.float32)


@pytest.fixture(scope="module")
def variables():
    random = np.random.default_rng(1)
    mean, bias = random.normal(size=(2, CHANNELS)).astype(np.float32)
    var, scale = random.uniform(0.5, 1.5, (2, CHANNELS)).astype(np.float32)
    return {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}


@cache
def compiled(layer):
    return jax.jit(lambda variables, x: layer.apply(variables, x, mutable=["batch_stats"]))


def apply(variables, x, *, use_running_average=False, update_statistics=True, **options):
    """Output and new statistics."""
    output, new = compiled(BatchNorm(use_running_average, update_statistics, **options))(variables, x)
    return output, new["batch_stats"]


def normalized(x, mean, var, params):
    """The paper's formula in numpy, in double precision."""
    x, mean, var = (np.asarray(array, np.float64) for array in (x, mean, var))
    return (x - mean) / np.sqrt(var + EPSILON) * params["scale"] + params["bias"]


def moments(x):
    """Mean and biased variance over all axes but the last."""
    x = np.asarray(x, np.float64)
    return x.mean((0, 1, 2)), x.var((0, 1, 2), ddof=0)


def moved(old, new):
    return MOMENTUM * np.asarray(old, np.float64) + (1 - MOMENTUM) * new


@pytest.mark.parametrize("update_statistics", [True, False], ids=["update", "keep"])
@pytest.mark.parametrize("use_running_average", [True, False], ids=["running", "batch"])
def test_the_two_switches_act_each_on_its_own(variables, x, use_running_average, update_statistics):
    output, new = apply(variables, x, use_running_average=use_running_average, update_statistics=update_statistics)
    old, batch = variables["batch_stats"], moments(x)
    used = (old["mean"], old["var"]) if use_running_average else batch
    np.testing.assert_allclose(output, normalized(x, *used, variables["params"]), rtol=1e-5, atol=1e-5)
    if update_statistics:
        np.testing.assert_allclose(new["mean"], moved(old["mean"], batch[0]), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(new["var"], moved(old["var"], batch[1]), rtol=1e-5, atol=1e-6)
    else:
        jax.tree.map(np.testing.assert_array_equal, new, old)


def test_without_an_update_the_statistics_need_not_be_mutable(variables, x):
    for use_running_average in (True, False):
        BatchNorm(use_running_average, update_statistics=False).apply(variables, x)


@pytest.mark.parametrize("group_size", [1, 2, 4, 8])
def test_groups_are_normalised_separately_and_the_statistics_are_their_average(variables, x, group_size):
    output, new = apply(variables, x, group_size=group_size)
    parts = [apply(variables, x[i : i + group_size]) for i in range(0, len(x), group_size)]
    np.testing.assert_allclose(output, np.concatenate([part for part, _ in parts]), rtol=1e-5, atol=1e-5)
    for name in ("mean", "var"):
        average = np.mean([statistics[name] for _, statistics in parts], 0)
        np.testing.assert_allclose(new[name], average, rtol=1e-5, atol=1e-6)


def test_groups_do_not_matter_to_running_statistics(variables, x):
    grouped, whole = (
        apply(variables, x, use_running_average=True, update_statistics=False, group_size=size)[0] for size in (2, None)
    )
    np.testing.assert_array_equal(grouped, whole)
    # 3 does not divide the batch, which is no hindrance where no statistics are taken: the last batch may be short.
    apply(variables, x, use_running_average=True, update_statistics=False, group_size=3)


@pytest.mark.parametrize("group_size", [3, 16, 0, -1])
def test_groups_that_do_not_divide_the_batch_are_an_error(variables, x, group_size):
    with pytest.raises(ValueError, match=rf"bn_group_size={group_size} does not divide the batch of 8 examples"):
        apply(variables, x, group_size=group_size)


def test_initial_values(x):
    layer = BatchNorm(use_running_average=False, update_statistics=True)
    initial = layer.init(jax.random.key(0), x)
    # Initialising must not count as a step: the statistics are still those of no data.
    assert jax.tree.map(lambda leaf: set(leaf.tolist()), initial) == {
        "params": {"scale": {1.0}, "bias": {0.0}},
        "batch_stats": {"mean": {0.0}, "var": {1.0}},
    }


def test_bfloat16_output_with_float32_statistics(variables, x):
    exact = normalized(x.astype(jnp.bfloat16), *moments(x.astype(jnp.bfloat16)), variables["params"])
    output, new = apply(variables, x.astype(jnp.bfloat16), dtype=jnp.bfloat16)
    assert output.dtype == jnp.bfloat16
    assert new["mean"].dtype == new["var"].dtype == jnp.float32
    # Rounded once, at the end: half a unit of the eighth bit.
    np.testing.assert_allclose(np.asarray(output, np.float64), exact, rtol=2.0**-8, atol=1e-5)
    expected = moved(variables["batch_stats"]["mean"], moments(x.astype(jnp.bfloat16))[0])
    np.testing.assert_allclose(new["mean"], expected, rtol=1e-5, atol=1e-6)


def by_definition(params, x, group_size):
    """In two passes, as JAX differentiates it."""
    groups = x.astype(jnp.float32).reshape(-1, group_size or len(x), *x.shape[1:])
    mean = groups.mean((1, 2, 3), keepdims=True)
    var = jnp.square(groups - mean).mean((1, 2, 3), keepdims=True)
    scale, bias = (params[name].reshape(1, 1, 1, 1, -1) for name in ("scale", "bias"))
    return ((groups - mean) / jnp.sqrt(var + EPSILON) * scale + bias).reshape(x.shape)


@pytest.mark.parametrize("group_size", [None, 4, 2])
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
def test_gradients_go_through_mean_and_variance(variables, x, group_size, dtype, tolerance):
    x = x.astype(dtype)
    layer = BatchNorm(use_running_average=False, update_statistics=False, group_size=group_size, dtype=dtype)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=x.shape), jnp.float32)

    def gradients(function):
        return jax.jit(jax.grad(lambda params, x: (weights * function(params, x)).sum(), (0, 1)))(
            variables["params"], x
        )

    found = gradients(lambda params, x: layer.apply({**variables, "params": params}, x))
    expected = gradients(partial(by_definition, group_size=group_size))
    assert found[1].dtype == dtype

    def close(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())

    jax.tree.map(close, found, expected)


@pytest.mark.parametrize("relu", [False, True])
def test_second_derivatives_go_through_mean_and_variance(variables, x, relu):
    layer = BatchNorm(use_running_average=False, update_statistics=False, group_size=4, relu=relu)
    weights, along = np.random.default_rng(2).normal(size=(2, *x.shape)).astype(np.float32)

    def second(function):
        def first(x):
            return jax.grad(lambda x: (weights * jnp.square(function(x))).sum())(x)

        return jax.jit(jax.grad(lambda x: (along * first(x)).sum()))(x)

    def expected(x):
        y = by_definition(variables["params"], x, 4)
        return nn.relu(y) if relu else y

    expected = second(expected)
    found = second(lambda x: layer.apply(variables, x))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("group_size", [None, 2])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("use_running_average", [True, False], ids=["running", "batch"])
def test_a_relu_that_joins_is_one_that_follows(variables, x, group_size, dtype, use_running_average):
    x = x.astype(dtype)
    options = {"update_statistics": False, "group_size": group_size, "dtype": dtype}
    joined, alone = (BatchNorm(use_running_average, relu=relu, **options) for relu in (True, False))
    weights = jnp.asarray(np.random.default_rng(2).normal(size=x.shape), dtype)

    def outputs_and_gradients(function):
        @jax.jit
        def run(params, x):
            y, pull = jax.vjp(lambda params, x: function({**variables, "params": params}, x), params, x)
            return y, pull(weights)

        return run(variables["params"], x)

    found = outputs_and_gradients(joined.apply)
    expected = outputs_and_gradients(lambda variables, x: nn.relu(alone.apply(variables, x)))
    assert 0.2 < (found[0] == 0).mean() < 0.8
    np.testing.assert_array_equal(found[0], expected[0])
    # The same terms, which a compiler may add up in another order.
    tolerance = 1e-5 if dtype == jnp.float32 else 2.0**-7
    jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), found[1], expected[1])


def test_several_nets_at_once_have_each_its_own_gradient(variables, x):
    layer = BatchNorm(use_running_average=False, update_statistics=False, group_size=4)

    def gradient(params, x):
        return jax.grad(lambda params: jnp.sin(layer.apply({**variables, "params": params}, x)).sum())(params)

    several = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), variables["params"])
    images = jnp.stack([x, x[::-1] + 1])
    found = jax.vmap(gradient)(several, images)
    one_by_one = [gradient(*jax.tree.map(itemgetter(number), (several, images))) for number in range(2)]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)


def test_a_constant_channel_gives_the_bias(variables):
    # The mean of the squares less the square of the mean is a little off zero here, below or above.
    x = jnp.broadcast_to(jnp.asarray([0.1, 3.3, 10.1, 17.7, 33.3])[None, None, None], (8, 3, 3, CHANNELS))
    output, _ = apply(variables, x)
    bias = np.broadcast_to(variables["params"]["bias"], x.shape)
    # A few roundings of 33.3, 2e-5, over the square root of epsilon.
    np.testing.assert_allclose(output, bias, rtol=0, atol=2e-2)


def test_frozen_layer_is_the_running_average_layer(variables, x):
    expected = BatchNorm(use_running_average=True, update_statistics=False).apply(variables, x)
    frozen = freeze_batch_norm(variables)
    assert frozen["params"] == {}
    np.testing.assert_array_equal(FrozenBatchNorm().apply(frozen, x), expected)
    np.testing.assert_array_equal(FrozenBatchNorm(relu=True).apply(frozen, x), nn.relu(expected))


@pytest.mark.parametrize(
    "options",
    [{}, {"shortcut": "B", "activation_order": "pre"}, {"shortcut": "C", "scan": True}],
    ids=["post", "pre", "scan"],
)
def test_frozen_net_gives_the_same_outputs_and_has_no_norm_to_train(options):
    shape, sizes = (8, 8, 3), (1, 3)
    net, frozen_net = (create_model("cifar_resnet8", stage_sizes=sizes, norm=n, **options) for n in ("batch", "frozen"))
    variables, images = random_variables(net, shape, train=False), random_images(4, shape)
    frozen = freeze_batch_norm(variables)
    # The very tree that the frozen net asks for, and nothing lost on the way.
    wanted = jax.eval_shape(lambda x: frozen_net.init(jax.random.key(0), x, train=False), images)
    assert jax.tree.map(jnp.shape, frozen) == jax.tree.map(jnp.shape, wanted)
    assert sum(leaf.size for leaf in jax.tree.leaves(frozen)) == sum(leaf.size for leaf in jax.tree.leaves(variables))

    expected = jax.jit(lambda v, x: net.apply(v, x, train=False))(variables, images)
    for train in (False, True):
        actual = jax.jit(lambda v, x, t=train: frozen_net.apply(v, x, train=t))(frozen, images)
        np.testing.assert_array_equal(actual, expected, err_msg=f"train={train}")

    def loss(params):
        return jnp.square(frozen_net.apply({**frozen, "params": params}, images, train=True)).mean()

    gradients = jax.eval_shape(jax.grad(loss), frozen["params"])
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(gradients)}
    assert not [name for name in names if "norm" in name or "scale" in name]
    assert (
        len(names) == len([p for p, _ in jax.tree.leaves_with_path(variables["params"]) if p[-1].key == "kernel"]) + 1
    )
