"""Trains plain and residual nets that are diagnosed all the way, and looks at the loss around where they end."""

import argparse
from pathlib import Path
from typing import NamedTuple

from costs import write_costs
from landscape import draw, measure_all

from resnet_jax import load_config
from resnet_jax.training.loop import train_seeds
from resnet_jax.workdir import Workdir

HERE = Path(__file__).parent


class Scale(NamedTuple):
    """What is trained.

    Attributes:
      config: its name.
      variants: of the config, plain before residual.
      overrides: of its keys.
      points: of the landscape, along each axis of the plane.
    """

    config: str
    variants: tuple[str, ...]
    overrides: dict
    points: int


SCALES = {
    "small": Scale(
        "digits",
        ("plain20", "resnet20", "plain56", "resnet56"),
        {
            "train.duration": 10,
            "evaluate.every": 2,
            "checkpoint.every": 10,
            "diagnostics.every": 2.5,
            "diagnostics.images": 64,
        },
        points=9,
    ),
    "full": Scale(
        "cifar10",
        ("plain20", "resnet20", "plain56", "resnet56", "plain110", "resnet110"),
        {"diagnostics.every": 4000, "diagnostics.images": 512},
        points=25,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--seeds", type=int, default=2, help="trained in one program (%(default)s)")
    parser.add_argument("--data_dir", help="folder of TFDS data sets")
    flags = parser.parse_args()
    scale = SCALES[flags.scale]
    experiment = HERE if flags.scale == "small" else HERE / flags.scale
    common = {"num_seeds": flags.seeds, "data.data_dir": flags.data_dir, "diagnostics.curvature": True}
    first_seeds = []
    for variant in scale.variants:
        workdir = Workdir(flags.workdir / variant)
        config = load_config(f"{scale.config}:{variant}", {**common, **scale.overrides})
        records = train_seeds(config, workdir.path)
        folders = [workdir.of_seed(record["seed"]) if len(records) > 1 else workdir for record in records]
        for record, folder in zip(records, folders, strict=True):
            folder.publish(experiment, f"{variant}_seed{record['seed']}")
        first_seeds.append(folders[0].path)
    measure_all(first_seeds, experiment / "landscape.json", points=scale.points)
    draw(experiment / "landscape.json", experiment / "landscape.png")
    write_costs(experiment)


if __name__ == "__main__":
    main()
