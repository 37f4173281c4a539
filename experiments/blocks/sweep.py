"""Trains nets that cost the same and are built otherwise, and stores their records.

Basic against bottleneck blocks with as many multiply-adds, and with as many parameters, as a reference of basic blocks;
and deeper, narrower nets against wider ones with as many multiply-adds. --scale=small: beside a ResNet-20 on the
digits, 20 epochs, three seeds. full: beside a ResNet-56 on CIFAR-10 with the paper's recipe, five seeds.
"""

from pathlib import Path
from typing import Any

from resnet_jax import load_config, summarize
from resnet_jax.models.summary import Summary
from resnet_jax.sweep import Runs, sweep_command

HERE = Path(__file__).parent
SMALL = {"train.duration": 20, "evaluate.every": 2, "schedule.warmup": "linear", "schedule.warmup_duration": 20}
# Layers, by block.
SMALL_DEPTHS = {"basic": (8, 14, 20, 32, 56), "bottleneck": (20, 29)}
FULL_DEPTHS = {"basic": (8, 14, 20, 32, 56, 110), "bottleneck": (56, 83)}
COSTS = ("multiply_adds", "parameters")


def net_of(depth: int, block: str, width: int) -> dict[str, Any]:
    # With option A, thin blocks would be filled up with zeros to four times their channels.
    return {"name": f"cifar_resnet{depth}", "block": block, "shortcut": "B", "width": width}


def matched_width(depth: int, block: str, cost: str, reference: Summary) -> int:
    """The width with which a net costs what the reference costs, or comes nearest, in ratio."""
    size, _, channels = reference.image_shape
    wanted = getattr(reference, cost)

    def cost_of(width: int) -> int:
        return getattr(summarize(**net_of(depth, block, width), image_size=size, channels=channels), cost)

    above = next(width for width in range(1, 1000) if cost_of(width) >= wanted)
    below = max(1, above - 1)
    return above if cost_of(above) / wanted <= wanted / cost_of(below) else below


def nets(depths: dict[str, tuple[int, ...]], reference: Summary) -> dict[str, dict[str, Any]]:
    """By name; where both costs ask for one width, which they mostly do, one net stands for both."""
    wanted = [
        (depth, block, matched_width(depth, block, cost, reference))
        for block, of_block in depths.items()
        for depth in of_block
        # Of basic blocks the question is depth against width, at as many multiply-adds.
        for cost in (COSTS if block == "bottleneck" else COSTS[:1])
    ]
    return {f"{block}{depth}_width{width}": net_of(depth, block, width) for depth, block, width in wanted}


def runs_of(config: str, found: dict[str, dict[str, Any]], common: dict[str, Any], seeds: int) -> Runs:
    return {
        f"{name}_seed{seed}": load_config(
            config, {**common, **{f"model.{key}": value for key, value in net.items()}, "seed": seed}
        )
        for name, net in found.items()
        for seed in range(seeds)
    }


def small(data_dir: str | None) -> Runs:
    reference = summarize(**net_of(20, "basic", 16), image_size=8, channels=1)
    return runs_of("digits", nets(SMALL_DEPTHS, reference), {**SMALL, "data.data_dir": data_dir}, 3)


def full(data_dir: str | None) -> Runs:
    reference = summarize(**net_of(56, "basic", 16))
    # All begin at a smaller rate, as the deepest has to (section 4.2).
    return runs_of("cifar10:resnet110", nets(FULL_DEPTHS, reference), {"data.data_dir": data_dir}, 5)


if __name__ == "__main__":
    raise SystemExit(sweep_command(__doc__ or "", {"small": small, "full": full}, experiment=HERE))
