"""The runs of the study as data, most informative first: the paper's, shortened, and their likeness in small."""

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from resnet_jax import load_config
from resnet_jax.config import differing_keys
from resnet_jax.config_files import from_json
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

    @property
    def record(self) -> str:
        """Of its file, among the scale's."""
        return f"{self.name}.json"

    def config(self) -> ConfigDict:
        """The checked config."""
        return load_config(f"cifar10:{self.variant}", {**self.changes, "seed": self.seed})

    def differing(self, record: Mapping[str, Any]) -> list[str]:
        """The config keys in which a record is not of this run; none if it is."""
        keys = differing_keys(from_json(json.dumps(record["config"])), self.config())
        return [key for key in keys if not (may_differ(key) or key in MAY_CHANGE or key.startswith("steps."))]


class Yardstick(NamedTuple):
    """One net trained once by `pytorch_reference.py`, to be compared with a group of runs.

    Attributes:
      group: of the runs, which have the same net, recipe and data.
      net: of the group.
      steps: likewise.
      seed: of draws of its own.
    """

    group: str
    net: str
    steps: int
    seed: int

    @property
    def name(self) -> str:
        """Of its workdir."""
        return f"pytorch_{self.group}_seed{self.seed}"

    @property
    def record(self) -> str:
        """Of its file, among the scale's."""
        return f"pytorch/{self.group}_seed{self.seed}.json"

    def config(self) -> dict[str, Any]:
        """As `pytorch_reference.run` takes it."""
        own = {"net": self.net, "seed": self.seed, "steps": self.steps}
        return own | {"dataset": "cifar10", "bf16": False, "compile": None}

    def differing(self, record: Mapping[str, Any]) -> list[str]:
        """As `Run.differing`."""
        return [key for key, value in self.config().items() if record["config"].get(key, value) != value]


class Scale(NamedTuple):
    """A list of runs, and what is shown of them.

    Attributes:
      runs: in the order in which they are made.
      yardsticks: each is made after the runs that it is compared with.
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
    yardsticks: tuple[Yardstick, ...] = ()


def in_order(scale: Scale) -> list[Run | Yardstick]:
    """All that is trained, in its order."""
    found: list[Run | Yardstick] = []
    for group, runs in itertools.groupby(scale.runs, key=lambda run: run.group):
        found += [*runs, *(own for own in scale.yardsticks if own.group == group and own not in found)]
    return found


def several(group: str, seeds: range, *changes: Mapping[str, Any], variant: str | None = None) -> list[Run]:
    """Runs that differ in nothing but the seed; the variant is the first part of the group's name unless given."""
    merged = {key: value for change in changes for key, value in change.items()}
    variant = variant or group.partition("_")[0]
    return [Run(f"{group}_seed{seed}", variant, merged, seed) for seed in seeds]


def images_in(split: str) -> int:
    """Images of a split of CIFAR-10 in TFDS's syntax, such as train[:45000]."""
    found = re.fullmatch(r"(train|test)(?:\[(\d*):(\d*)\])?", split)
    if not found:
        raise ValueError(f"split={split!r} is none of train, test, and parts of them such as train[:45000]")
    whole = {"train": 50_000, "test": 10_000}[found[1]]
    return int(found[3] or whole) - int(found[2] or 0)


ONE, TWO, THREE, FIVE = range(1), range(2), range(3), range(5)
DROPOUT, DECAY = {"model.dropout_rate": 0.5}, {"optimizer.weight_decay": 5e-4}
# Side and alpha as their papers have them for CIFAR-10 (DeVries and Taylor 2017, Zhang et al. 2018).
CUTOUT, MIXUP = {"data.cutout": 16}, {"data.mixup": 1.0}
RANDAUGMENT = {"data.policy": "randaugment", "data.policy_operations": 3, "data.policy_magnitude": 5}
AGAINST_OVERFITTING = {
    **{"dropout0.5": DROPOUT, "decay5e-4": DECAY},
    **{"cutout16": CUTOUT, "mixup1": MIXUP, "randaugment": RANDAUGMENT},
}

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
        *(run for name, own in AGAINST_OVERFITTING.items() for run in several(f"resnet110_{name}", THREE, FULL, own)),
        *several("resnet20_width41", THREE, FULL, {"model.width": 41}),
        *several("resnet110_width54", ONE, FULL, {"model.width": 54}),
        *several("resnet20_width136", ONE, FULL, {"model.width": 136}),
        *(run for name, own in AGAINST_OVERFITTING.items() for run in several(f"resnet1202_{name}", ONE, DEEP, own)),
        *several("resnet1202_45k", ONE, DEEP, SPLIT),
        *several("resnet1202", FIVE, DEEP)[1:],
    ]


# A loop of steps spares a CPU the memory that it would clear for each of them.
FEW_CALLS = {"train.steps_per_dispatch": 10}

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
    **FEW_CALLS,
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
        *(run for name, own in AGAINST_OVERFITTING.items() for run in _small(f"resnet32_{name}", ONE, own)),
        *_small("resnet8_width20", ONE, {"model.width": 20}),
    ]


# The paper's nets for some hundred steps, as long as a CPU can stand, beside PyTorch.
SHORT_STEPS = 400
SHORT = {
    "train.duration": SHORT_STEPS,
    "train.log_every": 20,
    **FEW_CALLS,
    "schedule.boundaries": (SHORT_STEPS // 2, SHORT_STEPS * 3 // 4),
    "evaluate.every": SHORT_STEPS // 2,
    "checkpoint.every": SHORT_STEPS // 4,
    "checkpoint.keep_best": 0,
}
COMPARED = ("resnet20", "resnet56")


def _yardsticks(steps: int) -> tuple[Yardstick, ...]:
    return tuple(Yardstick(net, f"cifar_{net}", steps, seed) for net in COMPARED for seed in FIVE)


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
        yardsticks=_yardsticks(64_000),
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
    "short": Scale(
        runs=tuple(run for net in COMPARED for run in several(net, FIVE, SHORT)),
        folder=Path("short"),
        responses_on=1000,
        plain=(),
        residual=COMPARED,
        deep=(),
        responses=COMPARED,
        yardsticks=_yardsticks(SHORT_STEPS),
    ),
}
