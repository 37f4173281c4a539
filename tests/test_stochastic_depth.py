"""Stochastic depth drops what it should, as often as it should, and a test is the ordinary net's."""

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from random_variables import random_images, random_variables

from resnet_jax import load_config
from resnet_jax.distributed import data_mesh, split_batch
from resnet_jax.models import resnet
from resnet_jax.models.blocks import BasicBlock
from resnet_jax.models.normalization import BatchNorm
from resnet_jax.models.registry import create_model
from resnet_jax.models.stochastic_depth import draw_branch_weights

SHAPE = (8, 8, 3)
BLOCKS, IMAGES, RATE = 4, 20_000, 0.6


@pytest.fixture(scope="module")
def drawn():
    return np.asarray(draw_branch_weights(jax.random.key(0), blocks=BLOCKS, images=IMAGES, drop_rate=RATE))


def test_the_rate_grows_linearly_to_the_last_block_and_the_mean_is_one(drawn):
    rates = RATE * np.arange(1, BLOCKS + 1) / BLOCKS
    # Five standard deviations of a share of so many draws.
    np.testing.assert_allclose((drawn == 0).mean(1), rates, atol=5 * 0.5 / np.sqrt(IMAGES))
    for weights, rate in zip(drawn, rates, strict=True):
        np.testing.assert_allclose(np.unique(weights), [0, 1 / (1 - rate)], rtol=1e-6)
    np.testing.assert_allclose(drawn.mean(1), 1, atol=0.05)


def test_images_and_blocks_draw_for_themselves(drawn):
    together = np.corrcoef(drawn == 0)
    np.testing.assert_allclose(together, np.eye(BLOCKS), atol=5 / np.sqrt(IMAGES))
    halves = np.corrcoef(drawn[-1, ::2] == 0, drawn[-1, 1::2] == 0)
    assert abs(halves[0, 1]) < 5 / np.sqrt(IMAGES / 2)


def test_draws_do_not_depend_on_how_many_devices_share_the_batch():
    mesh = data_mesh()
    assert mesh.size == 8

    def draw(key):
        return draw_branch_weights(key, blocks=BLOCKS, images=64, drop_rate=RATE)

    split = jax.jit(draw, out_shardings=split_batch(mesh, axis=1))(jax.random.key(1))
    np.testing.assert_array_equal(split, jax.jit(draw)(jax.random.key(1)))


def test_a_branch_counts_by_its_weight_image_by_image():
    def norm(**options):
        return BatchNorm(use_running_average=True, update_statistics=False, **options)

    block, x = BasicBlock(4, 1, norm, "A"), random_images(3, (6, 6, 4))
    variables = random_variables(block, x.shape[1:])
    branch = BasicBlock(4, 1, norm, None).clone(arrangement=block.arrangement._replace(of_sum=()))
    y = branch.apply(variables, x)
    weights = jnp.asarray([0.0, 1.0, 2.5])
    expected = nn.relu(x + weights[:, None, None, None] * y)
    np.testing.assert_allclose(block.apply(variables, x, weights), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(expected[0], nn.relu(x)[0], rtol=1e-6)


@pytest.fixture(scope="module")
def net():
    model = create_model("cifar_resnet8", width=4, stage_sizes=(1, 2), stochastic_depth=0.5)
    return model, random_variables(model, SHAPE, train=False), random_images(4, SHAPE)


def logits(model, variables, images, *, train=True, **options):
    switches = {"use_running_average": True, "update_statistics": False}
    return np.asarray(jax.jit(lambda v, x: model.apply(v, x, train=train, **switches, **options))(variables, images))


def test_each_block_has_the_weights_drawn_for_it(net, monkeypatch):
    model, variables, images = net
    rows = np.ones((3, len(images)), np.float32)
    rows[2] = 0
    asked = []

    def draw(key, **options):
        asked.append(options)
        return jnp.asarray(rows)

    monkeypatch.setattr(resnet, "draw_branch_weights", draw)
    found = logits(model, variables, images, rngs={"dropout": jax.random.key(0)})
    assert asked == [{"blocks": 3, "images": 4, "drop_rate": 0.5}]
    # The third block is the second of stage 2; without its branch, it is its shortcut.
    silent = jax.tree.map(jnp.zeros_like, variables["params"]["stage2_block2"]["norm2"])
    params = {**variables["params"], "stage2_block2": {**variables["params"]["stage2_block2"], "norm2": silent}}
    ordinary = model.clone(stochastic_depth=0.0)
    np.testing.assert_allclose(found, logits(ordinary, {**variables, "params": params}, images), rtol=1e-4, atol=1e-5)
    assert not np.allclose(found, logits(ordinary, variables, images), atol=1e-2)


def test_it_draws_in_training_alone_and_a_test_is_the_ordinary_net_s(net):
    model, variables, images = net
    ordinary = logits(model.clone(stochastic_depth=0.0), variables, images, train=False)
    np.testing.assert_array_equal(logits(model, variables, images, train=False), ordinary)
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        logits(model, variables, images)
    first, again, other = (
        logits(model, variables, images, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_it_is_a_key_of_classification_alone():
    assert load_config("digits:resnet20", {"model.stochastic_depth": 0.5}).model.stochastic_depth == 0.5
    with pytest.raises(ValueError, match="model.stochastic_depth is of task=classification"):
        load_config("detection:small", {"model.stochastic_depth": 0.5})
    with pytest.raises(ValueError, match="stochastic_depth needs shortcuts"):
        load_config("digits:plain20", {"model.stochastic_depth": 0.5})
