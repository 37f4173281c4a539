"""The per-class network: outputs of some anchors or classes alone are parts of all outputs; padding is not seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from resnet_jax.detection.settings import Anchors
from resnet_jax.localization.per_class_rpn import PerClassRpn
from resnet_jax.localization.region_net import RegionNet
from resnet_jax.localization.starting import starting_bias, with_trunk
from resnet_jax.models.resnet import ResNet

NET = ResNet((1, 1), num_classes=9, stem="imagenet", width=4)
RPN = PerClassRpn(NET, 3, Anchors((8.0, 12.0), (0.5, 1.0, 2.0)))
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 24, 32, 3)).astype(np.float32))


@pytest.fixture(scope="module")
def variables():
    return random_variables(RPN, IMAGES.shape[1:], train=False)


def call(module, variables, *inputs, **options):
    """`apply`, compiled as a whole: one by one, the operations take longer to compile."""
    return jax.jit(lambda variables, *inputs: module.apply(variables, *inputs, **options))(variables, *inputs)


def started(module, regions):
    """The variables that a module starts with, compiled as a whole."""
    return jax.jit(lambda images: module.init(jax.random.key(0), images, train=False))(regions)


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * float(np.abs(expected).max()))


def test_each_anchor_has_a_logit_and_four_offsets_of_each_class(variables):
    logits, offsets = call(RPN, variables, IMAGES, train=False)
    positions = (24 // 8) * (32 // 8)
    assert logits.shape == (2, positions * 6, 3) and offsets.shape == (2, positions * 6, 3, 4)
    assert RPN.stride == 8
    features = call(RPN, variables, IMAGES, train=False, method="features")
    anchors = RPN.all_anchors(features)
    assert anchors.shape == (positions * 6, 4)
    # The second position of the second row, six anchors each.
    np.testing.assert_array_equal((anchors[30:36, :2] + anchors[30:36, 2:]) / 2, np.full((6, 2), 8.0))
    # The convolution itself: position (1, 1), anchor 2, class 1 of the second image.
    kernel = variables["params"]["regressor"]["kernel"].reshape(-1, 6, 3, 4)
    bias = variables["params"]["regressor"]["bias"].reshape(6, 3, 4)
    close(offsets[1, 32, 1], features[1, 1, 1] @ kernel[:, 2, 1] + bias[2, 1])


def test_some_classes_and_some_anchors_are_slices_of_everything(variables):
    logits, offsets = call(RPN, variables, IMAGES, train=False)
    features = call(RPN, variables, IMAGES, train=False, method="features")
    labels = jnp.array([[2, 0], [1, 1]])
    some = call(RPN, variables, features, labels, method="of_classes")
    close(some[0], np.stack([logits[k][:, labels[k]].T for k in range(2)]))
    close(some[1], np.stack([offsets[k][:, labels[k]].swapaxes(0, 1) for k in range(2)]))
    chosen, own = jnp.array([[71, 0, 13], [40, 40, 5]]), jnp.array([1, 2])
    some = call(RPN, variables, features, chosen, own, method="at_anchors")
    close(some[0], np.stack([logits[k][chosen[k]] for k in range(2)]))
    close(some[1], np.stack([offsets[k][chosen[k], own[k]] for k in range(2)]))


@pytest.mark.parametrize("order", ["post", "pre"])
def test_padding_has_no_influence(order):
    rpn = RPN.clone(net=NET.clone(activation_order=order))
    variables = random_variables(rpn, IMAGES.shape[1:], train=False)
    canvas = np.full((1, 32, 48, 3), np.nan, np.float32)
    canvas[0, :21, :27] = IMAGES[0, :21, :27]
    alone = np.zeros((1, 24, 32, 3), np.float32)
    alone[0, :21, :27] = IMAGES[0, :21, :27]
    size = np.array([[21, 27]])
    found = call(rpn, variables, jnp.asarray(canvas), train=False, sizes=size, method="features")
    expected = call(rpn, variables, jnp.asarray(alone), train=False, sizes=size, method="features")
    assert np.any(expected[:, :3, :4])
    close(found[:, :3, :4], expected)


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_batch_normalization_is_the_net_s(norm):
    rpn = RPN.clone(net=NET.clone(norm=norm))
    variables = random_variables(rpn, IMAGES.shape[1:], train=False)
    options = {"train": True, "mutable": ["batch_stats"], "method": "features"}
    found, updated = call(rpn, variables, IMAGES, **options)
    alone, _ = call(rpn, variables, IMAGES[:1], **options)
    moved = jax.tree.map(lambda old, new: bool((old != new).any()), variables["batch_stats"], updated["batch_stats"])
    assert any(jax.tree.leaves(moved)) == (norm == "batch")
    # Only statistics of the batch let images influence each other.
    assert np.allclose(found[:1], alone, atol=1e-4) == (norm == "frozen")


def test_logits_start_at_a_class_s_share_of_what_is_sampled():
    variables = started(RPN, IMAGES)
    logits, _ = call(RPN, variables, 0 * IMAGES, train=False)
    np.testing.assert_allclose(jax.nn.sigmoid(logits), 1 / 6, atol=1e-3)
    assert jax.nn.sigmoid(starting_bias(1000)) == pytest.approx(1 / 2000)


@pytest.mark.parametrize("kind", [RPN, RegionNet(NET, 3, 16)])
def test_a_localizer_goes_on_from_a_classification_net(kind):
    regions = IMAGES[:, :16, :16]
    variables = started(kind, regions)
    trained = random_variables(NET, regions.shape[1:], train=False)
    found = with_trunk(variables, trained)
    assert jax.tree.structure(found) == jax.tree.structure(variables)
    names = set(trained["params"]) - {"classifier"}
    for name in names:
        jax.tree.map(np.testing.assert_array_equal, found["params"]["trunk"][name], trained["params"][name])
    assert set(found["params"]["trunk"]) == names
    jax.tree.map(np.testing.assert_array_equal, found["batch_stats"]["trunk"], trained["batch_stats"])
    for name in ("classifier", "regressor"):
        jax.tree.map(np.testing.assert_array_equal, found["params"][name], variables["params"][name])
    other = random_variables(NET.clone(width=8), regions.shape[1:], train=False)
    with pytest.raises(ValueError, match="the net's [a-z_]* are not those of the trunk; the first to differ: .'stage1"):
        with_trunk(variables, other)


def test_regions_have_one_size():
    net = RegionNet(NET, 3, 16)
    variables = started(net, IMAGES[:1, :16, :16])
    logits, offsets = call(net, variables, jnp.zeros((5, 16, 16, 3)), train=False)
    assert logits.shape == (5, 3) and offsets.shape == (5, 3, 4)
    np.testing.assert_allclose(jax.nn.sigmoid(logits), 1 / 6, atol=1e-3)
    with pytest.raises(ValueError, match=r"regions of \(24, 32\) pixels .* region_size=16"):
        net.apply(variables, IMAGES, train=False)
