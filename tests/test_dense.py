"""Fully convolutional testing: padding never changes a score, and every position scores its own window."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from random_variables import random_images, random_variables

from resnet_jax.models.dense import valid_positions
from resnet_jax.models.normalization import freeze_batch_norm
from resnet_jax.models.registry import create_model

WINDOW = 2
PADDED = (32, 40)
# Whole; odd after every stride, where the last window of the stem's maximum looks beyond the image; and even, where
# the first window beyond the image looks into it.
SIZES = np.array([[32, 40], [25, 33], [20, 28]])
NETS = {
    "basic": ("resnet18", {}),
    "basic, pooled from the first pixel": ("resnet18", {"pool_padding": "end"}),
    "basic, A": ("resnet18", {"shortcut": "A"}),
    "basic, C": ("resnet18", {"shortcut": "C"}),
    "plain": ("plain18", {}),
    "bottleneck": ("resnet50", {}),
    "bottleneck, A, strided 3x3": ("resnet50_v1_5", {"shortcut": "A"}),
    "pre-activation": ("resnet18", {"activation_order": "pre"}),
    "pre-activation, plain": ("plain18", {"activation_order": "pre"}),
    "pre-activation, bottleneck, C": ("resnet50", {"activation_order": "pre", "shortcut": "C"}),
    "cifar": ("cifar_resnet8", {}),
    "cifar, pre-activation": ("cifar_resnet8", {"activation_order": "pre"}),
    "frozen": ("resnet18", {"norm": "frozen"}),
    "frozen, pre-activation": ("resnet18", {"norm": "frozen", "activation_order": "pre"}),
    "norm after addition, C": ("resnet18", {"activation_order": "norm_after_addition", "shortcut": "C"}),
    "ReLU-only pre-activation": ("resnet18", {"activation_order": "relu_only_pre"}),
    "fixup": ("resnet18", {"norm": "fixup", "shortcut": "C"}),
    "bfloat16": ("resnet18", {"dtype": "bfloat16"}),
    "bfloat16, pre-activation": ("resnet18", {"dtype": "bfloat16", "activation_order": "pre"}),
    "scan": ("resnet50", {"scan": True, "stage_sizes": (3, 1)}),
    "remat": ("resnet18", {"remat": True}),
    "scan, remat, pre-activation": (
        "resnet18",
        {"scan": True, "remat": True, "stage_sizes": (3, 2), "activation_order": "pre"},
    ),
    "features": ("resnet18", {"num_classes": None}),
}


@cache
def net(kind):
    """The model and variables in which nothing has its initial value."""
    name, options = NETS[kind]
    options = {"width": 4, "stage_sizes": (2, 1), "num_classes": 5, **options}
    # To `create_model` None means the name's own number of classes.
    model = create_model(name, **options).clone(num_classes=options["num_classes"])
    variables = random_variables(
        model if model.norm == "fixup" else model.clone(norm="batch"), (*PADDED, 3), train=False
    )
    return model, freeze_batch_norm(variables) if model.norm == "frozen" else variables


def run(model, variables, images, sizes=None, **options):
    """The compiled call; `sizes` are traced, as in an evaluation that meets many."""

    # Compiling takes nearly all of the time here; level 0 halves it.
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def apply(variables, images, sizes):
        return model.apply(variables, images, train=False, sizes=sizes, **options)

    return apply(variables, images, sizes)


def with_garbage(images, sizes, *, seed=0):
    """The images with all sorts of values beyond their sizes."""
    random = np.random.default_rng(seed)
    filled = random.choice([np.nan, np.inf, -np.inf, 1e30, -1e3, 7.0], images.shape).astype(np.float32)
    for image, own, (height, width) in zip(filled, images, sizes, strict=True):
        image[:height, :width] = own[:height, :width]
    return jnp.asarray(filled)


def assert_close(actual, expected, tolerance, message=""):
    """Equal up to the order of sums, relative to the largest value."""
    assert actual.shape == expected.shape, message
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=message)


@pytest.mark.parametrize("kind", NETS)
def test_a_padded_image_scores_as_it_does_alone(kind):
    model, variables = net(kind)
    images = random_images(len(SIZES), (*PADDED, 3))
    padded = with_garbage(images, SIZES)
    options = {"pool_window": WINDOW, "return_features": True}
    logits, features = run(model, variables, padded, SIZES, **options)
    valid = valid_positions(SIZES, PADDED, total_stride=model.total_stride, pool_window=WINDOW)
    assert valid.shape == logits.shape[:3]
    # Nothing of the padding's contents is left, at the positions beyond the images neither.
    again = run(model, variables, with_garbage(images, SIZES, seed=1), SIZES, **options)
    jax.tree.map(np.testing.assert_array_equal, again, (logits, features))
    assert np.isfinite(logits).all()
    tolerance = 2e-2 if model.dtype == jnp.bfloat16 else 1e-5
    for index, (height, width) in enumerate(SIZES):
        alone, own_features = run(model, variables, images[index, None, :height, :width], **options)
        assert alone.shape[1:3] == tuple(-(-side // model.total_stride) - WINDOW + 1 for side in (height, width))
        assert valid[index].sum() == alone[0, ..., 0].size
        assert_close(logits[index][valid[index]].reshape(alone.shape), alone, tolerance, f"image {index}")
        for name in ("stem", "stage1", "stage2"):
            own = own_features[name].astype(jnp.float32)
            rows, columns = own.shape[1:3]
            feature = features[name][index].astype(jnp.float32)
            assert_close(feature[None, :rows, :columns], own, tolerance, f"image {index}, {name}")
            assert not feature[rows:].any() and not feature[:, columns:].any(), (index, name)


@pytest.mark.parametrize("kind", ["basic", "pre-activation", "cifar"])
def test_the_global_average_is_that_of_the_image_alone(kind):
    model, variables = net(kind)
    images = random_images(len(SIZES), (*PADDED, 3))
    logits = run(model, variables, with_garbage(images, SIZES), SIZES)
    for index, (height, width) in enumerate(SIZES):
        alone = run(model, variables, images[index, None, :height, :width])
        assert_close(logits[index, None], alone, 1e-5, f"image {index}")


def test_at_the_training_size_a_window_of_7_is_the_ordinary_call():
    model = create_model("resnet18", width=2, stage_sizes=(1, 1, 1, 1), num_classes=5)
    variables, images = random_variables(model, (224, 224, 3), train=False), random_images(2, (224, 224, 3))
    assert model.total_stride == 32
    expected = run(model, variables, images)
    assert_close(run(model, variables, images, pool_window=7)[:, 0, 0], expected, 1e-5)
    # The same images in a larger frame.
    sizes = np.array([[224, 224], [200, 224]])
    frame = jnp.pad(images, ((0, 0), (0, 32), (0, 64), (0, 0)), constant_values=np.nan)
    padded = run(model, variables, frame, sizes, pool_window=7)
    valid = valid_positions(sizes, (256, 288), total_stride=32, pool_window=7)
    assert padded.shape == (2, 2, 3, 5)
    np.testing.assert_array_equal(valid, np.arange(6).reshape(1, 2, 3).repeat(2, 0) == 0)
    assert_close(padded[0, 0, 0], expected[0], 1e-5)


@pytest.mark.parametrize("window", [1, 2, 4])
def test_every_position_is_the_classifier_of_its_own_window(window):
    model, variables = net("basic")
    images = random_images(2, (32, 48, 3))
    logits, features = run(model, variables, images, pool_window=window, return_features=True)
    last = np.asarray(features["stage2"])
    classifier = variables["params"]["classifier"]
    rows, columns = 4 - window + 1, 6 - window + 1
    assert logits.shape == (2, rows, columns, 5) and logits.dtype == jnp.float32
    for row in range(rows):
        for column in range(columns):
            pooled = last[:, row : row + window, column : column + window].mean((1, 2))
            assert_close(features["pooled"][:, row, column], pooled, 1e-5)
            expected = pooled @ classifier["kernel"] + classifier["bias"][None]
            assert_close(logits[:, row, column], expected, 1e-5)


def test_valid_positions_are_the_windows_inside_the_image():
    sizes = np.array([[64, 96], [33, 70], [32, 32], [96, 65]])
    valid = valid_positions(sizes, (96, 96), total_stride=32, pool_window=2)
    expected = np.array([[[1, 1], [0, 0]], [[1, 1], [0, 0]], [[0, 0], [0, 0]], [[1, 1], [1, 1]]], bool)
    np.testing.assert_array_equal(valid, expected)
    traced = jax.jit(lambda s: valid_positions(s, (96, 96), total_stride=32, pool_window=2))(sizes)
    np.testing.assert_array_equal(traced, expected)


@pytest.mark.parametrize("options", [{}, {"activation_order": "pre", "scan": True}], ids=["post", "pre, scan"])
@pytest.mark.parametrize("train", [False, True])
def test_whole_images_cost_no_operation(options, train):
    model = create_model("resnet50", stage_sizes=(2, 1), **options)
    images = jax.ShapeDtypeStruct((3, *PADDED, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)

    def operations(**arguments):
        def apply(variables, images):
            return model.apply(variables, images, mutable=["batch_stats"], **arguments)

        def names(jaxpr):
            for equation in jaxpr.eqns:
                yield equation.primitive.name
                for inner in jaxprs_in_params(equation.params):
                    yield from names(inner)

        return set(names(jax.make_jaxpr(apply)(shapes, images).jaxpr))

    # Choosing one of two values alone is what a maximum does, too.
    masking = {"iota", "lt", "and"}
    assert not masking & operations(train=train)
    assert masking <= operations(train=False, sizes=SIZES)


def test_the_variables_are_those_of_the_ordinary_call():
    for kind in ("basic", "scan", "frozen, pre-activation"):
        model, _ = net(kind)
        images = jax.ShapeDtypeStruct((3, *PADDED, 3), jnp.float32)
        usual, padded = (
            jax.eval_shape(lambda x, o=o, m=model: m.init(jax.random.key(0), x, train=False, **o), images)
            for o in ({}, {"sizes": SIZES, "pool_window": WINDOW})
        )
        assert jax.tree.structure(usual) == jax.tree.structure(padded)
        assert jax.tree.map(jnp.shape, usual) == jax.tree.map(jnp.shape, padded)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool_window": 0}, r"pool_window=0 does not fit the last stage's map of 4x5 positions; choose 1 to 4"),
        ({"pool_window": 5}, r"pool_window=5 does not fit the last stage's map of 4x5 positions; choose 1 to 4"),
        ({"sizes": SIZES, "pool_window": 5}, "pool_window=5 does not fit"),
        ({"sizes": SIZES, "train": True}, "sizes need train=False and running statistics"),
        ({"sizes": SIZES, "use_running_average": False}, "sizes need train=False and running statistics"),
        ({"sizes": SIZES, "update_statistics": True}, "sizes need train=False and running statistics"),
        ({"sizes": SIZES[:1]}, r"sizes must be height and width of each image, shape \(3, 2\), found \(1, 2\)"),
        ({"sizes": SIZES[:, 0]}, r"shape \(3, 2\), found \(3,\)"),
        ({"sizes": SIZES, "side": 36}, "multiples of the total stride of 8 pixels, found 32x36"),
    ],
)
def test_errors(options, message, monkeypatch):
    # Users run without the annotations' checks, which would speak first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    model, variables = net("basic")
    options = {"train": False, **options}
    images = jax.ShapeDtypeStruct((3, 32, options.pop("side", 40), 3), jnp.float32)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda x: model.apply(variables, x, mutable=["batch_stats"], **options), images)


def test_valid_positions_refuse_what_the_net_refuses():
    with pytest.raises(ValueError, match="multiples of the total stride of 32 pixels, found 64x70"):
        valid_positions(SIZES, (64, 70), total_stride=32, pool_window=1)
    with pytest.raises(ValueError, match="pool_window=3 does not fit the last stage's map of 2x4 positions"):
        valid_positions(SIZES, (64, 128), total_stride=32, pool_window=3)
