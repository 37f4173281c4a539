"""The paper's test protocols against plain computations: crop by crop, image by image, position by position."""

import io
import pickle
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from random_variables import random_variables

from resnet_jax.data.input_description import InputDescription
from resnet_jax.evaluation.protocols import PROTOCOLS, SCALES, make_protocol
from resnet_jax.models.registry import create_model

SIZE, SHORT_SIDE, CLASSES = 64, 72, 7
MODEL = create_model("resnet18", num_classes=CLASSES, width=4, stage_sizes=(1, 1, 1, 1))
STD = np.asarray([50, 60, 70], np.float32)
PIXEL_MEAN = np.random.default_rng(0).uniform(90, 150, (SIZE, SIZE, 3)).astype(np.float32)
INPUT = InputDescription((SIZE, SIZE, 3), PIXEL_MEAN, STD, tuple("abcdefg"), short_side=SHORT_SIDE)
# Portrait and landscape, odd sides, more than twice as long as high, and a square one.
SHAPES = ((80, 100), (101, 77), (70, 170), (90, 90))


@cache
def variables():
    return random_variables(MODEL, (SIZE, SIZE, 3), train=False)


# Compiling takes nearly all of the time here; level 0 halves it.
@partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def logits_and_features(images):
    return MODEL.apply(variables(), images, train=False, return_features=True)


