"""Stopped runs that are to go on with something else: devices, config, data; rows 13, 14 and 15."""

import re
from typing import Any

from bench import Bench, Place, Shape
from data_sets import build_digits
from trainees import Library, metrics
from trials import Message, Trial, last_line

from resnet_jax import exit_codes

# Of the losses after the change, relative: what a change in the order of sums may grow to in so few steps.
LOSS_BOUND = 0.05
OTHER_CONFIG = Message("was made with another config .*{key}: .* there, .* now", "choose another workdir, or the same")
OTHER_DATA = Message(
    "was trained on (another number of images|other images|a data set in other files)",
    "point data.data_dir at the same data, or choose another workdir",
)

CONFIGS: dict[str, tuple[str, Any]] = {
    "another batch size": ("train.batch_size", 32),
    "another number of classes": ("model.num_classes", 11),
    "another momentum": ("optimizer.momentum", 0.8),
    "another net": ("model.name", "cifar_resnet14"),
}
DATA = ("one fewer", "a file removed", "reordered", "another label")


def on_other_devices(bench: Bench, ways: tuple[tuple[Shape, Shape], ...]) -> list[Trial]:
    """Row 13, tier B: the next image, the same metrics but for rounding, and every image counted."""
    trainee, trials = Library(), []
    for before, after in ways:
        place = bench.stopped(trainee, before)
        place.caches = [place.folder / f"other_{index}" for index in range(after.hosts)]
        step = trainee.steps(place.workdir)[-1]
        end = bench.finish(trainee, place, after, reference=before)
        expected, found = bench.reference(trainee, before).metrics, metrics(place.workdir)
        same_lines = [sorted(row) for row in expected] == [sorted(row) for row in found]
        worst = _largest_difference(expected, found, after=step) if same_lines else float("inf")
        same_past = [row for row in expected if row["step"] <= step] == [row for row in found if row["step"] <= step]
        right = end.codes == [0] * after.hosts and end.from_step == step and same_past and worst <= LOSS_BOUND
        trials.append(
            Trial(
                f"{before.hosts}x{before.devices} to {after.hosts}x{after.devices}",
                silently_wrong=end.codes == [0] * after.hosts and not right,
                as_promised=right,
                resume_seconds=end.resume_seconds,
                codes=end.codes,
                note=f"training losses after the change differ by at most {worst:.1e} of theirs",
            )
        )
        bench.remove(place)
    return trials


def _largest_difference(expected: list[dict[str, float]], found: list[dict[str, float]], *, after: int) -> float:
    """Of the training losses after a step, relative."""
    pairs = [(a["train/loss"], b["train/loss"]) for a, b in zip(expected, found, strict=True) if "train/loss" in a]
    steps = [row["step"] for row in expected if "train/loss" in row]
    return max(abs(a - b) / a for step, (a, b) in zip(steps, pairs, strict=True) if step > after)


def with_another_config(bench: Bench, variants: tuple[str, ...]) -> list[Trial]:
    """Row 14: refused, each in turn; and then the right command goes on."""
    place = bench.stopped(Library())
    trials = []
    for name in variants:
        key, value = CONFIGS[name]
        message = Message(OTHER_CONFIG.cause.format(key=re.escape(key)), OTHER_CONFIG.remedy)
        trials.append(_refused(bench, place, name, {key: value}, message))
    return _then_go_on(bench, place, trials)


def with_other_data(bench: Bench, variants: tuple[str, ...]) -> list[Trial]:
    """Row 15: each starts in a copy of the stopped run, since one that is not refused goes on."""
    trials = []
    place: Place | None = None
    for name in variants:
        place = bench.stopped(Library(), again=place)
        if name == "a file removed":
            folder = build_digits(bench.folder / "removed", "one fewer")
            for path in folder.glob("digits/*/*train*"):
                path.unlink()
        else:
            folder = build_digits(bench.folder / "other_data", name)
        message = Message("No such file|no example|not there", "") if name == "a file removed" else OTHER_DATA
        trial = _refused(bench, place, name, {"data.data_dir": folder.as_posix()}, message)
        if not trial.silently_wrong:
            _then_go_on(bench, place, [trial])
        trials.append(trial)
    if place is not None:
        bench.remove(place)
    return trials


def _refused(bench: Bench, place: Place, name: str, changes: dict[str, Any], message: Message) -> Trial:
    with bench.start(Library(), place, changes=changes) as run:
        codes, output = run.wait(), run.output()
        seconds = max(run.ended.values(), default=run.begun) - run.begun
    refused = codes == [exit_codes.BAD_INPUT]
    return Trial(
        name,
        # Whatever it was, it was not the run that began here.
        silently_wrong=codes == [0],
        as_promised=refused,
        named=message.named_in(output),
        detect_seconds=seconds,
        codes=codes,
        note="" if refused else f"ended with {codes}: {last_line(output)}",
    )


def _then_go_on(bench: Bench, place: Place, trials: list[Trial]) -> list[Trial]:
    """What was refused has changed nothing."""
    end = bench.finish(Library(), place)
    for trial in trials:
        trial.exact, trial.steps_lost = end.exact, 0
        trial.as_promised &= end.exact
        trial.silently_wrong |= end.codes == [0] and not end.exact
        if not end.exact:
            trial.note = trial.note or f"the right command then ended with {end.codes}: {last_line(end.output)}"
    if trials:
        trials[-1].resume_seconds = end.resume_seconds
    return trials


WAYS = (
    (Shape(1, 1), Shape(1, 2)),
    (Shape(2, 1), Shape(1, 1)),
    (Shape(1, 1), Shape(2, 1)),
    (Shape(2, 1), Shape(1, 4)),
    (Shape(1, 4), Shape(2, 2)),
    (Shape(1, 2), Shape(1, 1)),
)
