"""SIGTERM at every point of a run, once and twice, to one process and to one of two; rows 3 and 4."""

import re
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

from bench import BEGUN, Bench, Place, Shape
from processes import Run
from trainees import Library, last_step
from trials import Message, Trial, last_line

from resnet_jax import exit_codes

STOPPED = Message(r"stopped by SIGTERM and saved at step \d+", "start the same command again to go on")
# A second signal counts as one of its own after a second; and a stop is to take less than this besides the writing.
_SECOND_SECONDS = 1.5
_PROMPT_SECONDS = 10.0
_TRIES = 5


def to_one_of_two(bench: Bench, count: int) -> list[Trial]:
    """Row 3."""
    trainee, shape, trials = Library(), Shape(2), []
    place: Place | None = None
    for number in range(_TRIES * count):
        if len(trials) == count:
            break
        chance = bench.chance("SIGTERM to one of two", number)
        place = bench.place(trainee, shape) if place is None else bench.again(place)
        with bench.start(trainee, place, shape) as run:
            if not run.wait_until(lambda place=place: trainee.steps(place.workdir) != []):
                continue
            at = time.monotonic() + chance.uniform(0, 1)
            if not run.wait_until(lambda at=at: time.monotonic() >= at):
                continue
            victim = chance.randrange(2)
            struck = run.strike(victim, signal.SIGTERM)
            codes, outputs = run.wait(), run.outputs()
            seconds = max(run.ended.values()) - struck
        if codes == [0, 0]:  # it was at its end
            continue
        steps = {match[1] for text in outputs if (match := re.search(r"saved at step (\d+)", text))}
        done = last_step(place.workdir)
        end = bench.finish(trainee, place, shape)
        together = codes == [exit_codes.PREEMPTED] * 2 and len(steps) == 1
        prompt = seconds < _PROMPT_SECONDS
        trials.append(
            Trial(
                f"to process {victim}",
                silently_wrong=end.codes == [0, 0] and not end.exact,
                as_promised=together and prompt and end.exact,
                exact=end.exact,
                steps_lost=None if end.from_step is None else max(0, done - end.from_step),
                detect_seconds=seconds,
                resume_seconds=end.resume_seconds,
                named=all(STOPPED.named_in(text) for text in outputs),
                codes=codes,
                note="" if together and end.exact else f"{codes}, steps {steps}, then {end.codes}",
            )
        )
    if place is not None:
        bench.remove(place)
    return trials


class Way(NamedTuple):
    """When a process of one gets its signals, and what it may end with.

    Attributes:
      send: waits for the moment and sends; returns when the last was sent, None if the run ended before.
      codes: exit codes that are allowed.
      compiled: whether the programs are compiled already.
      hook: see `hooks.py`.
    """

    send: Callable[[Run, Library, Place], float | None]
    codes: tuple[int, ...]
    compiled: bool = True
    hook: str | None = None


def _while_saving(run: Run, trainee: Library, place: Place) -> float | None:
    ready = run.wait_until(lambda: trainee.is_saving(place.workdir))
    return run.strike(0, signal.SIGTERM) if ready else None


def _while_evaluating(run: Run, trainee: Library, place: Place) -> float | None:
    return run.strike(0, signal.SIGTERM) if run.wait_for_text("evaluating slowly") else None


def _while_compiling(run: Run, trainee: Library, place: Place) -> float | None:
    if run.wait_for_text(BEGUN) is None:
        return None
    time.sleep(1)
    return run.strike(0, signal.SIGTERM)


def _twice_while_compiling(run: Run, trainee: Library, place: Place) -> float | None:
    if _while_compiling(run, trainee, place) is None:
        return None
    time.sleep(_SECOND_SECONDS)
    return run.strike(0, signal.SIGTERM) if run.alive() else None


def _echoed(run: Run, trainee: Library, place: Place) -> float | None:
    if _while_saving(run, trainee, place) is None:
        return None
    time.sleep(0.05)
    return run.strike(0, signal.SIGTERM) if run.alive() else None


# -15: before the run has begun, or after its end, the signal ends the process as it ends any.
WAYS = {
    "during a save": Way(_while_saving, (exit_codes.PREEMPTED,)),
    "twice while compiling": Way(_twice_while_compiling, (-signal.SIGTERM,), compiled=False),
    "during an evaluation": Way(_while_evaluating, (exit_codes.PREEMPTED,), hook="slow_evaluation:8"),
    "while compiling": Way(_while_compiling, (exit_codes.PREEMPTED,), compiled=False),
    "twice within 0.1 s": Way(_echoed, (exit_codes.PREEMPTED,)),
}
_AT_ANY_TIME = (exit_codes.PREEMPTED, exit_codes.DONE, -signal.SIGTERM)


def at_any_point(bench: Bench, each: int, anywhere: int, ways: tuple[str, ...] = tuple(WAYS)) -> list[Trial]:
    """Row 4: each way so many times, and so many signals at random times of the whole run."""
    trainee = Library()
    trials = [_struck(bench, trainee, name, WAYS[name]) for name in ways for _ in range(each)]
    seconds = bench.typical_seconds(trainee, Shape()) if anywhere else 0.0
    for number in range(anywhere):
        wait = bench.chance("SIGTERM", number).uniform(0, seconds)

        def send(run: Run, trainee: Library, place: Place, wait: float = wait) -> float | None:
            run.wait_until(lambda: time.monotonic() >= run.begun + wait)
            return run.strike(0, signal.SIGTERM) if run.alive() else None

        trials.append(_struck(bench, trainee, "at a random time", Way(send, _AT_ANY_TIME)))
    return trials


def _struck(bench: Bench, trainee: Library, name: str, way: Way) -> Trial:
    place = bench.place(trainee, compiled=way.compiled)
    try:
        with bench.start(trainee, place, hooks=[way.hook or bench.plant]) as run:
            struck = way.send(run, trainee, place)
            codes, output = run.wait(), run.output()
            seconds = max(run.ended.values()) - struck if struck is not None else None
        done = last_step(place.workdir)
        end = bench.finish(trainee, place)
    finally:
        bench.remove(place)
    allowed = codes[0] in way.codes and (struck is not None or codes == [0])
    return Trial(
        name,
        silently_wrong=end.codes == [0] and not end.exact,
        as_promised=allowed and end.exact,
        exact=end.exact,
        # Of a run that was done nothing is left to go on with.
        steps_lost=None if end.from_step is None else max(0, done - end.from_step),
        detect_seconds=seconds,
        resume_seconds=end.resume_seconds,
        named=STOPPED.named_in(output) if codes == [exit_codes.PREEMPTED] else None,
        codes=codes,
        note="" if allowed and end.exact else f"{codes}, then {end.codes}: {last_line(output)}",
    )
