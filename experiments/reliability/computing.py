"""Numbers that are not: NaN in a batch or a gradient, a rate that cannot work, a bit that flips; rows 16 and 22."""

import re
from typing import Any

import numpy as np
from bench import Bench, Place, Shape
from trainees import Library, read_state
from trials import Message, Trial, last_line

from resnet_jax import exit_codes

_STEP, _MOST_SKIPPED = 10, 4
NOT_FINITE = Message(
    r"step \d+: the loss or a gradient is not finite \(loss \S+, learning rate \S+\); the update was not made",
    r"Lower schedule\.learning_rate, or set train\.non_finite=skip",
)
GAVE_UP = Message(
    rf"steps {_STEP + 1} to \d+: the losses or gradients are not finite, more often in a row than train.most_skipped",
    "a lower schedule.learning_rate",
)
ASTRAY = Message(
    r"step 12: the state on (device \d \(process \d\)(, )?)+ is not that of the other devices",
    "It was not saved; the same command goes on from the last checkpoint",
)


def not_finite(bench: Bench, variants: tuple[str, ...]) -> list[Trial]:
    """Row 16."""
    return [VARIANTS[name](bench, name) for name in variants]


def _stops(hook: str | None, changes: dict[str, Any]) -> Any:
    """The run ends before anything of it is saved, and goes on exactly without the fault."""

    def trial(bench: Bench, name: str) -> Trial:
        trainee = Library()
        place = bench.place(trainee, compiled=hook is None)
        with bench.start(trainee, place, changes=changes, hooks=[hook]) as run:
            codes, output = run.wait(), run.output()
        saved = trainee.steps(place.workdir)
        finite = _all_finite(trainee, place, saved)
        result = Trial(name, codes=codes, named=NOT_FINITE.named_in(output))
        stopped = codes == [exit_codes.DIVERGED] and finite
        if hook is not None:
            stopped = stopped and f"step {_STEP + 1}:" in output and max(saved, default=0) <= _STEP
            end = bench.finish(trainee, place)
            result.exact, result.resume_seconds = end.exact, end.resume_seconds
            stopped = stopped and end.exact
        result.silently_wrong = codes == [0] or not finite or (hook is not None and not result.exact)
        result.as_promised = stopped
        result.note = "" if stopped else f"ended with {codes}, saved {saved}, finite: {finite}: {last_line(output)}"
        bench.remove(place)
        return result

    return trial


def _skipping(bench: Bench, trainee: Library, hook: str, changes: dict[str, Any]) -> tuple[Place, list, str]:
    """A run with train.non_finite=skip that saves every step: its place, exit codes and output."""
    place = bench.place(trainee, compiled=False)
    changes = {"train.non_finite": "skip", "checkpoint.every": 1} | changes
    with bench.start(trainee, place, changes=changes, hooks=[hook]) as run:
        return place, run.wait(), run.output()


def _skips(hook: str) -> Any:
    """With train.non_finite=skip nothing of that step stays, and the next ones are made."""

    def trial(bench: Bench, name: str) -> Trial:
        trainee, last = Library(), _STEP + 2
        changes = {"train.duration": last, "checkpoint.keep_latest": last}
        place, codes, output = _skipping(bench, trainee, hook, changes)
        states = [_weights(trainee, place, step) for step in range(_STEP, last + 1)] if codes == [0] else []
        untouched = bool(states) and states[0] == states[1] != states[2]
        result = Trial(name, codes=codes, silently_wrong=codes == [0] and not untouched, as_promised=untouched)
        result.note = "" if untouched else f"ended with {codes}: {last_line(output)}"
        bench.remove(place)
        return result

    return trial


def _gives_up(hook: str) -> Any:
    """With train.most_skipped so many updates in a row end the run, and nothing of them was kept."""

    def trial(bench: Bench, name: str) -> Trial:
        trainee = Library()
        changes = {"train.most_skipped": _MOST_SKIPPED, "checkpoint.keep_latest": _STEP}
        place, codes, output = _skipping(bench, trainee, hook, changes)
        saved = [step for step in trainee.steps(place.workdir) if step >= _STEP]
        states = [_weights(trainee, place, step) for step in saved]
        untouched = len(states) > 1 and all(state == states[0] for state in states)
        result = Trial(name, codes=codes, silently_wrong=codes == [0] or not untouched, named=GAVE_UP.named_in(output))
        result.as_promised = codes == [exit_codes.DIVERGED] and untouched
        result.note = "" if result.as_promised else f"ended with {codes}, saved {saved}: {last_line(output)}"
        bench.remove(place)
        return result

    return trial


VARIANTS = {
    "NaN in a batch, stop": _stops(f"nan_in_batch:{_STEP}", {}),
    "NaN in a gradient, stop": _stops(f"nan_in_gradient:{_STEP}", {}),
    "learning rate 1e20": _stops(None, {"schedule.learning_rate": 1e20}),
    "NaN in a batch, skip": _skips(f"nan_in_batch:{_STEP}"),
    "NaN in a gradient, skip": _skips(f"nan_in_gradient:{_STEP}"),
    "NaN from a step on, skip": _gives_up(f"nan_from:{_STEP}"),
}


def _weights(trainee: Library, place: Place, step: int) -> dict[str, bytes]:
    """Parameters, statistics and momentum of a checkpoint."""
    state = read_state(trainee.checkpoints(place.workdir) / str(step) / trainee.item)
    return {name: array.tobytes() for name, array in state.items() if re.search("params|batch_stats|trace", name)}


def _all_finite(trainee: Library, place: Place, steps: list[int]) -> bool:
    folder = trainee.checkpoints(place.workdir)
    states = [read_state(folder / str(step) / trainee.item) for step in steps]
    return all(np.isfinite(array).all() for state in states for name, array in state.items() if "bad_loss" not in name)


def flipped_replicas(bench: Bench, shapes: tuple[Shape, ...]) -> list[Trial]:
    """Row 22: a bit of one device's parameters flips after step 10; the check before checkpoint 12 must find it."""
    trainee, trials = Library(), []
    for shape in shapes:
        place = bench.place(trainee, shape)
        hooks = [f"flipped_replica:{_STEP}" if index == shape.hosts - 1 else None for index in range(shape.hosts)]
        with bench.start(trainee, place, shape, hooks=hooks) as run:
            codes, outputs = run.wait(), run.outputs()
        saved = trainee.steps(place.workdir)
        end = bench.finish(trainee, place, shape)
        stopped = codes == [exit_codes.ASTRAY] * shape.hosts and max(saved, default=0) <= _STEP
        trials.append(
            Trial(
                f"{shape.hosts}x{shape.devices}",
                silently_wrong=(end.codes == [0] * shape.hosts and not end.exact) or codes == [0] * shape.hosts,
                as_promised=stopped and end.exact,
                exact=end.exact,
                steps_lost=12 - end.from_step if end.from_step is not None else None,
                resume_seconds=end.resume_seconds,
                named=all(ASTRAY.named_in(text) for text in outputs),
                codes=codes,
                note="" if stopped and end.exact else f"ended with {codes}, saved {saved}: {last_line(outputs[0])}",
            )
        )
        bench.remove(place)
    return trials
