"""Tests of detectors from workdirs, one or an ensemble of several."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from resnet_jax.atomic_files import write_text_atomically
from resnet_jax.config import check, flatten, given_values, nest
from resnet_jax.config_keys import parse_value
from resnet_jax.detection.annotations import Annotated, BoxSource, truths
from resnet_jax.detection.coco_ap import coco_results
from resnet_jax.detection.coco_json import CocoJson
from resnet_jax.detection.data import open_union
from resnet_jax.detection.detected import Detected
from resnet_jax.detection.evaluator import make_collector, measured
from resnet_jax.detection.from_config import framing_of, protocol_name, protocol_of
from resnet_jax.detection.proposals import proposal_recall
from resnet_jax.detection.testing import detect, proposed
from resnet_jax.detection.trained import TrainedDetector
from resnet_jax.distributed import data_mesh
from resnet_jax.workdir import Workdir
from resnet_jax.xla_options import backend_options

PathLike = str | os.PathLike

# What a test may do otherwise than the run did; sections end with a dot.
_FREE = (
    *("evaluate.", "data.test_sets", "data.data_dir", "data.workers", "data.max_boxes", "data.resize"),
    *("data.short_side", "data.long_side", "sampling.proposal_overlap", "sampling.min_side"),
)


def evaluate_detectors(
    workdirs: PathLike | Sequence[PathLike],
    *,
    changes: Mapping[str, Any] = {},
    checkpoint: str | int = "latest",
    results: PathLike | None = None,
    recall: bool = False,
) -> dict[str, Any]:
    """Tests detectors on all images of the config's test sets, each alone and, if there are several, as an ensemble.

    In an ensemble all propose, and each classifies all proposals: probabilities and boxes are averaged (appendix B).

    Args:
      workdirs: of the runs; one path, or several.
      changes: config keys that the test has otherwise than the first run, such as {"evaluate.refinement": True,
        "evaluate.voting": 0.5}: those of `evaluate`, and where the images are from and how they are scaled. A text is
        read by the key's declared type.
      checkpoint: of each run "latest", "best", or a step.
      results: a file that gets the detections (of an ensemble, if there is one) in COCO's form for results.
      recall: whether the proposals of each member are measured, too, see `proposal_recall`.

    Returns:
      {"members": [what `measures.measure` gives, with "member", "protocol" and "step"]}, and with several "ensemble".
      With `recall` each member has "proposals".

    Raises:
      FileNotFoundError: a workdir that holds no run or no checkpoint, or a data set that is missing.
      ValueError: no workdir, a run of another task, detectors of different classes or input, or a key that a test
        cannot change.
    """
    paths = [workdirs] if isinstance(workdirs, str | os.PathLike) else list(workdirs)
    if not paths:
        raise ValueError("there is nothing to evaluate: name a workdir")
    mesh = data_mesh()
    detectors = [TrainedDetector.restore(Workdir(path), checkpoint=checkpoint, mesh=mesh) for path in paths]
    config = changed(detectors[0].config, changes)
    source = open_union(config.data.test_sets, data_dir=config.data.data_dir)
    check_together(detectors, paths, source)
    objects = truths(source)
    result: dict[str, Any] = {"members": []}
    for path, detector in zip(paths, detectors, strict=True):
        found = detect_all([detector], config, source)
        about = {"member": Path(path).resolve().name, "protocol": protocol_name(config), "step": detector.step}
        own = {"proposals": recall_of(detector, config, source, objects)} if recall else {}
        result["members"].append({**about, **measured(config.evaluate.metric, found, source, objects), **own})
    if len(detectors) > 1:
        found = detect_all(detectors, config, source)
        about = {"member": "ensemble", "protocol": protocol_name(config)}
        result["ensemble"] = {**about, **measured(config.evaluate.metric, found, source, objects)}
    if results is not None and jax.process_index() == 0:
        write_text_atomically(results, json.dumps(as_coco_results(found, source)) + "\n")
    return result


def changed(config: ConfigDict, changes: Mapping[str, Any], *, free: Sequence[str] = _FREE) -> ConfigDict:
    """The config of a run with other values for keys that a test may change; ValueError for another key or value.

    Args:
      config: of the run.
      changes: values, or texts, by key.
      free: keys that may change; sections end with a dot.
    """
    for key in changes:
        if key in flatten(config) and not key.startswith(tuple(free)):
            raise ValueError(f"{key}: is of the training; a test can change {', '.join(free).replace('., ', '.*, ')}")
    values = {key: parse_value(key, value) if isinstance(value, str) else value for key, value in changes.items()}
    new = nest(given_values(config) | values)
    check(new)
    return new


def check_together(members: Sequence[Any], paths: Sequence[PathLike], source: BoxSource | None = None) -> None:
    """Raises ValueError unless all members of a test take the same images and have one list of classes, the source's.

    Args:
      members: with an `input` each, such as `TrainedDetector`.
      paths: of their runs.
      source: of the images.
    """
    first = members[0].input
    for path, other in zip(paths, members, strict=True):
        if not other.input.same_as(first):
            raise ValueError(f"{path}: an ensemble's members take the same input, this one another than {paths[0]}")
    if source is not None and source.class_names != first.class_names:
        raise ValueError(
            f"{paths[0]} was trained for {len(first.class_names)} classes, which are not the "
            f"{len(source.class_names)} of the test sets"
        )


def recall_of(
    detector: TrainedDetector, config: Any, source: BoxSource, objects: Sequence[Annotated]
) -> dict[str, float]:
    """How many objects of a source the proposals of a detector cover, all of them and the best tenth."""
    most = config.evaluate.proposals
    found = detect_all([detector], config, source, look=proposed)
    return proposal_recall(found, objects, counts=tuple({max(1, most // 10): 0, most: 0}))


def detect_all(
    detectors: Sequence[TrainedDetector], config: Any, source: BoxSource, *, look: Callable[..., Any] = detect
) -> list[Detected]:
    """The detections, or the proposals, of all images of a source, in its order; all processes call it together."""
    find = make_collector(
        [each.detector for each in detectors],
        data_mesh(),
        input=detectors[0].input,
        protocol=protocol_of(config),
        framing=framing_of(config, detectors[0].input.mean),
        short_sides=config.evaluate.short_sides,
        batch_size=config.evaluate.batch_size,
        workers=config.data.workers,
        compiler_options=backend_options(),
        look=look,
    )
    return find([each.variables for each in detectors], source)


def as_coco_results(found: Sequence[Detected], source: BoxSource) -> list[dict[str, Any]]:
    """As `coco_results`, with the file's numbers of a `CocoJson`; else images and classes count from 0."""
    if isinstance(source, CocoJson):
        return coco_results(found, source.image_ids, source.category_ids)
    return coco_results(found, range(len(source)), range(len(source.class_names)))
