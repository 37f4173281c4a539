"""Tests of localizers from workdirs, one or an ensemble of several, with the true class or with predicted ones."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from resnet_jax.detection.annotations import truths
from resnet_jax.detection.data import open_union
from resnet_jax.detection.from_config import tested_proposals_of
from resnet_jax.detection.run import changed, check_together
from resnet_jax.distributed import data_mesh
from resnet_jax.evaluation.scores import Scores, ensemble
from resnet_jax.localization.evaluator import Nets, make_collector, measured, true_labels
from resnet_jax.localization.from_config import looking_of, protocol_name
from resnet_jax.localization.settings import BEST_CLASSES
from resnet_jax.localization.testing import best_classes
from resnet_jax.localization.trained import TrainedLocalizer, proposer_of
from resnet_jax.workdir import Workdir
from resnet_jax.xla_options import backend_options

PathLike = str | os.PathLike

# What a test may do otherwise than the run did; sections end with a dot.
FREE = (
    *("evaluate.", "data.test_sets", "data.data_dir", "data.workers", "data.short_side", "data.long_side"),
    *("sampling.proposal_overlap", "sampling.min_side", "localizer.proposals_from"),
)


def evaluate_localizers(
    workdirs: PathLike | Sequence[PathLike],
    *,
    changes: Mapping[str, Any] = {},
    checkpoint: str | int = "latest",
    scores: Sequence[PathLike] = (),
) -> dict[str, Any]:
    """Tests localizers on all images of the config's test sets, each alone and, if there are several, as an ensemble.

    An ensemble averages probabilities and boxes: of each anchor over its members, or over what proposes for them, and
    then of each region (appendix C).

    Args:
      workdirs: of the runs; one path, or several.
      changes: config keys that the test has otherwise than the first run, such as {"evaluate.short_sides": (224, 256,
        384, 480, 640)} for dense testing. A text is read by the key's declared type.
      checkpoint: of each run "latest", "best", or a step.
      scores: files of `resnet-jax evaluate --save_scores`, of classifiers' tests of the same images: the five classes
        with the highest mean probability get a box each, and the error is top-5. None: the true class gets one.

    Returns:
      {"members": [{"member", "protocol", "step", "error_localization" (a fraction), "count"}]}, and with several
      "ensemble".

    Raises:
      FileNotFoundError: a workdir that holds no run or no checkpoint, or a data set or file that is missing.
      ValueError: no workdir, a run of another task, localizers that do not fit together, scores of other images, or a
        key that a test cannot change.
    """
    paths = [workdirs] if isinstance(workdirs, str | os.PathLike) else list(workdirs)
    if not paths:
        raise ValueError("there is nothing to evaluate: name a workdir")
    mesh = data_mesh()
    members = [TrainedLocalizer.restore(Workdir(path), checkpoint=checkpoint, mesh=mesh) for path in paths]
    configs = [changed(member.config, changes, free=FREE) for member in members]
    source = open_union(configs[0].data.test_sets, data_dir=configs[0].data.data_dir)
    check_together(members, paths, source)
    trains = {config.localizer.trains for config in configs}
    if len(trains) > 1:
        raise ValueError("an ensemble's members must all have regions, or all none (localizer.trains)")
    proposers = [proposer_of(config, member.input, mesh) for config, member in zip(configs, members, strict=True)]
    objects = truths(source)
    labels = true_labels(objects, source)
    classes = f"{BEST_CLASSES} predicted classes" if scores else "true class"
    if scores:
        labels = predicted_labels([Scores.load(path) for path in scores], labels)

    def test(name: str, places: Sequence[int]) -> dict[str, Any]:
        own = [members[place] for place in places]
        proposing = [each for place in places if (each := proposers[place]) is not None]
        find = make_collector(
            Nets.of([each.localizer for each in own], [each.localizer for each in proposing]),
            mesh,
            input=members[0].input,
            looking=looking_of(configs[0]),
            proposing=tested_proposals_of(configs[0]),
            batch_size=configs[0].evaluate.batch_size,
            workers=configs[0].data.workers,
            compiler_options=backend_options(),
        )
        variables = Nets.of([each.variables for each in own], [each.variables for each in proposing])
        protocol = f"{protocol_name(configs[0])}, {classes}"
        return {"member": name, "protocol": protocol, **measured(find(variables, source, labels), objects, source)}

    result: dict[str, Any] = {
        "members": [
            {**test(Path(path).resolve().name, [place]), "step": members[place].step}
            for place, path in enumerate(paths)
        ]
    }
    if len(paths) > 1:
        result["ensemble"] = test("ensemble", range(len(paths)))
    return result


def predicted_labels(
    scores: Sequence[Scores], labels: Int32[np.ndarray, "images 1"], *, most: int = BEST_CLASSES
) -> Int32[np.ndarray, "images k"]:
    """The classes with the highest mean probability of classifiers, best first, `most` or all that there are.

    Args:
      scores: of each classifier.
      labels: the true class of each image, by which the images of both are compared.
      most: how many.

    Raises:
      ValueError: scores of other images or in another order.
    """
    together = ensemble(scores)
    if len(together.labels) != len(labels):
        raise ValueError(f"scores of {len(together.labels)} images: the localizer's test sets have {len(labels)}")
    differing = np.flatnonzero(together.labels != labels[:, 0])
    if differing.size:
        image = int(differing[0])
        raise ValueError(
            f"scores of {together.dataset} {together.split}: image {image} has class {int(together.labels[image])} "
            f"there and {int(labels[image, 0])} in the localizer's test sets; both must be the same images in one order"
        )
    logits = jnp.asarray(together.logits)
    return np.asarray(best_classes(logits, min(most, logits.shape[1])), np.int32)
