"""Nets without normalization: what is in its place, how they start, and that they train."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from random_variables import random_images, random_variables

from resnet_jax.data.batch import Batch
from resnet_jax.models.blocks import Conv
from resnet_jax.models.registry import create_model, initialize, name_of
from resnet_jax.training import schedules
from resnet_jax.training.objective import classification
from resnet_jax.training.optimizers import is_kernel, sgd
from resnet_jax.training.state import Progress, TrainState
from resnet_jax.training.steps import make_train_step

SHAPE = (8, 8, 3)
UNNORMALIZED = ("none", "skipinit", "fixup")


def make(norm, **options):
    return create_model("cifar_resnet8", **{"width": 4, "stage_sizes": (2, 1), "norm": norm, **options})


def names(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)
    }


def features_of(model, variables, images):
    return jax.jit(lambda v, x: model.apply(v, x, train=False, return_features=True))(variables, images)


@pytest.mark.parametrize("norm", UNNORMALIZED)
def test_there_are_no_statistics_and_kernels_alone_decay(norm):
    variables = initialize(make(norm, shortcut="B"), jax.random.key(0), SHAPE)
    assert set(variables) == {"params"}
    decayed = names(is_kernel(variables["params"]))
    for name, leaf in names(variables["params"]).items():
        assert decayed[name] == name.endswith("/kernel") == (leaf.ndim > 1), name
        # One number for all channels in Fix-up, and for a branch.
        if leaf.ndim == 1 and name != "classifier/bias":
            assert (leaf.size == 1) == (norm == "fixup" or "scale" in name), name
    assert any("scale" in name for name in decayed) == (norm != "none")


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("norm", ["skipinit", "fixup"])
def test_at_first_every_block_is_its_shortcut(norm, block):
    model = make(norm, block=block, stage_sizes=(2,), shortcut="A")
    variables, images = initialize(model, jax.random.key(0), SHAPE), random_images(2, SHAPE)
    logits, features = features_of(model, variables, images)
    channels = features["stem"].shape[-1]
    np.testing.assert_array_equal(features["stage1"][..., :channels], features["stem"])
    assert (features["stem"] > 0).any()
    assert not np.asarray(logits).any() == (norm == "fixup")


@pytest.mark.parametrize(("block", "power"), [("basic", -1 / 2), ("bottleneck", -1 / 4)])
def test_fixup_scales_a_branch_by_the_number_of_blocks(block, power):
    model = make("fixup", block=block, stage_sizes=(5, 3), width=16, shortcut="B")
    made = model.make_block(2, model.make_norm(use_running_average=True, update_statistics=False), first=True)
    params = names(dict(made.lazy_init(jax.random.key(0), jax.ShapeDtypeStruct((1, 4, 4, 16), jnp.float32)))["params"])
    last = "conv2/kernel" if block == "basic" else "conv3/kernel"
    for name, leaf in params.items():
        if leaf.size == 1:
            assert leaf == (1 if "scale" in name else 0), name
        elif name == last:
            assert not leaf.any()
        else:
            factor = 1.0 if "shortcut" in name else 8**power
            assert leaf.std() == pytest.approx(factor * np.sqrt(2 / np.prod(leaf.shape[:-1])), rel=0.15), name


def test_a_fixup_block_has_a_number_before_each_layer_and_activation():
    model = make("fixup", stage_sizes=(1, 1), shortcut="B")
    variables, images = random_variables(model, SHAPE, train=False), random_images(2, SHAPE)
    logits, features = features_of(model, variables, images)
    own = variables["params"]["stage2_block1"]
    number = {name: own[name]["bias"][0] for name in ("shift1", "norm1", "shift2", "norm2")}
    taken = features["stage1"] + number["shift1"]
    y = nn.relu(Conv(8, 3, 2).apply({"params": own["conv1"]}, taken) + number["norm1"])
    y = Conv(8, 3).apply({"params": own["conv2"]}, y + number["shift2"]) * own["scale2"]["scale"][0] + number["norm2"]
    shortcut = Conv(8, 1, 2).apply({"params": own["shortcut"]["conv"]}, taken)
    np.testing.assert_allclose(features["stage2"], nn.relu(y + shortcut), rtol=1e-4, atol=1e-4)
    # And one before the classifier.
    final, classifier = variables["params"]["final_shift"]["bias"][0], variables["params"]["classifier"]
    pooled = features["stage2"].mean((1, 2)) + final
    np.testing.assert_allclose(logits, pooled @ classifier["kernel"] + classifier["bias"][None], rtol=1e-4, atol=1e-4)


def test_a_skipinit_block_multiplies_the_end_of_its_branch():
    model = make("skipinit", stage_sizes=(1,), activation_order="relu_before_addition")
    variables, images = random_variables(model, SHAPE, train=False), random_images(2, SHAPE)
    _, features = features_of(model, variables, images)
    own, x = variables["params"]["stage1_block1"], features["stem"]
    for number in (1, 2):
        bias = own[f"norm{number}"]["bias"][None, None, None]
        assert bias.size == 4
        x = nn.relu(Conv(4, 3).apply({"params": own[f"conv{number}"]}, x) + bias)
    expected = features["stem"] + x * own["scale2"]["scale"][0]
    np.testing.assert_allclose(features["stage1"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", UNNORMALIZED)
def test_bfloat16_computes_in_bfloat16_and_keeps_float32(norm):
    model = make(norm, dtype="bfloat16")
    variables = jax.eval_shape(lambda: initialize(model, jax.random.key(0), SHAPE))
    images = jax.ShapeDtypeStruct((2, *SHAPE), jnp.float32)
    logits, features = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=False, return_features=True), variables, images
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert features.pop("pooled").dtype == logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in features.values()} == {jnp.dtype("bfloat16")}


def test_a_net_without_normalization_trains_in_parts_of_any_size():
    model = make("fixup", stage_sizes=(1,))
    optimizer = sgd(momentum=0.9, nesterov=False, weight_decay=1e-4, decay="kernels")
    batch = Batch(random_images(8, SHAPE), jnp.arange(8, dtype=jnp.int32), jnp.ones(8))
    objective, schedule = classification(model), schedules.constant(0.1)
    assert (objective.group_size, objective.learns_statistics) == (1, False)
    step = jax.jit(make_train_step(objective, optimizer, schedule, seed=0, accumulation_steps=4))
    state, losses = TrainState.create(initialize(model, jax.random.key(0), SHAPE), optimizer, schedule), []
    for _ in range(4):
        state, progress = step(state, Progress.zero(), batch)
        losses.append(float(progress.sums.loss) / 8)
    assert losses[0] == pytest.approx(np.log(10), rel=1e-5) and losses[3] < 0.99 * losses[0]
    own = state.params["stage1_block1"]
    assert own["scale2"]["scale"] != 1 and own["conv2"]["kernel"].any() and own["shift1"]["bias"] != 0


def test_such_a_net_has_not_the_name_of_the_normalized_one():
    assert [name_of(create_model("cifar_resnet20", norm=norm)) for norm in ("frozen", "none")] == [
        "cifar_resnet20",
        None,
    ]
