"""Each quantity of a diagnosis against one that is known: by hand, from a dense matrix, or by another way."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from random_variables import random_images, random_variables

from resnet_jax.diagnostics.activations import activations
from resnet_jax.diagnostics.curvature import hessian_product, make_curvature
from resnet_jax.diagnostics.gradients import norm_by_layer, spread_by_stage
from resnet_jax.diagnostics.lanczos import lanczos_start, lanczos_step, ritz_values
from resnet_jax.diagnostics.landscape import between, filter_normalized_direction, make_landscape
from resnet_jax.diagnostics.loss import make_loss
from resnet_jax.diagnostics.noise_scale import make_noise_scale, noise_scale
from resnet_jax.diagnostics.spectra import largest_singular_value, layer_singular_values
from resnet_jax.diagnostics.stages import largest_by_stage, means_by_stage
from resnet_jax.diagnostics.updates import ratio_by_layer, ratio_by_stage
from resnet_jax.models.convolution import convolution
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.stacking import stack_blocks

IMAGE = (4, 4, 2)


def tiny(**options):
    return ResNet(**{"stage_sizes": (1,), "num_classes": 3, "stem": "cifar", "shortcut": "A", "width": 2, **options})


def batch(count=8):
    return random_images(count, IMAGE), jnp.arange(count) % 3


def tree(**values):
    """Parameters of two stages, of one layer with one array each but for the first block, which has two layers."""
    kernel, bias, other, classifier = (jnp.asarray(values.get(key, [1.0])) for key in "abcd")
    block = {"conv1": {"kernel": kernel, "bias": bias}, "conv2": {"kernel": other}}
    return {"stage1_block1": block, "classifier": {"kernel": classifier}}


# Layers and stages


def test_norms_quantiles_and_zeros_are_of_all_elements_of_a_stage():
    gradients = tree(a=[3.0, 0.0], b=[-4.0], c=[0.0, 12.0], d=[2.0])
    norms = norm_by_layer(gradients)
    assert norms == {"stage1_block1/conv1": 5, "stage1_block1/conv2": 12, "classifier": 2}
    spread = spread_by_stage(gradients)["stage1"]
    assert spread.norm == 13 and spread.zeros == pytest.approx(2 / 5)
    # Of 0, 0, 3, 4, 12.
    np.testing.assert_allclose(spread.quantiles, [0, 3, 4 + 0.6 * 8], rtol=1e-6)


def test_ratios_are_norms_of_updates_by_norms_of_weights():
    weights = tree(a=[3.0, 0.0], b=[4.0], c=[0.0, 12.0], d=[2.0])
    update = tree(a=[0.0, 0.6], b=[0.8], c=[2.4, 0.0], d=[-1.0])
    assert ratio_by_layer(weights, update) == pytest.approx(
        {"stage1_block1/conv1": 0.2, "stage1_block1/conv2": 0.2, "classifier": 0.5}
    )
    assert ratio_by_stage(weights, update) == pytest.approx(
        {"stage1": (0.6**2 + 0.8**2 + 2.4**2) ** 0.5 / 13, "classifier": 0.5}
    )


def test_a_stage_has_the_mean_and_the_largest_of_its_layers():
    values = {"stem": 1.0, "stage1_block1/conv1": 2.0, "stage1_block2/conv1": 4.0}
    assert means_by_stage(values) == {"stem": 1, "stage1": 3} and largest_by_stage(values) == {"stem": 1, "stage1": 4}


def test_scanned_blocks_have_the_names_and_values_of_the_unrolled_net():
    net = tiny(stage_sizes=(2,))
    variables = random_variables(net, IMAGE, train=False)
    stacked = stack_blocks(variables)
    assert norm_by_layer(stacked["params"]) == norm_by_layer(variables["params"])
    assert "stage1_block2/conv2" in norm_by_layer(stacked["params"])
    images, _ = batch()
    assert activations(net.clone(scan=True), stacked, images) == activations(net, variables, images)
    scanned = layer_singular_values(net.clone(scan=True), stacked, IMAGE, steps=3)
    assert scanned == layer_singular_values(net, variables, IMAGE, steps=3)


# Activations


def test_activations_are_those_of_the_net_by_batch_statistics():
    net = tiny(stage_sizes=(1, 1), bn_group_size=4)
    variables = random_variables(net, IMAGE, train=False)
    images, _ = batch()
    found = activations(net, variables, images)
    options = {"train": False, "use_running_average": False, "update_statistics": False, "return_features": True}
    _, features = jax.jit(partial(net.apply, **options))(variables, images)
    for name, feature in {"stem": "stem", "stage1_block1": "stage1", "stage2_block1": "stage2"}.items():
        x = features[feature]
        expected = x.mean(), x.std(), (x == 0).mean()
        np.testing.assert_allclose((found.means[name], found.stds[name], found.zeros[name]), expected, rtol=1e-5)
    # A layer's normalization gives each channel its gamma as standard deviation and its beta as mean.
    gamma_beta = variables["params"]["stage1_block1"]["norm2"]
    expected = np.sqrt(np.square(gamma_beta["scale"]).mean() + np.var(gamma_beta["bias"]))
    assert found.responses["stage1_block1/conv2"] == pytest.approx(expected, rel=1e-3)
    assert list(found.responses)[0] == "stem/conv" and len(found.responses) == 5


def test_pre_activation_nets_have_no_responses_and_frozen_ones_are_measured_too():
    images, _ = batch()
    for order in ("pre", "norm_after_addition"):
        net = tiny(activation_order=order)
        assert activations(net, random_variables(net, IMAGE, train=False), images).responses == {}
    net = tiny(norm="frozen")
    assert len(activations(net, random_variables(net, IMAGE, train=False), images).responses) == 3


# Spectra


def symmetric(eigenvalues):
    vectors, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(len(eigenvalues),) * 2))
    return jnp.asarray(vectors * np.asarray(eigenvalues) @ vectors.T, jnp.float32)


@pytest.mark.parametrize(
    ("eigenvalues", "steps", "expected"),
    [(np.linspace(-7, 3, 20), 20, (-7, 3)), ([-5, -4, -3, -2], 12, (-5, -2)), ([-3.0], 2, (-3, -3))],
    ids=["indefinite", "all negative, more steps than numbers", "one number, two steps"],
)
def test_lanczos_finds_both_ends_of_a_spectrum(eigenvalues, steps, expected):
    matrix = symmetric(eigenvalues)
    step = jax.jit(lambda at: lanczos_step(lambda tree: {"x": matrix @ tree["x"]}, at))
    at, found = lanczos_start({"x": jnp.arange(1.0, 1 + len(matrix))}), []
    for _ in range(steps):
        at = step(at)
        found.append((at.diagonal, at.beside))
    values = ritz_values(*zip(*jax.device_get(found), strict=True))
    np.testing.assert_allclose((values[0], values[-1]), expected, rtol=1e-4)
    assert np.isnan(ritz_values([1.0, np.nan], [1.0, 1.0])).all()


def test_singular_values_are_those_of_the_dense_matrices():
    net = tiny(stage_sizes=(1, 1), shortcut="B")
    variables = random_variables(net, IMAGE, train=False)
    found = layer_singular_values(net, variables, IMAGE, steps=40)
    assert list(found) == [
        *("stem/conv", "stage1_block1/conv1", "stage1_block1/conv2", "stage2_block1/conv1", "stage2_block1/conv2"),
        *("stage2_block1/shortcut/conv", "classifier"),
    ]
    inputs = {
        "stem/conv": (IMAGE, 1, 1),
        "stage2_block1/conv1": ((4, 4, 2), 2, 1),
        "stage2_block1/shortcut/conv": ((4, 4, 2), 2, 0),
    }
    for name, (shape, stride, pad) in inputs.items():
        kernel = variables["params"]
        for part in (*name.split("/"), "kernel"):
            kernel = kernel[part]
        basis = jnp.eye(int(np.prod(shape))).reshape(-1, *shape)
        dense = convolution(basis, kernel, (stride, stride), ((pad, pad), (pad, pad)))
        assert found[name] == pytest.approx(np.linalg.norm(np.asarray(dense).reshape(len(basis), -1), 2), rel=1e-3)
    classifier = variables["params"]["classifier"]["kernel"]
    assert found["classifier"] == pytest.approx(np.linalg.norm(np.asarray(classifier), 2), rel=1e-3)


def test_a_map_to_nothing_has_the_singular_value_0():
    assert largest_singular_value(lambda x: 0 * x, (3,)) == 0


# Curvature


@pytest.mark.parametrize("sign", [1, -1])
def test_the_ends_of_the_hessians_spectrum_are_those_of_the_dense_matrix(sign):
    random = np.random.default_rng(0)
    inputs, targets, first, second = (
        jnp.asarray(random.normal(size=s), jnp.float32) for s in ((9, 3), (9,), (3, 5), (5,))
    )

    def loss(params, inputs, targets):
        return sign * jnp.square(jnp.tanh(inputs @ params["first"]) @ params["second"] - targets).mean()

    params = {"first": first, "second": second}
    flat, unflatten = ravel_pytree(params)
    dense = jax.jit(jax.hessian(lambda flat: loss(unflatten(flat), inputs, targets)))(flat)
    eigenvalues = np.linalg.eigvalsh(np.asarray(dense, np.float64))
    found = make_curvature(loss, steps=20)(params, inputs, targets)
    np.testing.assert_allclose(found, eigenvalues[[0, -1]], rtol=1e-3)
    assert eigenvalues[0] < 0 < eigenvalues[-1]


def test_the_hessian_of_a_net_is_symmetric():
    """It is only if the second derivatives of all layers are those of the same function."""
    net = tiny()
    variables = random_variables(net, IMAGE, train=False)
    loss, rest = make_loss(net), (variables["batch_stats"], *batch())
    random = np.random.default_rng(0)
    a, b = (
        jax.tree.map(lambda w: jnp.asarray(random.normal(size=w.shape), w.dtype), variables["params"]) for _ in "ab"
    )
    product = jax.jit(lambda vector: hessian_product(loss, variables["params"], vector, *rest))
    assert optax.tree.vdot(a, product(b)) == pytest.approx(float(optax.tree.vdot(b, product(a))), rel=1e-3)


def test_the_loss_is_that_of_the_step_without_dropout_by_batch_statistics():
    images, labels = batch()
    net = tiny(dropout_rate=0.5)
    variables = random_variables(net, IMAGE, train=False)
    found = jax.jit(make_loss(net, label_smoothing=0.1))(variables["params"], variables["batch_stats"], images, labels)
    logits, _ = jax.jit(partial(tiny().apply, train=True, mutable=["batch_stats"]))(variables, images)
    targets = optax.losses.smooth_labels(jax.nn.one_hot(labels, 3), 0.1)
    assert found == pytest.approx(float(optax.losses.softmax_cross_entropy(logits, targets).mean()), rel=1e-5)


# Noise


def test_the_noise_scale_of_exact_expectations_is_exact():
    square, trace = 4.0, 48.0
    found = noise_scale(square + trace / 8, square + trace / 64, small=8, large=64)
    assert (found.square, found.trace, found.scale) == pytest.approx((square, trace, 12.0))


def test_the_noise_scale_of_a_quadratic_is_the_variance_of_its_data_by_the_distance():
    data = jnp.asarray(np.random.default_rng(0).normal(scale=2.0, size=(256, 400)), jnp.float32)

    def loss(params, offset, images, labels):
        return jnp.square(params[None] - images + offset).sum(-1).mean() / 2

    params, offset = 0.5 * jnp.ones(400), 1.0
    found = make_noise_scale(loss, parts=8)(params, offset, data, jnp.zeros(256))
    # Of 400 numbers with variance 4 each, and 7 degrees of freedom: a standard deviation of 3 %.
    assert found.trace == pytest.approx(1600, rel=0.1)
    assert found.square == pytest.approx(400 * 1.5**2, rel=0.1)


@pytest.mark.parametrize(("small", "large"), [(0, 8), (8, 8), (9, 8)])
def test_batches_of_no_two_sizes_are_refused(small, large):
    with pytest.raises(ValueError, match=f"small={small} and large={large} examples: must be 1 <= small < large"):
        noise_scale(1.0, 1.0, small=small, large=large)


def test_what_cannot_be_estimated_is_refused():
    with pytest.raises(ValueError, match="parts=1: must be at least 2"):
        make_noise_scale(make_loss(tiny()), parts=1)
    with pytest.raises(ValueError, match="8 images do not split into 3 parts"):
        make_noise_scale(make_loss(tiny()), parts=3)({}, {}, *batch())
    with pytest.raises(ValueError, match="steps=0: must be at least 1"):
        make_curvature(make_loss(tiny()), steps=0)
    with pytest.raises(ValueError, match="steps=0: must be at least 1"):
        largest_singular_value(lambda x: x, (3,), steps=0)


# Landscape


def test_a_random_direction_has_filters_as_long_as_the_weights_and_leaves_vectors():
    params = random_variables(tiny(), IMAGE, train=False)["params"]
    direction = jax.jit(filter_normalized_direction)(jax.random.key(0), params)
    for path in (("stem", "conv"), ("classifier",)):
        own, drawn = params, direction
        for part in path:
            own, drawn = own[part], drawn[part]
        lengths = [
            np.linalg.norm(np.asarray(kernel).reshape(-1, kernel.shape[-1]), axis=0)
            for kernel in (own["kernel"], drawn["kernel"])
        ]
        np.testing.assert_allclose(*lengths, rtol=1e-5)
        assert not np.allclose(own["kernel"], drawn["kernel"], atol=0.1)
    assert not direction["classifier"]["bias"].any() and not direction["stem"]["norm"]["scale"].any()


def test_the_landscape_of_a_quadratic_is_that_quadratic():
    landscape = make_landscape(lambda params, centre: jnp.square(params["x"] - centre).sum())
    params, end = {"x": jnp.array([1.0, 2.0])}, {"x": jnp.array([3.0, 2.0])}
    xs, ys = [-1.0, 0.0, 0.5], [0.0, 2.0]
    directions = [between(params, end), {"x": jnp.array([0.0, 1.0])}]
    plane = landscape(params, directions, [xs, ys], jnp.zeros(2))
    np.testing.assert_allclose(plane, [[(1 + 2 * x) ** 2 + (2 + y) ** 2 for y in ys] for x in xs], rtol=1e-6)
    np.testing.assert_array_equal(landscape(params, directions[:1], [xs], jnp.zeros(2)), plane[:, :1])
    with pytest.raises(ValueError, match="2 directions and 1 sequences of positions"):
        landscape(params, directions, [xs], jnp.zeros(2))
