"""Nets that are tested on one split: what each needs, and their scores, for which an image is decoded once."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from resnet_jax.build import open_split
from resnet_jax.data.datasets import DatasetInfo, dataset_info, split_size
from resnet_jax.data.examples import Examples
from resnet_jax.evaluation.evaluator import make_scorer, refuse_resident, score_together
from resnet_jax.evaluation.protocols import Protocol
from resnet_jax.evaluation.scores import Scores
from resnet_jax.evaluation.trained_net import TrainedNet

PathLike = str | os.PathLike


@dataclass(frozen=True)
class Test:
    """A net and what it is tested on; all that can be wrong is found before the first image of any is scored.

    Attributes:
      net: the net.
      protocol: how it is tested.
      info: of the data set.
      split: in TFDS's syntax.
      recompute_batches: training batches over which batch statistics are averaged first; 0 keeps the running ones.
    """

    net: TrainedNet
    protocol: Protocol
    info: DatasetInfo
    split: str
    recompute_batches: int

    @classmethod
    def of(
        cls,
        net: TrainedNet,
        protocol: Protocol,
        *,
        split: str | None,
        data_dir: PathLike | None,
        recompute_batches: int,
    ) -> "Test":
        """Raises ValueError for a net and a split that do not fit, FileNotFoundError where there is no such data."""
        config = net.config
        if config.data.pipeline == "resident":
            refuse_resident(protocol)
        if recompute_batches and (norm := config.model.norm) != "batch":
            raise ValueError(f"recompute_statistics needs batch statistics; this net has model.norm={norm}")
        info = dataset_info(config.data.name, data_dir=data_dir or config.data.data_dir)
        split = split or config.data.test_split
        split_size(info, split)
        if info.class_names != net.input.class_names:
            raise ValueError(
                f"the net was trained on other classes than those of {info.name!r} in {info.directory}: "
                f"{_first(net.input.class_names)}, not {_first(info.class_names)}; "
                "where only the names differ, resnet-jax convert --class_names=FILE puts them right"
            )
        return cls(net, protocol, info, split, recompute_batches)

    @property
    def pixels(self) -> tuple:
        """What decides which pixels the net is given: tests with equal ones share the decoding."""
        data = self.net.config.data
        view = self.protocol.view if data.pipeline == "streamed" else None
        return data.pipeline, self.info.directory, view, self.protocol.average

    def variables(self, mesh: Mesh, *, workers: int | None) -> dict:
        """Those that are tested."""
        if not self.recompute_batches:
            return self.net.variables
        batches = self.recompute_batches
        return self.net.with_recomputed_statistics(self.info, mesh, batches=batches, workers=workers).variables

    def named(self, name: str, logits: np.ndarray, labels: np.ndarray) -> Scores:
        """Its scores under the name that tables give it."""
        label, step = self.protocol.label, self.net.step
        return Scores(logits, labels, name, label, dataset=self.info.name, split=self.split, step=step)


def score_all(
    tests: Sequence[Test],
    names: Sequence[str],
    files: Sequence[Path | None],
    mesh: Mesh,
    *,
    batch_size: int | None,
    workers: int | None,
) -> list[Scores]:
    """The scores of each net, written where there is a file; nets that are given the same pixels share the decoding.

    Args:
      tests: of one split.
      names: of the nets.
      files: for the scores.
      mesh: devices that share each batch.
      batch_size: see `make_scorer`; None is the config's, the smallest of those that share.
      workers: decoding processes; None is the config's.
    """
    groups: dict[tuple, list[int]] = {}
    for number, test in enumerate(tests):
        groups.setdefault(test.pixels, []).append(number)
    found: dict[int, Scores] = {}
    for numbers in groups.values():
        group = [tests[number] for number in numbers]
        logits, labels = _score_group(group, mesh, batch_size=batch_size, workers=workers)
        for number, test, own in zip(numbers, group, logits, strict=True):
            found[number] = test.named(names[number], own, labels)
            if (file := files[number]) is not None and jax.process_index() == 0:
                found[number].save(file)
    return [found[number] for number in range(len(tests))]


def _score_group(
    group: Sequence[Test], mesh: Mesh, *, batch_size: int | None, workers: int | None
) -> tuple[list[np.ndarray], np.ndarray]:
    configs, info = [test.net.config for test in group], group[0].info
    workers = configs[0].data.workers if workers is None else workers
    size: int = batch_size or min(config.evaluate.batch_size for config in configs)
    nets = [(test.net.model, test.variables(mesh, workers=workers)) for test in group]
    protocols = [test.protocol for test in group]
    split = open_split(configs[0], info, group[0].split, mesh)
    if isinstance(split, Examples):
        return score_together(nets, split, mesh, protocols=protocols, batch_size=size, workers=workers)
    scored = [
        make_scorer(model, mesh, protocol=protocol, batch_size=size, workers=workers)(variables, split)
        for (model, variables), protocol in zip(nets, protocols, strict=True)
    ]
    return [logits for logits, _ in scored], scored[0][1]


def _first(class_names: Sequence[str]) -> str:
    return f"{len(class_names)} ({', '.join(class_names[:3])}, ...)"