def encoded(height, width, *, seed=0):
    """A smooth image as PNG, so that resized views differ from each other in all places."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (7, 9, 3)).astype(np.uint8))
    file = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def softmax(logits):
    powers = np.exp(np.float64(logits) - np.max(logits, axis=-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def expected(logits, average):
    """The mean of [views, classes]."""
    return np.log(softmax(logits).mean(0)) if average == "probabilities" else np.float64(logits).mean(0)


def scores_of(protocol, parts, model=MODEL, variables_=None):
    """One row for each part, all of one batch in the shape of the largest."""
    shape = np.max([protocol.batch_shape(part.shape) for part in parts], axis=0)
    batch = np.zeros((len(parts), *shape), np.uint8)
    for row, part in zip(batch, parts, strict=True):
        row[tuple(slice(length) for length in part.shape)] = part
    sizes = np.asarray([part.shape[-3:-1] for part in parts], np.int32)
    score = jax.jit(partial(protocol.scores, model), compiler_options={"xla_backend_optimization_level": 0})
    return np.asarray(score(variables() if variables_ is None else variables_, jnp.asarray(batch), jnp.asarray(sizes)))


def test_ten_crop_is_the_mean_over_ten_crops_scored_one_by_one():
    files = [encoded(80, 100, seed=1), encoded(101, 77, seed=2)]
    scaled = [make_protocol("multi_scale", INPUT, scales=[SHORT_SIDE]).view(file)[0] for file in files]
    # Their shapes are 72 x 90 and 94 x 72; a crop's middle is at half of what is left over.
    corners = [
        [(0, 0), (0, 26), (8, 0), (8, 26), (4, 13)],
        [(0, 0), (0, 8), (30, 0), (30, 8), (15, 4)],
    ]
    for average in ("probabilities", "logits"):
        protocol = make_protocol("ten_crop", INPUT, average=average)
        found = scores_of(protocol, [protocol.view(file) for file in files])
        for row, image, places in zip(found, scaled, corners, strict=True):
            views = []
            for top, left in places:
                crop = image[top : top + SIZE, left : left + SIZE]
                views += [(np.float32(view) - PIXEL_MEAN) / STD for view in (crop, crop[:, ::-1])]
            logits = [logits_and_features(view[None])[0][0] for view in views]
            np.testing.assert_allclose(row, expected(np.asarray(logits), average), rtol=1e-4, atol=1e-5)


def dense_logits(image, window):
    """Of one image alone and not padded: the classifier on the mean of every window, position by position."""
    normal = (np.float32(image) - INPUT.channel_mean) / STD
    _, features = logits_and_features(normal[None])
    stage = np.float64(features["stage4"][0])
    classifier = jax.tree.map(np.float64, variables()["params"]["classifier"])
    rows, columns = stage.shape[0] - window + 1, stage.shape[1] - window + 1
    windows = [stage[i : i + window, j : j + window].mean((0, 1)) for i in range(rows) for j in range(columns)]
    return np.stack(windows) @ classifier["kernel"] + classifier["bias"]


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_multi_scale_is_the_mean_over_positions_of_every_image_alone(average):
    scales = (64, 97)
    protocol = make_protocol("multi_scale", INPUT, average=average, scales=scales)
    views = [protocol.view(encoded(*shape, seed=seed)) for seed, shape in enumerate(SHAPES)]
    for number, scale in enumerate(scales):
        parts = [parts[number] for parts in views]
        assert [min(part.shape[:2]) for part in parts] == [scale] * len(parts)
        for row, part in zip(scores_of(protocol, parts), parts, strict=True):
            logits = np.concatenate([dense_logits(part, 2), dense_logits(part[:, ::-1], 2)])
            np.testing.assert_allclose(row, expected(logits, average), rtol=1e-4, atol=1e-4)


def test_at_the_net_s_own_size_a_square_image_has_the_centre_view_and_its_mirror_image():
    channel_mean = InputDescription((SIZE, SIZE, 3), INPUT.channel_mean, STD, INPUT.class_names, short_side=SIZE)
    center, dense = make_protocol("center", channel_mean), make_protocol("multi_scale", INPUT, scales=[SIZE])
    file = encoded(90, 90)
    view = center.view(file)
    np.testing.assert_array_equal(dense.view(file)[0], view)
    logits = scores_of(center, [view, view[:, ::-1]])
    np.testing.assert_allclose(scores_of(dense, [view])[0], expected(logits, "probabilities"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ten_crop", "multi_scale"])
def test_a_probability_too_small_for_float32_has_a_logarithm(name):
    kernel = variables()["params"]["classifier"]["kernel"]
    sure = jax.tree.map(lambda leaf: leaf * 1e4 if leaf is kernel else leaf, variables())
    protocol = make_protocol(name, INPUT)
    part = protocol.view(encoded(90, 90))
    row = scores_of(protocol, [part[0] if isinstance(part, list) else part], variables_=sure)[0]
    assert np.isfinite(row).all() and row.min() < -1000
    assert softmax(row).sum() == pytest.approx(1) and np.logaddexp.reduce(row) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_what_is_not_a_number_stays_so(name):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, variables())
    protocol = make_protocol(name, INPUT)
    part = protocol.view(encoded(90, 90))
    assert np.isnan(scores_of(protocol, [part[0] if isinstance(part, list) else part], variables_=broken)).all()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_views_travel_to_other_processes(name):
    view = make_protocol(name, INPUT).view
    assert pickle.loads(pickle.dumps(view)) == view


def test_labels_name_what_is_not_the_paper_s():
    labels = {
        make_protocol(name, INPUT, **options).label
        for name, options in (
            ("center", {}),
            ("ten_crop", {"average": "logits"}),
            ("multi_scale", {"scales": SCALES}),
            ("multi_scale", {"scales": (64, 96), "average": "logits"}),
        )
    }
    assert labels == {"center", "ten_crop, mean of logits", "multi_scale", "multi_scale at 64, 96, mean of logits"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ten", {}, "protocol='ten' is not one of center, ten_crop, multi_scale"),
        ("ten_crop", {"average": "median"}, "average='median' is not one of probabilities, logits"),
        ("center", {"average": "logits"}, "protocol=center has one view"),
        ("ten_crop", {"scales": [64]}, "only protocol=multi_scale has scales, not ten_crop"),
        ("multi_scale", {"scales": [64, 48]}, "each at least the net's input size of 64 pixels"),
        ("multi_scale", {"scales": [64, 64]}, "must be different"),
        ("multi_scale", {"scales": []}, "must be different"),
    ],
)
def test_what_is_impossible_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_protocol(name, INPUT, **options)


@pytest.mark.parametrize("name", ["center", "ten_crop"])
def test_crops_need_a_size_to_resize_to(name):
    as_it_is = InputDescription((SIZE, SIZE, 3), PIXEL_MEAN, STD, INPUT.class_names)
    with pytest.raises(ValueError, match="data.pipeline=streamed"):
        _ = make_protocol(name, as_it_is).view
