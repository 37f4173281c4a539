"""The runs of the experiments' sweeps: every config is possible, and what is to cost the same does."""

from pathlib import Path

import pytest
from experiment_modules import experiment_modules

from resnet_jax import summarize
from resnet_jax.config import check

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
# With `sweep_command`: scales by name.
SWEEPS = {
    "shortcuts": ("small", "full", "imagenet"),
    **dict.fromkeys(("blocks", "placement", "regularisation"), ("small", "full")),
}


def runs_of(experiment, scale, data_dir="data"):
    with experiment_modules(EXPERIMENTS / experiment) as load:
        return getattr(load("sweep"), scale)(data_dir)


@pytest.mark.parametrize(
    ("experiment", "scale"), [(experiment, scale) for experiment, scales in SWEEPS.items() for scale in scales]
)
def test_every_run_has_a_possible_config_of_its_own(experiment, scale):
    runs = runs_of(experiment, scale)
    for config in runs.values():
        check(config)
        assert config.data.data_dir == "data"
    assert len({config.to_json_best_effort() for config in runs.values()}) == len(runs)


@pytest.mark.parametrize(("scale", "reference", "tolerance"), [("small", "basic20", 0.07), ("full", "basic56", 0.06)])
def test_nets_of_one_cost_cost_about_the_same(scale, reference, tolerance):
    image = {"small": {"image_size": 8, "channels": 1}, "full": {}}[scale]
    costs = {}
    for name, config in runs_of("blocks", scale).items():
        options = {key: config.model[key] for key in ("block", "shortcut", "width")}
        costs[name] = summarize(config.model.name, **options, **image)
    wanted = next(cost for name, cost in costs.items() if name.startswith(reference))
    for name, cost in costs.items():
        ratios = [getattr(cost, each) / getattr(wanted, each) for each in ("multiply_adds", "parameters")]
        kinds = ratios if "bottleneck" in name else ratios[:1]
        assert any(abs(ratio - 1) < tolerance for ratio in kinds), (name, ratios)
    # The question is answered both ways: shallower and deeper nets, and the other block.
    assert {name.partition("_")[0] for name in costs} >= {reference, "basic8", "basic32"}
    assert any(name.startswith("bottleneck") for name in costs)
