"""Blocks and nets of every activation order compute what the figure they are from shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from random_variables import random_images, random_variables

from resnet_jax import load_config
from resnet_jax.analysis.responses import layer_responses
from resnet_jax.detection.backbones import ResidualTail
from resnet_jax.models.arrangements import NORMS, ORDERS
from resnet_jax.models.blocks import BLOCKS, Conv
from resnet_jax.models.normalization import BatchNorm
from resnet_jax.models.registry import create_model

SHAPE = (8, 8, 3)
WIDTH = 2
# Figure 4 of "Identity mappings", (a) to (e), as it is drawn: each branch of two layers, and what follows the sum.
FIGURE = {
    "post": ("conv1 norm1 relu conv2 norm2", "relu"),
    "norm_after_addition": ("conv1 norm1 relu conv2", "sum_norm relu"),
    "relu_before_addition": ("conv1 norm1 relu conv2 norm2 relu", ""),
    "relu_only_pre": ("relu conv1 norm1 relu conv2 norm2", ""),
    "pre": ("norm1 relu conv1 norm2 relu conv2", ""),
}
# The same of three layers.
BOTTLENECK = {
    "post": ("conv1 norm1 relu conv2 norm2 relu conv3 norm3", "relu"),
    "norm_after_addition": ("conv1 norm1 relu conv2 norm2 relu conv3", "sum_norm relu"),
    "relu_before_addition": ("conv1 norm1 relu conv2 norm2 relu conv3 norm3 relu", ""),
    "relu_only_pre": ("relu conv1 norm1 relu conv2 norm2 relu conv3 norm3", ""),
    "pre": ("norm1 relu conv1 norm2 relu conv2 norm3 relu conv3", ""),
}
# What a projection takes and gives, with a normalization where the branch ends with a convolution and one.
PROJECTION = {
    "post": "conv norm",
    "norm_after_addition": "conv",
    "relu_before_addition": "conv norm",
    "relu_only_pre": "relu conv norm",
    "pre": "norm1 relu conv",
}


def norm(**options):
    return BatchNorm(use_running_average=True, update_statistics=False, **options)


def walk(words, variables, x, *, kind, strides=()):
    """Applies what the words name to x, one after the other, with the variables of these names."""
    strides, sizes = dict(strides), {"basic": {}, "bottleneck": {"conv1": 1, "conv3": 1}}[kind]
    for word in words.split():
        own = {name: tree[word] for name, tree in variables.items() if word in tree}
        if word == "relu":
            x = nn.relu(x)
        elif word.startswith("conv"):
            kernel = own["params"]["kernel"]
            size = 1 if word == "conv" else sizes.get(word, 3)
            assert kernel.shape[:2] == (size, size)
            x = Conv(kernel.shape[-1], size, strides.get(word, 1)).apply(own, x)
        else:
            x = norm().apply(own, x)
    return x


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("order", ORDERS)
def test_a_block_is_what_the_figure_shows(order, kind, stride):
    make, (branch, after) = BLOCKS[kind], (FIGURE if kind == "basic" else BOTTLENECK)[order]
    block = make(WIDTH, stride, norm, "B", ORDERS[order])
    x = random_images(2, (6, 6, WIDTH * make.expansion))
    variables = random_variables(block, x.shape[1:])
    y = walk(branch, variables, x, kind=kind, strides={"conv1": stride})
    shortcut = x
    if stride == 2:
        first = PROJECTION[order].split()
        entry, rest = [word for word in first if word in ("norm1", "relu")], [w for w in first if w in ("conv", "norm")]
        own = {name: tree["shortcut"] for name, tree in variables.items() if "shortcut" in tree}
        shortcut = walk(" ".join(entry), variables, x, kind=kind)
        shortcut = walk(" ".join(rest), own, shortcut, kind=kind, strides={"conv": 2})
        assert set(own["params"]) == set(rest)
    expected = walk(after, variables, y + shortcut, kind=kind)
    # All that there is was used: nothing but these layers has parameters.
    assert set(variables["params"]) - {"shortcut"} == set(f"{branch} {after}".split()) - {"relu"}
    np.testing.assert_allclose(block.apply(variables, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", ORDERS)
def test_a_net_begins_and_ends_as_its_blocks_need(order):
    model = create_model("cifar_resnet8", width=WIDTH, stage_sizes=(1,), activation_order=order)
    variables, images = random_variables(model, SHAPE, train=False), random_images(2, SHAPE)
    _, features = jax.jit(lambda v, x: model.apply(v, x, train=False, return_features=True))(variables, images)
    stem = {name: tree["stem"] for name, tree in variables.items() if "stem" in tree}
    words = {"pre": "", "relu_only_pre": "norm"}.get(order, "norm relu")
    # Its convolution is a 3x3 like any other, and only its name is that of a projection.
    x = Conv(WIDTH, 3).apply({"params": stem["params"]["conv"]}, images)
    np.testing.assert_allclose(features["stem"], walk(words, stem, x, kind="basic"), rtol=1e-4, atol=1e-5)
    end = {"pre": "final_norm relu", "relu_only_pre": "relu"}.get(order, "")
    expected = walk(end, variables, features["stage1"], kind="basic").mean((1, 2))
    np.testing.assert_allclose(features["pooled"], expected, rtol=1e-4, atol=1e-5)
    assert ("final_norm" in variables["params"]) == (order == "pre")


@pytest.mark.parametrize("order", ["relu_before_addition", "relu_only_pre"])
def test_responses_of_a_net_that_normalises_after_each_layer(order):
    model = create_model("cifar_resnet8", width=WIDTH, stage_sizes=(2,), activation_order=order, shortcut="C")
    variables, images = random_variables(model, SHAPE, train=False), random_images(3, SHAPE)
    found = layer_responses(model, variables, images)
    blocks = ("stage1_block1", "stage1_block2")
    assert [layer for layer, _ in found] == ["stem/conv", *(f"{block}/conv{n}" for block in blocks for n in (1, 2))]
    # The first is the spread behind the stem's normalization, before any ReLU.
    stem = {name: tree["stem"] for name, tree in variables.items()}
    x = Conv(WIDTH, 3).apply({"params": stem["params"]["conv"]}, images)
    assert found[0].std == pytest.approx(float(walk("norm", stem, x, kind="basic").std()), rel=1e-4)


def test_what_cannot_be_without_the_normalization_of_a_sum_is_refused():
    images = jnp.zeros((1, *SHAPE))
    model = create_model("cifar_resnet8", activation_order="norm_after_addition")
    with pytest.raises(ValueError, match=r"'norm_after_addition' has no .* or activation_order='relu_only_pre'"):
        layer_responses(model, {}, images)
    with pytest.raises(ValueError, match="norm='none' has no batch normalization, .* norm='batch' or 'frozen'"):
        layer_responses(create_model("cifar_resnet8", norm="none"), {}, images)
    for order in ("pre", "relu_only_pre"):
        tail = ResidualTail(create_model("resnet18", activation_order=order, norm="frozen"))
        with pytest.raises(ValueError, match=f"activation_order='{order}' leaves sums for the next block"):
            jax.eval_shape(lambda x, tail=tail: tail.init(jax.random.key(0), x, train=False), images)
        with pytest.raises(ValueError, match=f"activation_order={order}: must be one of post, norm_after_addition, "):
            load_config("detection:small", {"model.activation_order": order})


def test_a_config_takes_every_order_and_norm():
    for order in ORDERS:
        load_config("digits:resnet20", {"model.activation_order": order})
    for name in NORMS:
        load_config("digits:resnet20", {"model.norm": name})
