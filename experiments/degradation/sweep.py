"""Trains plain and residual nets of three depths on the digits, several seeds each, and stores their records."""

import argparse
from pathlib import Path

from resnet_jax import load_config
from resnet_jax.sweep import sweep

HERE = Path(__file__).parent
# Half the quick start's epochs: enough to see who trains and who does not.
OVERRIDES = {"train.duration": 20, "evaluate.every": 2}
VARIANTS = ("plain20", "resnet20", "plain56", "resnet56", "plain110", "resnet110")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, default=3)
    flags = parser.parse_args()
    runs = {
        f"{variant}_seed{seed}": load_config(f"digits:{variant}", {**OVERRIDES, "seed": seed})
        for variant in VARIANTS
        for seed in range(flags.seeds)
    }
    sweep(runs, workdir=flags.workdir, experiment=HERE)


if __name__ == "__main__":
    main()
