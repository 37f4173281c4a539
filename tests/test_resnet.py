"""The nets' structure: blocks as the paper draws them, shortcuts, strides, features, precision."""

import flax.errors
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import linen as nn
from random_variables import random_images, random_variables

from resnet_jax.models.arrangements import ORDERS
from resnet_jax.models.blocks import BLOCKS, Shortcut, Stem, relu
from resnet_jax.models.normalization import BatchNorm
from resnet_jax.models.registry import create_model

SHAPE = (16, 16, 3)


def norm(**options):
    return BatchNorm(use_running_average=True, update_statistics=False, **options)


def abstract_variables(model, side):
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)


def zeroed(variables, layer, name):
    """The same variables with one of a layer's parameters zero."""
    params = variables["params"]
    values = {**params[layer], name: jnp.zeros_like(params[layer][name])}
    return {**variables, "params": {**params, layer: values}}


@pytest.fixture(scope="module")
def small():
    """A net of every kind of block of its family, with parameters, images and, compiled once, their features."""
    model = create_model("cifar_resnet8", width=4, stage_sizes=(1, 2), dropout_rate=0.5)
    variables, images = random_variables(model, SHAPE, train=False), random_images(2, SHAPE)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False, return_features=True))
    return model, variables, images, apply(variables, images)


# Shortcuts and strides


def projections(variables):
    """Number of shortcuts that are convolutions; a stack of blocks counts each."""
    count = 0
    for path, leaf in jax.tree.leaves_with_path(variables["params"]):
        names = [key.key for key in path]
        if "shortcut" in names and names[-1] == "kernel":
            count += leaf.shape[0] if leaf.ndim == 5 else 1
            assert leaf.shape[-4:-2] == (1, 1)
    return count


@pytest.mark.parametrize(
    ("name", "option", "count"),
    [
        # Table 3: B projects where the dimensions increase, which with bottlenecks includes the first stage.
        *[(f"resnet{depth}", "B", 3) for depth in (18, 34)],
        *[(f"resnet{depth}", "B", 4) for depth in (50, 101, 152)],
        # Section 4.1: C brings "many (thirteen) projection shortcuts" more to the 34 layers.
        ("resnet34", "C", 3 + 13),
        *[(f"resnet{depth}", "C", count) for depth, count in ((50, 16), (101, 33), (152, 50))],
        ("resnet152", "A", 0),
    ],
)
def test_number_of_projections(name, option, count):
    assert projections(abstract_variables(create_model(name, shortcut=option, scan=True), 64)) == count


def test_number_of_projections_block_by_block():
    for option, count in (("A", 0), ("B", 2), ("C", 9)):
        assert projections(abstract_variables(create_model("cifar_resnet20", shortcut=option), 32)) == count


@pytest.mark.parametrize(("plain", "twin"), [("plain18", "resnet18"), ("cifar_plain20", "cifar_resnet20")])
def test_a_plain_net_has_the_parameters_of_its_option_a_twin(plain, twin):
    plain, twin = (abstract_variables(create_model(n, **o), 32) for n, o in ((plain, {}), (twin, {"shortcut": "A"})))
    assert jax.tree.map(jnp.shape, plain) == jax.tree.map(jnp.shape, twin)


def test_option_a_takes_every_other_pixel_and_appends_zeros():
    x = random_images(2, (6, 7, 3))
    output, variables = Shortcut("A", 8, 2, norm).init_with_output(jax.random.key(0), x)
    assert variables == {}
    np.testing.assert_array_equal(output[..., :3], x[:, ::2, ::2])
    np.testing.assert_array_equal(output[..., 3:], np.zeros((2, 3, 4, 5)))
    # Between equal shapes, every option but C is the identity.
    for option in ("A", "B"):
        np.testing.assert_array_equal(Shortcut(option, 3, 1, norm).apply({}, x), x)


@pytest.mark.parametrize(
    ("name", "sides"),
    # Appendix and Table 1: the first 1x1 takes the stride; v1.5 moves it to the 3x3.
    [("resnet50", (4, 4, 4)), ("resnet50_v1_5", (8, 4, 4))],
)
def test_which_layer_of_a_bottleneck_takes_the_stride(name, sides):
    model = create_model(name, stage_sizes=(1, 1), width=8)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

    def layers(variables, images):
        found = model.apply(variables, images, train=False, capture_intermediates=True)[1]["intermediates"]
        return [found["stage2_block1"][f"conv{i}"]["__call__"][0] for i in (1, 2, 3)]

    outputs = jax.eval_shape(layers, abstract_variables(model, 32), images)
    assert tuple(output.shape[1] for output in outputs) == sides


