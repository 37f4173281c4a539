"""Trains nets with each place of normalization and ReLU, and nets without normalization, and stores their records.

--scale=small: the digits, ResNet-20 and ResNet-56 of half the width, three seeds. full: CIFAR-10 with the paper's
recipe, ResNet-20, 56 and 110, five seeds.
"""

from pathlib import Path
from typing import Any

from resnet_jax import load_config
from resnet_jax.compiled_programs import keep_compiled_programs
from resnet_jax.models.arrangements import ORDERS
from resnet_jax.sweep import Runs, sweep_command

HERE = Path(__file__).parent
# A net without normalization takes pixels as they come, and its initialisation is made for a deviation of 1.
PIXELS = {"data.normalization": "channel_mean_std"}
# Without normalization a rate that suits the others may end all learning, and so may one that is too small.
RATES = (1.0, 0.2)
SMALL = {
    "model.width": 8,
    "model.scan": True,
    "train.batch_size": 32,
    "train.duration": 8,
    "train.log_every": 10,
    "schedule.learning_rate": 0.05,
    "schedule.warmup": "linear",
    "schedule.warmup_duration": 20,
    "evaluate.every": 4,
}


def placements(rate: float) -> dict[str, dict[str, Any]]:
    """By name, what a net differs in from the paper's, whose learning rate is given."""
    found: dict[str, dict[str, Any]] = {order: {"model.activation_order": order} for order in ORDERS}
    found["zero_init"] = {"model.zero_init_residual": True}
    for norm in ("none", "skipinit", "fixup"):
        for share in RATES:
            found[f"{norm}_rate{share * rate:g}"] = {
                "model.norm": norm,
                "model.bn_group_size": None,
                "schedule.learning_rate": share * rate,
                # One that diverges is a result: it goes on to the end, without the updates that are not finite.
                "train.non_finite": "skip",
                "train.most_skipped": 64_000,
            }
    return found


def small(data_dir: str | None) -> Runs:
    return {
        f"resnet{depth}_{name}_seed{seed}": load_config(
            f"digits:resnet{depth}", {**SMALL, **PIXELS, **own, "seed": seed, "data.data_dir": data_dir}
        )
        for depth in (20, 56)
        for name, own in placements(0.05).items()
        for seed in range(3)
    }


def full(data_dir: str | None) -> Runs:
    return {
        f"resnet{depth}_{name}_seed{seed}": load_config(
            f"cifar10:resnet{depth}", {**PIXELS, **own, "seed": seed, "data.data_dir": data_dir}
        )
        for depth in (20, 56, 110)
        for name, own in placements(0.1).items()
        for seed in range(5)
    }


if __name__ == "__main__":
    keep_compiled_programs()
    raise SystemExit(sweep_command(__doc__ or "", {"small": small, "full": full}, experiment=HERE))
