"""The runs of the study as data, most informative first: at full scale the paper's, at small scale their likeness."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from resnet_jax import load_config
from resnet_jax.config import differing_keys, flatten, nest
from resnet_jax.config_files import from_json
from resnet_jax.config_keys import KEYS
from resnet_jax.workdir import MAY_CHANGE, may_differ


class Run(NamedTuple):
    """One net trained once.

    Attributes:
      name: of its workdir and its record.
      variant: of configs/cifar10.py.
      changes: config keys that differ from the variant's.
      seed: of initial parameters, order and augmentation.
    """

    name: str
    variant: str
    changes: Mapping[str, Any]
    seed: int

    @property
    def group(self) -> str:
        """What the runs that differ in nothing but the seed have in common."""
        return self.name.rpartition("_seed")[0]

    def config(self) -> ConfigDict:
        """The checked config."""
        return load_config(f"cifar10:{self.variant}", {**self.changes, "seed": self.seed})


class Scale(NamedTuple):
    """A list of runs, and what is shown of them.

    Attributes:
      runs: in the order in which they are made.
      folder: where records/ and figures lie in the experiment's.
      responses_on: test images that layer responses are measured on.
      plain: groups of Figure 6's first panel; Figure 1 has the first and the last of them.
      residual: groups of its second panel.
      deep: groups of its third panel, the two that the question of overfitting is about.
      responses: groups of Figure 7.
    """

    runs: tuple[Run, ...]
    folder: Path
    responses_on: int
    plain: tuple[str, ...]
    residual: tuple[str, ...]
    deep: tuple[str, ...]
    responses: tuple[str, ...]


def several(group: str, seeds: range, *changes: Mapping[str, Any], variant: str | None = None) -> list[Run]:
    """Runs that differ in nothing but the seed; the variant is the first part of the group's name unless given."""
    merged = {key: value for change in changes for key, value in change.items()}
    variant = variant or group.partition("_")[0]
    return [Run(f"{group}_seed{seed}", variant, merged, seed) for seed in seeds]


def differing(record: Mapping[str, Any], run: Run) -> list[str]:
    """The config keys in which a record is not of this run; none if it is."""
    # What a config could not say yet when the record was made was as it is now by default.
    theirs = {key: rule.default for key, rule in KEYS.items()} | flatten(from_json(json.dumps(record["config"])))
    keys = differing_keys(nest(theirs), run.config())
    return [key for key in keys if not (may_differ(key) or key in MAY_CHANGE or key.startswith("steps."))]


def images_in(split: str) -> int:
    """Images of a split of CIFAR-10 in TFDS's syntax, such as train[:45000]."""
    found = re.fullmatch(r"(train|test)(?:\[(\d*):(\d*)\])?", split)
    if not found:
        raise ValueError(f"split={split!r} is none of train, test, and parts of them such as train[:45000]")
    whole = {"train": 50_000, "test": 10_000}[found[1]]
    return int(found[3] or whole) - int(found[2] or 0)


ONE, TWO, THREE, FIVE = range(1), range(2), range(3), range(5)
DROPOUT, DECAY = {"model.dropout_rate": 0.5}, {"optimizer.weight_decay": 5e-4}

# The paper's nets and recipe, from configs/cifar10.py as it is. The last step counts, so that no best one is kept.
FULL = {"train.log_every": 500, "checkpoint.keep_best": 0}
# A thousand steps of 1202 layers take minutes.
DEEP = {**FULL, "checkpoint.every": 500}
SPLIT = {"data.train_split": "train[:45000]", "data.validation_split": "train[45000:]"}
NETS = {
    **{"resnet20": FIVE, "resnet110": FIVE, "plain20": THREE, "plain56": THREE, "resnet56": FIVE},
    **{"resnet32": FIVE, "resnet44": FIVE, "plain32": THREE, "plain44": THREE, "plain110": THREE},
}


def _full() -> list[Run]:
    return [
        *(run for net, seeds in NETS.items() for run in several(net, seeds, FULL)),
        *(run for net, seeds in NETS.items() for run in several(f"{net}_45k", seeds, FULL, SPLIT)),
        *several("resnet1202", ONE, DEEP),
        # Overfitting, at the 1.7 million parameters of 110 layers and the 19.4 million of 1202.
        *several("resnet110_dropout0.5", THREE, FULL, DROPOUT),
        *several("resnet110_decay5e-4", THREE, FULL, DECAY),
        *several("resnet20_width41", THREE, FULL, {"model.width": 41}),
        *several("resnet110_width54", ONE, FULL, {"model.width": 54}),
        *several("resnet20_width136", ONE, FULL, {"model.width": 136}),
        *several("resnet1202_dropout0.5", ONE, DEEP, DROPOUT),
        *several("resnet1202_decay5e-4", ONE, DEEP, DECAY),
        *several("resnet1202_45k", ONE, DEEP, SPLIT),
        *several("resnet1202", FIVE, DEEP)[1:],
    ]


# Depths that stand for the paper's: at half the width, on a fifth of the images, for some hundred steps.
STANDS_FOR = {"8": "20", "20": "56", "32": "110", "56": "1202"}
STEPS = 160
SMALL = {
    "model.width": 8,
    "model.bn_group_size": 32,
    "data.train_split": "train[:10000]",
    "data.test_split": "test[:1000]",
    "train.batch_size": 32,
    "train.duration": STEPS,
    "train.log_every": 10,
    "schedule.reference_batch_size": 128,
    "schedule.boundaries": (STEPS // 2, STEPS * 3 // 4),
    "schedule.warmup_window": 10,
    "evaluate.train_split": "train[:1000]",
    "evaluate.every": 40,
    "checkpoint.every": 40,
    "checkpoint.keep_best": 0,
}
SMALL_SPLIT = {"data.train_split": "train[:9000]", "data.validation_split": "train[9000:10000]"}


def _small(group: str, seeds: range, *changes: Mapping[str, Any]) -> list[Run]:
    family, depth = re.findall(r"[a-z]+|\d+", group)[:2]
    net = {**SMALL, "model.name": f"cifar_{family}{depth}"}
    return several(group, seeds, net, *changes, variant=family + STANDS_FOR[depth])


def _small_runs() -> list[Run]:
    return [
        *(run for depth in (8, 20, 32) for run in _small(f"resnet{depth}", TWO)),
        *(run for depth in (8, 20, 32) for run in _small(f"plain{depth}", TWO)),
        *_small("resnet20_split", ONE, SMALL_SPLIT),
        *_small("resnet56", ONE),
        *_small("resnet32_dropout0.5", ONE, DROPOUT),
        *_small("resnet32_decay5e-4", ONE, DECAY),
        *_small("resnet8_width20", ONE, {"model.width": 20}),
    ]


HERE = Path(__file__).resolve().parent
SCALES = {
    "full": Scale(
        runs=tuple(_full()),
        folder=Path("."),
        responses_on=10_000,
        plain=("plain20", "plain32", "plain44", "plain56"),
        residual=("resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),
        deep=("resnet110", "resnet1202"),
        responses=("plain20", "plain56", "resnet20", "resnet56", "resnet110"),
    ),
    "small": Scale(
        runs=tuple(_small_runs()),
        folder=Path("small"),
        responses_on=200,
        plain=("plain8", "plain20", "plain32"),
        residual=("resnet8", "resnet20", "resnet32"),
        deep=("resnet32", "resnet56"),
        responses=("plain8", "plain20", "resnet8", "resnet20", "resnet32"),
    ),
}
