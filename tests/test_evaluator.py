"""Evaluation counts every image exactly once, on any number of devices and with any batch size."""

import jax
import numpy as np
import pytest

from resnet_jax.data.input_description import InputDescription
from resnet_jax.data.resident import ResidentData
from resnet_jax.distributed import data_mesh, replicate
from resnet_jax.evaluation.evaluator import make_evaluator, make_scorer
from resnet_jax.evaluation.protocols import make_protocol
from resnet_jax.models.registry import create_model, initialize
from resnet_jax.training.batch_statistics import recompute_statistics

COUNT, SHAPE = 37, (8, 8, 3)
MODEL = create_model("cifar_resnet8", stage_sizes=(1,), width=4)
VARIABLES = initialize(MODEL, jax.random.key(0), SHAPE)
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (COUNT, *SHAPE)).astype(np.uint8)
LABELS = RANDOM.integers(0, 10, COUNT).astype(np.int32)
MEAN, STD = np.full(3, 120, np.float32), np.full(3, 50, np.float32)
INPUT = InputDescription(SHAPE, MEAN, STD, tuple(map(str, range(10))))
DEVICES_AND_BATCH_SIZES = ((1, 37), (1, 10), (2, 7), (8, 3), (8, 64))


def on_devices(mesh):
    return replicate(VARIABLES, mesh), replicate(ResidentData(images=IMAGES, labels=LABELS), mesh)


def test_errors_equal_those_of_one_pass_over_all_images():
    logits = np.asarray(MODEL.apply(VARIABLES, (IMAGES - MEAN) / STD, train=False))
    order = np.argsort(-logits, axis=-1)
    for devices, batch_size in DEVICES_AND_BATCH_SIZES:
        mesh = data_mesh(jax.devices()[:devices])
        evaluate = make_evaluator(MODEL, mesh, protocol="center", batch_size=batch_size, input=INPUT)
        found = evaluate(*on_devices(mesh))
        assert found["count"] == COUNT
        assert found["error_top1"] == np.mean(order[:, 0] != LABELS)
        assert found["error_top5"] == np.mean([y not in row[:5] for y, row in zip(LABELS, order, strict=True)])


def test_scores_are_the_logits_of_every_image_in_order():
    logits = np.asarray(MODEL.apply(VARIABLES, (IMAGES - MEAN) / STD, train=False))
    for devices, batch_size in DEVICES_AND_BATCH_SIZES:
        mesh = data_mesh(jax.devices()[:devices])
        score = make_scorer(MODEL, mesh, protocol=make_protocol("center", INPUT), batch_size=batch_size)
        found, labels = score(*on_devices(mesh))
        np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize("protocol", ["ten_crop", "multi_scale"])
def test_images_of_one_size_have_no_other_views(protocol):
    mesh = data_mesh(jax.devices()[:1])
    evaluate = make_evaluator(MODEL, mesh, protocol=protocol, batch_size=8, input=INPUT)
    with pytest.raises(ValueError, match="varying size .data.pipeline=streamed"):
        evaluate(*on_devices(mesh))


def test_recomputed_statistics_are_the_plain_average_over_the_batches():
    batches = [jax.numpy.asarray((IMAGES[start : start + 12] - MEAN) / STD) for start in (0, 12, 24)]
    found = recompute_statistics(MODEL, VARIABLES, batches)["batch_stats"]["stem"]["norm"]
    kernel = VARIABLES["params"]["stem"]["conv"]["kernel"]
    outputs = [
        np.asarray(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
        for x in batches
    ]
    np.testing.assert_allclose(
        found["mean"], np.mean([y.mean((0, 1, 2)) for y in outputs], axis=0), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(found["var"], np.mean([y.var((0, 1, 2)) for y in outputs], axis=0), rtol=1e-4)


def test_recomputing_from_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one batch"):
        recompute_statistics(MODEL, VARIABLES, [])
