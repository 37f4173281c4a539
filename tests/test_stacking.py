"""Looping over stacked blocks and recomputing them change time and memory, never results."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_images, random_variables

from resnet_jax.models.registry import create_model
from resnet_jax.models.stacking import stack_blocks, unstack_blocks

SHAPE = (8, 8, 3)
# A stage of one block has nothing to loop over; of two, a loop of one; of three, a loop of two.
NETS = {
    # What is drawn for a block's branch must not depend on a loop either.
    "basic": {"stage_sizes": (3, 1), "stochastic_depth": 0.5},
    "bottleneck": {"stage_sizes": (2,), "block": "bottleneck", "shortcut": "B"},
    "pre-activation": {"stage_sizes": (3,), "activation_order": "pre", "shortcut": "C"},
}
# Float32 sums in another order, relative to the largest value of each array.
TOLERANCE = 1e-4


def make(kind, **options):
    return create_model("cifar_resnet8", width=4, **NETS[kind], **options)


def train_pass(model, variables, images):
    """Logits, new statistics and gradients, those of the images included."""

    # Compiling takes nearly all of the time here; level 0 halves it.
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(variables, images):
        def loss(params, images):
            collections = {**variables, "params": params}
            options = {"mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(0)}}
            logits, new = model.apply(collections, images, train=True, **options)
            return jnp.square(logits - 1).mean(), (logits, new["batch_stats"])

        gradients, (logits, statistics) = jax.grad(loss, (0, 1), has_aux=True)(variables["params"], images)
        return {
            "logits": logits,
            "images": gradients[1],
            "variables": {"params": gradients[0], "batch_stats": statistics},
        }

    return run(variables, images)


@pytest.fixture(scope="module", params=NETS)
def unrolled(request):
    """The kind of net, its variables, images, and what the unrolled net makes of them."""
    model = make(request.param)
    variables, images = random_variables(model, SHAPE, train=False), random_images(4, SHAPE)
    return request.param, variables, images, train_pass(model, variables, images)


def assert_trees_close(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, got), wanted in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        atol = TOLERANCE * np.abs(wanted).max()
        np.testing.assert_allclose(got, wanted, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


def test_a_loop_gives_the_unrolled_results(unrolled):
    kind, variables, images, expected = unrolled
    results = train_pass(make(kind, scan=True), stack_blocks(variables), images)
    assert_trees_close({**results, "variables": unstack_blocks(results["variables"])}, expected)


@pytest.mark.parametrize("unrolled", ["basic"], indirect=True)
@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scan"])
def test_remat_gives_the_same_results(unrolled, scan):
    kind, variables, images, expected = unrolled
    if scan:
        results = train_pass(make(kind, scan=True, remat=True), stack_blocks(variables), images)
        results["variables"] = unstack_blocks(results["variables"])
    else:
        results = train_pass(make(kind, remat=True), variables, images)
    assert_trees_close(results, expected)


def test_conversion_is_exact_and_what_the_looping_net_wants(unrolled):
    kind, variables, images, _ = unrolled
    stacked = stack_blocks(variables)
    wanted = jax.eval_shape(lambda x: make(kind, scan=True).init(jax.random.key(0), x, train=False), images)
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, wanted)
    back = unstack_blocks(stacked)
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    again = stack_blocks(back)
    jax.tree.map(np.testing.assert_array_equal, again, stacked)


def test_more_than_nine_blocks_keep_their_order():
    numbers = {f"stage2_block{index}": {"kernel": jnp.full(2, index)} for index in range(14, 0, -1)}
    stacked = stack_blocks({"params": numbers})["params"]
    np.testing.assert_array_equal(stacked["stage2_blocks"]["kernel"][:, 0], np.arange(2, 15))
    jax.tree.map(np.testing.assert_array_equal, unstack_blocks({"params": stacked})["params"], numbers)


def test_blocks_of_a_loop_start_from_draws_of_their_own():
    model, images = create_model("cifar_resnet8", stage_sizes=(4,), scan=True), jnp.zeros((1, *SHAPE))

    @jax.jit
    def kernels_of(key):
        return model.init(key, images, train=False)["params"]["stage1_blocks"]["conv2"]["kernel"]

    kernels = kernels_of(jax.random.key(0))
    assert kernels.shape == (3, 3, 3, 16, 16)
    assert len({np.asarray(kernel).tobytes() for kernel in kernels}) == 3
    # He's deviation from the fan-in of one block: the stack's axis does not count.
    assert kernels.std() == pytest.approx(np.sqrt(2 / (9 * 16)), rel=0.05)


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scan"])
def test_remat_keeps_less_for_the_backward_pass(scan):
    images = jax.ShapeDtypeStruct((16, 32, 32, 3), jnp.float32)

    def kept(remat):
        """Bytes that the forward pass hands to the backward pass."""
        model = create_model("cifar_resnet20", scan=scan, remat=remat)
        variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)

        def pull_back(variables, images):
            def forward(params):
                return model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])[0]

            return jax.vjp(forward, variables["params"])[1]

        held = jax.tree.leaves(jax.eval_shape(pull_back, variables, images))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in held)

    # Of each block's many intermediate images only the one that goes in.
    assert kept(remat=True) < 0.4 * kept(remat=False)
