"""A net with its normalizations folded gives the same logits, from variables of the same form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_images, random_variables

from resnet_jax.models.normalization import freeze_batch_norm
from resnet_jax.models.registry import create_model
from resnet_jax.models.stacking import stack_blocks
from resnet_jax.pretrained.folding import fold_batch_norm

SHAPE = (32, 32, 3)
NETS = {
    "cifar": ("cifar_resnet20", {}),
    "imagenet basic": ("resnet18", {"shortcut": "C"}),
    "imagenet bottleneck": ("resnet50_v1_5", {}),
    "plain": ("plain34", {}),
    "frozen": ("resnet50", {"norm": "frozen"}),
    "scan": ("cifar_resnet20", {"scan": True, "stage_sizes": (1, 3)}),
    "no head": ("cifar_resnet20", {"num_classes": None}),
    "norm after addition": ("resnet18", {"activation_order": "norm_after_addition"}),
    "pre-activation": ("resnet18", {"activation_order": "pre"}),
    "pre-activation bottleneck, scan, frozen": (
        "resnet50",
        {"activation_order": "pre", "scan": True, "norm": "frozen"},
    ),
}
# Normalizations of a block that stay, besides "final_norm".
KEPT = {"post": set(), "pre": {"norm1", "final_norm"}, "norm_after_addition": {"sum_norm"}}


def tiny(name, options):
    model = create_model(name, **{"width": 2, "stage_sizes": (1, 2), "num_classes": 5, **options})
    return model, jax.tree.map(np.asarray, random_variables(model, SHAPE, train=False))


def apply(model, variables, images):
    return np.asarray(jax.jit(lambda variables, x: model.apply(variables, x, train=False))(variables, images))


@pytest.mark.parametrize("net", NETS)
def test_the_logits_stay(net):
    model, variables = tiny(*NETS[net])
    before = jax.tree.map(np.copy, variables)
    folded = fold_batch_norm(model, variables)
    assert jax.tree.map(jnp.shape, folded) == jax.tree.map(jnp.shape, variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(folded)} == {np.dtype(np.float32)}
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    images = random_images(4, SHAPE)
    expected, found = apply(model, variables, images), apply(model, folded, images)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("net", NETS)
def test_every_normalization_after_a_convolution_is_folded(net):
    model, variables = tiny(*NETS[net])
    folded = fold_batch_norm(model, variables)
    for place, variance in jax.tree.leaves_with_path(folded["batch_stats"]):
        *block, layer, vector = (key.key for key in place)
        if vector != "var":
            continue
        # As the net computes it, in float32.
        multiplier = jax.lax.rsqrt(jnp.asarray(variance) + 1e-5)
        assert bool((multiplier == 1).all()) == (layer not in KEPT[model.activation_order]), (block, layer)


def test_a_net_without_normalization_has_nothing_to_fold():
    model, variables = tiny("cifar_resnet20", {"norm": "skipinit"})
    jax.tree.map(np.testing.assert_array_equal, fold_batch_norm(model, variables), variables)


def test_frozen_and_stacked_nets_are_folded_to_the_same_numbers():
    model, variables = tiny("resnet50", {"stage_sizes": (1, 3)})
    folded = fold_batch_norm(model, variables)
    frozen = fold_batch_norm(model.clone(norm="frozen"), freeze_batch_norm(variables))
    stacked = fold_batch_norm(model.clone(scan=True), stack_blocks(variables))
    jax.tree.map(np.testing.assert_array_equal, frozen, freeze_batch_norm(folded))
    jax.tree.map(np.testing.assert_array_equal, stacked, stack_blocks(folded))


def test_a_bfloat16_net_keeps_its_digits():
    model, variables = tiny("resnet18", {"dtype": jnp.bfloat16, "width": 8})
    images = random_images(4, SHAPE)
    expected = apply(model, variables, images)
    found = apply(model, fold_batch_norm(model, variables), images)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_the_compiler_leaves_an_addition():
    model, variables = tiny("cifar_resnet20", {})

    def multiplications(variables):
        """Those that come from normalizations, in the program of a net whose variables are known."""
        net = jax.jit(lambda x: model.apply(variables, x, train=False))
        program = net.lower(random_images(2, SHAPE)).compile().as_text()
        return [line for line in program.splitlines() if " multiply(" in line and "norm" in line]

    assert multiplications(variables)
    assert not multiplications(fold_batch_norm(model, variables))
