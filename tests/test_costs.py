"""A net's costs: counted ones are those of its summary, measured ones those of one measurement of each kind."""

import pytest

from resnet_jax import load_config, summarize
from resnet_jax.analysis.costs import net_of
from resnet_jax.benchmark.costs import cost_of


def test_costs_are_of_the_config_s_net_and_images():
    changes = {"model.name": "cifar_resnet8", "model.width": 4, "train.batch_size": 16, "evaluate.batch_size": 16}
    config = load_config("digits", changes)
    cost = cost_of(config, windows=1, seconds=0.01)
    summary = summarize("cifar_resnet8", image_size=8, channels=1, width=4)
    assert cost["image_shape"] == [8, 8, 1]
    assert (cost["parameters"], cost["multiply_adds"]) == (summary.parameters, summary.multiply_adds)
    assert sum(stage["activation_bytes"] for stage in cost["stages"]) == summary.activation_bytes
    assert cost["train"]["batch"] == cost["test"]["batch"] == 16
    assert cost["train"]["planned_bytes"] > 0 and cost["test"]["images_per_second"] > 0
    assert cost["net"] == net_of(config.to_dict())
    assert net_of({**config.to_dict(), "model": {"name": "cifar_resnet8"}}) != cost["net"]


def test_a_summary_counts_the_image_s_channels():
    grey, colour = (summarize("cifar_resnet20", image_size=8, channels=channels) for channels in (1, 3))
    assert colour.multiply_adds - grey.multiply_adds == 8 * 8 * 9 * 2 * 16
    with pytest.raises(ValueError, match="channels=0 must be at least 1"):
        summarize("cifar_resnet20", channels=0)
