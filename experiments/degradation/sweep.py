"""Trains plain and residual nets of three depths on the digits, several seeds each, and stores their records."""

import argparse
from pathlib import Path

from resnet_jax import load_config, train
from resnet_jax.workdir import Workdir

HERE = Path(__file__).parent
# Half the quick start's epochs: enough to see who trains and who does not.
OVERRIDES = {"train.duration": 20, "evaluate.every": 2}
VARIANTS = ("plain20", "resnet20", "plain56", "resnet56", "plain110", "resnet110")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, default=3)
    flags = parser.parse_args()
    for variant in VARIANTS:
        for seed in range(flags.seeds):
            name = f"{variant}_seed{seed}"
            workdir = flags.workdir / name
            train(load_config(f"digits:{variant}", {**OVERRIDES, "seed": seed}), workdir)
            Workdir(workdir).publish(HERE, name)


if __name__ == "__main__":
    main()
