"""Parameters into a net: all, all but the classifier, or what fits; and what the report says of them."""

import functools
import logging

import jax
import numpy as np
import pytest
from random_variables import random_images, random_variables

from resnet_jax.models.normalization import freeze_batch_norm
from resnet_jax.models.registry import create_model, initialize
from resnet_jax.pretrained.loading import load_partial, load_pretrained
from resnet_jax.pretrained.weights import save_pretrained

SHAPE = (8, 8, 3)
TINY = {"width": 2, "stage_sizes": (2, 3), "num_classes": 5}


def tiny(name="cifar_resnet20", **options):
    model = create_model(name, **{**TINY, **options})
    return model, random_variables(model, SHAPE, train=False)


@pytest.fixture
def saved(tmp_path):
    """The net, its variables and their file."""
    model, variables = tiny()
    return model, variables, save_pretrained(tmp_path / "net.safetensors", model, variables)


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_new_classifier_is_reported_with_what_it_replaces(saved, caplog):
    model, variables, path = saved
    with caplog.at_level(logging.INFO, logger="resnet_jax"):
        load_pretrained(path, num_classes=5)
    count = len(jax.tree.leaves(variables)) - 2
    both = "(classifier/bias, classifier/kernel)"
    assert caplog.messages == [f"{path}: loaded {count} tensors, skipped 2 {both}, initialised 2 {both}"]


def test_a_classifier_of_as_many_classes_is_new_all_the_same(saved):
    model, variables, path = saved
    loaded = load_pretrained(path, num_classes=5)[1]
    assert not np.array_equal(loaded["params"]["classifier"]["kernel"], variables["params"]["classifier"]["kernel"])
    del loaded["params"]["classifier"], variables["params"]["classifier"]
    assert_equal(loaded, variables)


def test_all_of_the_same_net_fits(saved):
    model, variables, path = saved
    loaded, report = load_partial(path, model)
    assert_equal(loaded, variables)
    assert (len(report.loaded), report.skipped, report.initialised) == (len(jax.tree.leaves(variables)), (), ())


def test_what_does_not_fit_is_as_initialize_makes_it(saved):
    _, variables, path = saved
    deeper = create_model("cifar_resnet20", **{**TINY, "stage_sizes": (3, 3), "num_classes": 7})
    loaded, report = load_partial(path, deeper, key=jax.random.key(3))
    fresh = initialize(deeper, jax.random.key(3), SHAPE)
    for collection in ("params", "batch_stats"):
        for name in fresh[collection]:
            if name not in ("classifier", "stage1_block3"):
                assert_equal(loaded[collection][name], variables[collection][name])
            else:
                # One compiled program rounds otherwise than many.
                close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
                jax.tree.map(close, loaded[collection][name], fresh[collection][name])
    assert set(report.skipped) == {"classifier/kernel", "classifier/bias"}
    assert {name.split("/")[0] for name in report.initialised} == {"classifier", "stage1_block3"}
    assert len(report.loaded) + len(report.initialised) == len(jax.tree.leaves(fresh))
    assert str(report).startswith(
        f"loaded {len(report.loaded)} tensors, skipped 2 (classifier/bias, classifier/kernel)"
    )


@pytest.mark.parametrize("source", [{}, {"scan": True}])
@pytest.mark.parametrize("target", [{}, {"scan": True}, {"norm": "frozen"}, {"scan": True, "norm": "frozen"}])
def test_stacked_blocks_and_frozen_norms_fit_either_way(tmp_path, source, target):
    model, variables = tiny(**source)
    path = save_pretrained(tmp_path / "net.safetensors", model, variables)
    net = create_model("cifar_resnet20", **TINY, **target)
    loaded, report = load_partial(path, net)
    assert (report.skipped, report.initialised) == ((), ())
    images = random_images(3, SHAPE)
    expected = model.apply(variables, images, train=False)
    np.testing.assert_allclose(net.apply(loaded, images, train=False), expected, rtol=1e-5, atol=1e-5)


def test_a_frozen_net_s_file_fits_a_trainable_net(tmp_path):
    model, variables = tiny()
    path = save_pretrained(tmp_path / "net.safetensors", model.clone(norm="frozen"), freeze_batch_norm(variables))
    loaded, report = load_partial(path, model)
    assert_equal(loaded, variables)
    assert report.initialised == ()


def test_a_plain_net_takes_all_of_its_residual_twin(saved):
    _, variables, path = saved
    loaded, report = load_partial(path, create_model("cifar_plain20", **TINY))
    assert_equal(loaded, variables)
    assert report.skipped == ()
    assert report.differing == ("shortcut: A there, None here",)


def test_what_shapes_do_not_show_is_in_the_report_and_warned_of(tmp_path, caplog):
    options = {"width": 4, "stage_sizes": (1, 1), "num_classes": 2}
    model = create_model("resnet50_v1_5", **options)
    path = save_pretrained(tmp_path / "net.safetensors", model, initialize(model, jax.random.key(0), (32, 32, 3)))
    _, report = load_partial(path, create_model("resnet50", pool_padding="end", **options))
    assert report.differing == ("stride_in: 3x3 there, 1x1 here", "pool_padding: both there, end here")
    assert "; stride_in: 3x3 there, 1x1 here" in str(report)
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "the net computes something else: stride_in: 3x3 there, 1x1 here; pool_padding: both there, end here"
    ]
    assert load_partial(path, model.clone(remat=True))[1].differing == ()


def test_a_net_that_nothing_fits_is_refused(saved):
    _, _, path = saved
    with pytest.raises(ValueError, match="none of its .* tensors fits the net"):
        load_partial(path, create_model("resnet18", width=3, stage_sizes=(1,), num_classes=2))