# Blocks


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("option", ["A", "B", "C", None])
def test_block_is_the_activated_sum_of_branch_and_shortcut(kind, option):
    block = BLOCKS[kind](8, 2, norm, option)
    x = random_images(2, (6, 6, 4))
    variables = random_variables(block, x.shape[1:])
    assert ("shortcut" in variables["params"]) == (option in ("B", "C"))
    # With the last gamma zero the branch is the last beta, whatever the images.
    last = "norm2" if kind == "basic" else "norm3"
    beta = variables["params"][last]["bias"]
    own = {name: tree["shortcut"] for name, tree in variables.items() if "shortcut" in tree}

    @jax.jit
    def outputs(variables, x):
        through = Shortcut(option, 8 * block.expansion, 2, norm).apply(own, x) if option else 0.0
        without_branch = nn.relu(beta[None, None, None] + through)
        return block.apply(zeroed(variables, last, "scale"), x), without_branch, block.apply(variables, x)

    output, expected, usual = outputs(variables, x)
    np.testing.assert_allclose(output, np.broadcast_to(expected, output.shape), rtol=1e-5, atol=1e-5)
    assert (usual >= 0).all() and not np.allclose(usual, output)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", BLOCKS)
def test_pre_activation_identity_is_untouched_and_projection_sees_the_activated_input(kind, stride):
    make, last = BLOCKS[kind], {"basic": "conv2", "bottleneck": "conv3"}[kind]
    width = make.expansion * 4
    block, x = make(4, stride, norm, "B", ORDERS["pre"]), random_images(2, (6, 6, width))
    variables = random_variables(block, x.shape[1:])
    params = variables["params"]

    @jax.jit
    def outputs(variables, x):
        first = {name: tree["norm1"] for name, tree in variables.items()}
        expected = x
        if stride == 2:
            active = nn.relu(norm().apply(first, x))
            expected = Shortcut("B", width, 2, None).apply({"params": params["shortcut"]}, active)
        return block.apply(zeroed(variables, last, "kernel"), x), expected

    # No normalization follows the projection: it has just the kernel.
    assert set(params.get("shortcut", {})) == ({"conv"} if stride == 2 else set())
    # Nothing follows the addition: without the branch the shortcut comes out, negative values too.
    np.testing.assert_allclose(*outputs(variables, x), rtol=1e-5, atol=1e-5)


def test_the_relu_of_a_sum_has_the_values_and_gradients_of_any_other():
    x = jnp.asarray([-np.inf, -1.0, -0.0, 0.0, 1e-30, 2.0, np.inf, np.nan])
    for made, wanted in zip(jax.vjp(relu, x)[1](x + 3), jax.vjp(nn.relu, x)[1](x + 3), strict=True):
        np.testing.assert_array_equal(made, wanted)
    np.testing.assert_array_equal(relu(x), nn.relu(x))


def test_imagenet_stem_pools_around_even_pixels():
    stem = Stem("imagenet", 1, None)
    images = random_images(2, (16, 16, 1))
    kernel = jnp.zeros((7, 7, 1, 1)).at[3, 3].set(-1)
    output = stem.apply({"params": {"conv": {"kernel": kernel}}}, images)
    convolved = np.pad(-images[:, ::2, ::2], ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    windows = [convolved[:, i : i + 8 : 2, j : j + 8 : 2] for i in range(3) for j in range(3)]
    np.testing.assert_array_equal(output, np.max(windows, 0))


@pytest.mark.parametrize(("side", "pooled"), [(16, 4), (14, 4), (17, 5)])
def test_imagenet_stem_can_pool_from_the_first_pixel(side, pooled):
    stem = Stem("imagenet", 1, None, pool_padding="end")
    images = random_images(2, (side, side, 1))
    kernel = jnp.zeros((7, 7, 1, 1)).at[3, 3].set(-1)
    output = stem.apply({"params": {"conv": {"kernel": kernel}}}, images)
    convolved = -np.asarray(images)[:, ::2, ::2]
    # The last window is cut off where it has too few pixels; its size is that of the other padding.
    windows = [
        [convolved[:, i : i + 3, j : j + 3].max((1, 2)) for j in range(0, 2 * pooled, 2)]
        for i in range(0, 2 * pooled, 2)
    ]
    np.testing.assert_array_equal(output, np.stack([np.stack(row, 1) for row in windows], 1))


# Features, head, precision


@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [
        # Table 1
        ("resnet18", 224, {"stem": (56, 64), "stage1": (56, 64), "stage2": (28, 128), "stage4": (7, 512)}),
        ("resnet50", 224, {"stem": (56, 64), "stage1": (56, 256), "stage3": (14, 1024), "stage4": (7, 2048)}),
        # Section 4.2
        ("cifar_resnet20", 32, {"stem": (32, 16), "stage1": (32, 16), "stage2": (16, 32), "stage3": (8, 64)}),
    ],
)
def test_features_have_the_sizes_of_the_paper(name, side, expected):
    model = create_model(name, scan=True)
    images = jax.ShapeDtypeStruct((3, side, side, 3), jnp.float32)
    logits, features = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=False, return_features=True),
        abstract_variables(model, side),
        images,
    )
    assert logits.shape == (3, model.num_classes)
    stages = [f"stage{stage}" for stage in range(1, len(model.stage_sizes) + 1)]
    assert set(features) == {"stem", *stages, "pooled"}
    for key, (size, channels) in expected.items():
        assert features[key].shape == (3, size, size, channels), key
    assert features["pooled"].shape == (3, features[stages[-1]].shape[-1])


