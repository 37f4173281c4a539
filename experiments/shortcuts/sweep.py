"""Trains residual nets with each shortcut option, in basic and in bottleneck blocks, and stores their records.

--scale=small: the digits, 20 epochs, three seeds. full: CIFAR-10 with the paper's recipe, five seeds. imagenet:
ResNet-18 to 152, 90 epochs, one seed.
"""

from pathlib import Path
from typing import Any

from resnet_jax import load_config
from resnet_jax.sweep import Runs, sweep_command

HERE = Path(__file__).parent
OPTIONS = ("A", "B", "C")
# A rate that rises at first, so that the deeper ones train in so few steps.
SMALL = {"train.duration": 20, "evaluate.every": 2, "schedule.warmup": "linear", "schedule.warmup_duration": 20}


def small(data_dir: str | None) -> Runs:
    nets = {"resnet20": {}, "resnet56": {}, "resnet29_bottleneck": {"model.block": "bottleneck"}}
    return {
        f"{net}{option}_seed{seed}": load_config(
            "digits", {**SMALL, **own, **net_of(net, option), "seed": seed, "data.data_dir": data_dir}
        )
        for net, own in nets.items()
        for option in OPTIONS
        for seed in range(3)
    }


def full(data_dir: str | None) -> Runs:
    basic: dict[str, dict[str, Any]] = {f"resnet{depth}": {} for depth in (20, 32, 44, 56, 110)}
    bottleneck = {f"resnet{depth}_bottleneck": {"model.block": "bottleneck"} for depth in (56, 110, 164)}
    return {
        f"{net}{option}_seed{seed}": load_config(
            # The deepest begin at a smaller rate, as in section 4.2.
            "cifar10:resnet110" if net.startswith(("resnet110", "resnet164")) else "cifar10:resnet20",
            {**own, **net_of(net, option), "seed": seed, "data.data_dir": data_dir},
        )
        for net, own in (basic | bottleneck).items()
        for option in OPTIONS
        for seed in range(5)
    }


def imagenet(data_dir: str | None) -> Runs:
    return {
        f"resnet{depth}{option}": load_config(
            f"imagenet:goyal90,resnet{depth}{option}", {"data.data_dir": data_dir, "train.accumulation_steps": 4}
        )
        for depth in (18, 34, 50, 101, 152)
        for option in OPTIONS
    }


def net_of(net: str, option: str) -> dict[str, Any]:
    return {"model.name": f"cifar_{net.partition('_')[0]}", "model.shortcut": option}


if __name__ == "__main__":
    scales = {"small": small, "full": full, "imagenet": imagenet}
    raise SystemExit(sweep_command(__doc__ or "", scales, experiment=HERE))
