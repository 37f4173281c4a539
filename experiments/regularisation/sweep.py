"""Trains nets with one kind of regularisation at a time, and stores their records.

--scale=small: 300 digits, ResNet-20 and ResNet-56 of half the width, three seeds. full: CIFAR-10 with the paper's
recipe, ResNet-20 and ResNet-110 with five seeds, ResNet-1202 with one.
"""

from pathlib import Path
from typing import Any

from resnet_jax import load_config
from resnet_jax.compiled_programs import keep_compiled_programs
from resnet_jax.sweep import Runs, sweep_command

HERE = Path(__file__).parent
# So few images, and none of them shifted, that a net learns them by heart.
SMALL = {
    "model.width": 8,
    "model.scan": True,
    "data.train_split": "train[:300]",
    "data.pad": 0,
    "train.batch_size": 32,
    "train.duration": 25,
    "train.log_every": 10,
    "schedule.learning_rate": 0.05,
    "schedule.warmup": "linear",
    "schedule.warmup_duration": 20,
    "evaluate.every": 5,
}


def regularisations(cutout: int) -> dict[str, dict[str, Any]]:
    """By name, what differs from the paper's recipe, which has weight decay alone; `cutout` is a side in pixels."""
    return {
        "decay1e-4": {},
        "decay0": {"optimizer.weight_decay": 0.0},
        "decay5e-4": {"optimizer.weight_decay": 5e-4},
        "dropout0.2": {"model.dropout_rate": 0.2},
        "dropout0.5": {"model.dropout_rate": 0.5},
        "depth0.5": {"model.stochastic_depth": 0.5},
        "mixup1": {"data.mixup": 1.0},
        f"cutout{cutout}": {"data.cutout": cutout},
        "smoothing0.1": {"train.label_smoothing": 0.1},
    }


def small(data_dir: str | None) -> Runs:
    return {
        f"resnet{depth}_{name}_seed{seed}": load_config(
            f"digits:resnet{depth}", {**SMALL, **own, "seed": seed, "data.data_dir": data_dir}
        )
        for depth in (20, 56)
        for name, own in regularisations(cutout=3).items()
        for seed in range(3)
    }


def full(data_dir: str | None) -> Runs:
    # A thousand steps of 1202 layers take minutes.
    own_of_depth: dict[int, dict[str, Any]] = {20: {}, 110: {}, 1202: {"checkpoint.every": 500}}
    return {
        f"resnet{depth}_{name}_seed{seed}": load_config(
            f"cifar10:resnet{depth}", {**of_depth, **own, "seed": seed, "data.data_dir": data_dir}
        )
        for depth, of_depth in own_of_depth.items()
        for name, own in regularisations(cutout=16).items()
        for seed in range(1 if depth == 1202 else 5)
    }


if __name__ == "__main__":
    keep_compiled_programs()
    raise SystemExit(sweep_command(__doc__ or "", {"small": small, "full": full}, experiment=HERE))
