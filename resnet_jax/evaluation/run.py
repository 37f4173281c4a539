"""Evaluation of nets from workdirs and weight files, one or an ensemble of several, and of scores saved earlier."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn

from resnet_jax.distributed import data_mesh
from resnet_jax.evaluation.members import Test, score_all
from resnet_jax.evaluation.protocols import make_protocol
from resnet_jax.evaluation.scores import Scores, ensemble
from resnet_jax.evaluation.trained_net import TrainedNet
from resnet_jax.workdir import Workdir

PathLike = str | os.PathLike


def evaluate(
    workdirs: PathLike | Sequence[PathLike] = (),
    *,
    weights: PathLike | Sequence[PathLike] = (),
    scores: PathLike | Sequence[PathLike] = (),
    config: Any = None,
    protocol: str = "center",
    average: str = "probabilities",
    scales: Sequence[int] | None = None,
    checkpoint: str | int = "latest",
    split: str | None = None,
    data_dir: PathLike | None = None,
    save_scores: PathLike | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    recompute_statistics: int = 0,
) -> dict[str, Any]:
    """Tests trained nets on a whole split, each alone and, if there are several, their ensemble (Table 5).

    Args:
      workdirs: of the runs; one path, or several, as of the next two.
      weights: what `load_weights` reads (files, folders, names of the catalogue), more nets.
      scores: files that `save_scores` made, of more members.
      config: says on what data the nets of weight files are tested, from `load_config`; None is the first run's.
      protocol: a name of `PROTOCOLS`, for all nets.
      average: over the views of an image, "probabilities" or "logits"; an ensemble always averages probabilities.
      scales: of protocol multi_scale; None are the paper's.
      checkpoint: of each run "latest", "best" (by the validation split's error; without one by the test split's, and
        then its test error is a selected one), or a step. A run that keeps averaged parameters is tested with them.
      split: in TFDS's syntax; None is the config's test split.
      data_dir: where the data sets lie; None is the config's.
      save_scores: where the nets' scores are kept: a file NAME.npz for a single one, or a folder, in which each gets
        one with the name of its workdir or weight file.
      batch_size: images of one step, fewer where the protocol sees more of an image; None is the config's.
      workers: processes that decode; None is the config's.
      recompute_statistics: training batches over which to average the statistics of batch normalization first;
        0 keeps the running ones.

    Returns:
      {"members": [{"member", "loss", "error_top1", "error_top5" (fractions), "count", "protocol", "split", "step"}
      for each workdir, then each weight file and each file of scores]}, and with several "ensemble", such an entry.
      Only a workdir's has a step.

    Raises:
      FileNotFoundError: a workdir that holds no run or no checkpoint, or a data set or file that is missing.
      ValueError: no member, members of different images, or an unknown protocol, split or checkpoint.
    """
    workdirs, weights, scores = _paths(workdirs), _paths(weights), _paths(scores)
    if not workdirs and not weights and not scores:
        raise ValueError("there is nothing to evaluate: name a workdir, a weight file or a file of scores")
    for key, value, lowest in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value is not None and value < lowest:
            raise ValueError(f"{key}={value}: must be at least {lowest}")
    saved = [Scores.load(path) for path in scores]
    own_names = [*(Path(workdir).resolve().name for workdir in workdirs), *(Path(path).stem for path in weights)]
    names = _distinct(own_names, [member.member for member in saved])
    files = _score_files(save_scores, names)
    mesh = data_mesh()
    tests = []
    nets = [TrainedNet.restore(Workdir(workdir), checkpoint=checkpoint, mesh=mesh) for workdir in workdirs]
    if weights:
        if recompute_statistics:
            raise ValueError("recompute_statistics needs the training's config: a workdir, not a weight file")
        if config is None and not nets:
            raise ValueError("a weight file does not say on what data to test it: name a config, or a workdir besides")
        if isinstance(config, str):
            raise ValueError(f"config={config!r} must be what resnet_jax.load_config makes of a name or a file")
        described = nets[0].config if config is None else config
        nets += [TrainedNet.from_weights(path, config=described, mesh=mesh) for path in weights]
    for net in nets:
        made = make_protocol(protocol, net.input, average=average, scales=scales)
        tests.append(Test.of(net, made, split=split, data_dir=data_dir, recompute_batches=recompute_statistics))
    _check_same_split([*((test.info.name, test.split) for test in tests), *((s.dataset, s.split) for s in saved)])
    members = [*score_all(tests, names, files, mesh, batch_size=batch_size, workers=workers), *saved]
    result: dict[str, Any] = {"members": [_entry(member) for member in members]}
    if len(members) > 1:
        result["ensemble"] = _entry(ensemble(members))
    return result


def evaluate_workdir(workdir: PathLike, **options: Any) -> dict[str, Any]:
    """Tests one trained net on a whole split: the one entry of the members of `evaluate`, which has the options."""
    return evaluate([workdir], **options)["members"][0]


def load_workdir(workdir: PathLike, *, checkpoint: str | int = "latest") -> tuple[nn.Module, dict]:
    """Reads a run's net, to use in one's own code.

    Args:
      workdir: of the run.
      checkpoint: "latest", "best", or a step.

    Returns:
      The module and its variables {"params", "batch_stats"}, on the first device; the averaged ones where the run keeps
      averages. What the net expects of its input is in `InputDescription.load(workdir / "input.npz")`.

    Raises:
      FileNotFoundError: if the workdir holds no run or no checkpoint.
      ValueError: if there is no such checkpoint.
    """
    net = TrainedNet.restore(Workdir(workdir), checkpoint=checkpoint, mesh=data_mesh(jax.devices()[:1]))
    return net.model, net.variables


def _paths(paths: PathLike | Sequence[PathLike]) -> list[PathLike]:
    return [paths] if isinstance(paths, str | os.PathLike) else list(paths)


def _distinct(names: list[str], others: list[str]) -> list[str]:
    """The names, numbered from the second of the same name on, or where one of the others has it."""
    distinct: list[str] = []
    for name in names:
        taken, number, candidate = {*distinct, *others}, 1, name
        while candidate in taken:
            number += 1
            candidate = f"{name}-{number}"
        distinct.append(candidate)
    return distinct


def _score_files(save_scores: PathLike | None, names: list[str]) -> list[Path | None]:
    if save_scores is None:
        return [None] * len(names)
    path = Path(save_scores)
    if path.suffix != ".npz":
        return [path / f"{name}.npz" for name in names]
    if len(names) != 1:
        raise ValueError(f"save_scores={path}: a file takes one net's scores; name a folder for {len(names)} workdirs")
    return [path]


def _check_same_split(splits: list[tuple[str, str]]) -> None:
    if len(set(splits)) > 1:
        listed = ", ".join(f"{split!r} of {dataset!r}" for dataset, split in dict.fromkeys(splits))
        raise ValueError(f"an ensemble's members are tested on the same images, found split {listed}")


def _entry(scores: Scores) -> dict[str, Any]:
    step = {} if scores.step is None else {"step": scores.step}
    return {"member": scores.member, **scores.errors(), "protocol": scores.protocol, "split": scores.split, **step}
