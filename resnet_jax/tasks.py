"""What a run can train, and what of the run is the task's own."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from resnet_jax import build
from resnet_jax.detection import evaluator as detection_evaluator
from resnet_jax.detection import parts as detection_parts
from resnet_jax.detection.from_config import framing_of, protocol_name, protocol_of, tested_proposals_of
from resnet_jax.detection.trained import ERROR
from resnet_jax.evaluation.evaluator import make_evaluator
from resnet_jax.localization import from_config as localization_config
from resnet_jax.localization import parts as localization_parts
from resnet_jax.localization import trained as localization_trained
from resnet_jax.localization.evaluator import Nets
from resnet_jax.localization.evaluator import make_evaluator as make_localization_evaluator
from resnet_jax.parts import Parts


class Task(NamedTuple):
    """A task's part of a run.

    Attributes:
      build: (config) -> the parts.
      make_evaluator: (parts, XLA's options) -> (variables, split) -> scalars by name and the "count" of images, of all
        processes together.
      error: the name of the scalar, lower is better, that schedules and the best checkpoint go by.
      protocol: (config) -> how the splits are tested, for the record.
    """

    build: Callable[[Any], Parts]
    make_evaluator: Callable[[Parts, Mapping[str, Any]], Callable[..., dict[str, Any]]]
    error: str
    protocol: Callable[[Any], str]


def _classification(parts: Parts, compiler_options: Mapping[str, Any]) -> Callable[..., dict[str, Any]]:
    evaluate = make_evaluator(
        parts.model,
        parts.mesh,
        protocol="center",
        batch_size=parts.config.evaluate.batch_size,
        input=parts.input,
        workers=parts.config.data.workers,
        compiler_options=compiler_options,
    )

    def test(variables: dict, split: str) -> dict[str, Any]:
        # What training leaves out cannot be tested either; the count says how many are left.
        unreadable = parts.config.data.unreadable if split == "train" else "stop"
        return evaluate(variables, parts.splits[split], unreadable=unreadable)

    return test


def _detection(parts: Parts, compiler_options: Mapping[str, Any]) -> Callable[..., dict[str, Any]]:
    config = parts.config
    evaluate = detection_evaluator.make_evaluator(
        [parts.model],
        parts.mesh,
        metric=config.evaluate.metric,
        protocol=protocol_of(config),
        input=parts.input,
        framing=framing_of(config, parts.input.mean),
        short_sides=config.evaluate.short_sides,
        batch_size=config.evaluate.batch_size,
        workers=config.data.workers,
        compiler_options=compiler_options,
    )
    return lambda variables, split: evaluate([variables], parts.splits[split])


def _localization(parts: Parts, compiler_options: Mapping[str, Any]) -> Callable[..., dict[str, Any]]:
    config = parts.config
    proposers = [] if parts.proposer is None else [parts.proposer]
    evaluate = make_localization_evaluator(
        Nets.of([parts.model], [each.localizer for each in proposers]),
        parts.mesh,
        input=parts.input,
        looking=localization_config.looking_of(config),
        proposing=tested_proposals_of(config),
        batch_size=config.evaluate.batch_size,
        workers=config.data.workers,
        compiler_options=compiler_options,
    )
    own = [each.variables for each in proposers]
    return lambda variables, split: evaluate(Nets.of([variables], own), parts.splits[split])


TASKS: dict[str, Task] = {
    "classification": Task(build.build, _classification, "error_top1", lambda config: "center"),
    "detection": Task(detection_parts.build, _detection, ERROR, protocol_name),
    "localization": Task(
        localization_parts.build, _localization, localization_trained.ERROR, localization_config.protocol_name
    ),
}