def test_logits_are_the_classifier_of_the_averaged_last_stage(small):
    model, variables, images, (logits, features) = small
    alone = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    np.testing.assert_allclose(logits, alone, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(features["pooled"], features["stage2"].mean((1, 2)), rtol=1e-5, atol=1e-6)
    classifier = variables["params"]["classifier"]
    expected = features["pooled"] @ classifier["kernel"] + classifier["bias"][None]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_without_classes_the_net_is_its_own_backbone(small):
    model, variables, images, (_, features) = small
    backbone = model.clone(num_classes=None)
    params = {name: value for name, value in variables["params"].items() if name != "classifier"}
    assert jax.tree.structure(params) == jax.tree.structure(abstract_variables(backbone, 16)["params"])
    pooled = jax.jit(lambda v, x: backbone.apply(v, x, train=False))({**variables, "params": params}, images)
    np.testing.assert_allclose(pooled, features["pooled"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[0], r"\[n, h, w, c\], found \(16, 16, 3\)"),
        (lambda x: jnp.moveaxis(x, -1, 1), r"found \(\d+, 3, 16, 16\): the channels come last"),
        (lambda x: x.astype(jnp.uint8), "normalised floats, found uint8"),
    ],
)
def test_images_of_another_form_are_refused(small, monkeypatch, change, message):
    model, variables, images, _ = small
    # Users run without the annotations' checks, which would speak first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        model.apply(variables, change(jnp.asarray(images)), train=False)


def test_dropout_needs_its_key_in_training_only(small):
    model, variables, images, (logits, _) = small

    @jax.jit
    def train(rngs):
        switches = {"use_running_average": True, "update_statistics": False}
        return model.apply(variables, images, train=True, rngs=rngs, **switches)

    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        train({})
    first, again, other = (train({"dropout": jax.random.key(seed)}) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and (first != logits).any()


def test_statistics_move_only_when_told(small):
    model, variables, images, _ = small

    def new_statistics(train, update_statistics=None):
        net = model.clone(dropout_rate=0.0)
        options = {"train": train, "update_statistics": update_statistics, "mutable": ["batch_stats"]}
        return jax.jit(lambda v, x: net.apply(v, x, **options)[1]["batch_stats"])(variables, images)

    same = jax.tree.map(jnp.array_equal, new_statistics(train=False), variables["batch_stats"])
    assert all(jax.tree.leaves(same))
    same = jax.tree.map(jnp.array_equal, new_statistics(train=True), variables["batch_stats"])
    assert not any(jax.tree.leaves(same))
    # The switch, not `train`, decides; the stem sees the same batch either way.
    moved = [new_statistics(train, update_statistics=True)["stem"] for train in (False, True)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *moved)


@pytest.mark.parametrize("options", [{}, {"activation_order": "pre", "scan": True}], ids=["post", "pre, scan"])
def test_bfloat16_computes_in_bfloat16_and_keeps_float32(options):
    model = create_model("cifar_resnet20", dtype="bfloat16", **options)
    variables = abstract_variables(model, 32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    images = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)

    def step(params, batch_stats, images):
        variables = {"params": params, "batch_stats": batch_stats}
        options = {"train": True, "return_features": True, "mutable": ["batch_stats"]}
        (logits, features), new = model.apply(variables, images, **options)
        return logits.sum(), (logits, features, new)

    gradients, (logits, features, new) = jax.eval_shape(
        jax.grad(step, has_aux=True), variables["params"], variables["batch_stats"], images
    )
    assert logits.dtype == features.pop("pooled").dtype == jnp.float32
    assert {feature.dtype for feature in features.values()} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves((gradients, new))} == {jnp.dtype("float32")}
