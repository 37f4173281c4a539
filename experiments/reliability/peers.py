"""Runs of two processes of which one is killed, frozen, stuck, or about to run something else; rows 5, 6, 7 and 21."""

import shutil
import signal
import time
from pathlib import Path
from typing import Any

from bench import Bench, Place, Shape
from data_sets import build_digits
from processes import HUNG
from trainees import Trainee, last_step
from trials import Message, Trial, last_line

import resnet_jax
from resnet_jax import exit_codes

LOST = Message("another process of the run is gone", r"start the same command\s+again on all hosts")
STUCK = Message(
    r"the watchdog ends process \d: no progress in phase 'step' for \d+ seconds.*File \"",
    "Start the same command again to go on",
)
DISAGREE = Message(r"the processes disagree on .*{}: ", r" on process 0; .* on process 1")

HEARTBEAT_SECONDS, LIMIT_SECONDS = 10, 8
# Promised of a lost process; and a program that says nothing for so long does not notice.
_LOST_SECONDS, _NEVER_SECONDS = 15.0, 60.0
_TWO = Shape(2)


def lost(bench: Bench, trainee: Trainee, count: int, number: signal.Signals) -> list[Trial]:
    """Rows 5 (SIGKILL) and 6 (SIGSTOP): now the worker, now the coordinator, at a random time after a checkpoint."""
    trials: list[Trial] = []
    place: Place | None = None
    changes = {"flags": [f"--heartbeat_seconds={HEARTBEAT_SECONDS}"]}
    for trial_number in range(count):
        chance, victim = bench.chance("lost", number.name, trainee.name, trial_number), 1 - trial_number % 2
        place = bench.place(trainee, _TWO) if place is None else bench.again(place)
        with bench.start(trainee, place, _TWO, changes=changes) as run:
            if not run.wait_until(lambda place=place: trainee.steps(place.workdir) != []):
                raise RuntimeError(f"a run of two ended before it was struck: {run.outputs()}")
            time.sleep(chance.uniform(0, 0.5))
            struck = run.strike(victim, number)
            survivor = 1 - victim
            run.wait_for_end_of(survivor, _NEVER_SECONDS)
            alive = survivor in run.alive()
            code = HUNG if alive else run.processes[survivor].returncode
            seconds = None if alive else run.ended[survivor] - struck
            output = run.output(survivor)
        trial = Trial(f"process {victim}", codes=[code], detect_seconds=seconds, named=LOST.named_in(output))
        _judge(bench, trainee, place, trial)
        prompt = seconds is not None and seconds <= _LOST_SECONDS
        if code == 0 or not prompt:
            trial.as_promised = False
            trial.note = trial.note or f"ended with {code} after {seconds} s: {last_line(output)}"
        elif not trial.named:
            trial.note = trial.note or f"its last line: {last_line(output)}"
        trials.append(trial)
    if place is not None:
        bench.remove(place)
    return trials


def _judge(bench: Bench, trainee: Trainee, place: Place, trial: Trial) -> None:
    """Starts the run again, and compares its end."""
    done = last_step(place.workdir)
    end = bench.finish(trainee, place, _TWO)
    trial.exact, trial.resume_seconds = end.exact, end.resume_seconds
    trial.steps_lost = None if end.from_step is None else max(0, done - end.from_step)
    trial.silently_wrong = end.codes == [0, 0] and not end.exact
    trial.as_promised = end.exact
    if not end.exact:
        trial.note = f"started again it ended with {end.codes}: {last_line(end.output)}"


def stuck(bench: Bench, trainee: Trainee, count: int) -> list[Trial]:
    """Row 7: one of two processes waits for ever before a step; both must end, and say where they were."""
    trials = []
    for trial_number in range(count):
        victim = 1 - trial_number % 2
        place = bench.place(trainee, _TWO)
        hooks = ["stuck:10" if index == victim else bench.plant for index in range(2)]
        with bench.start(trainee, place, _TWO, changes={"limits.step_seconds": LIMIT_SECONDS}, hooks=hooks) as run:
            run.wait_until(lambda place=place: 8 in trainee.steps(place.workdir))
            begun = time.monotonic()
            codes, outputs = run.wait(_NEVER_SECONDS), run.outputs()
            seconds = None if HUNG in codes else max(run.ended.values()) - begun
        trial = Trial(f"process {victim}", codes=codes, detect_seconds=seconds)
        trial.named = all(STUCK.named_in(text) for text in outputs)
        _judge(bench, trainee, place, trial)
        if not set(codes) <= {exit_codes.STUCK, exit_codes.PEER_LOST} or exit_codes.STUCK not in codes:
            trial.as_promised = False
            trial.note = trial.note or f"ended with {codes} after {seconds} s: {last_line(outputs[0])}"
        trials.append(trial)
        bench.remove(place)
    return trials


def disagreeing(bench: Bench, trainee: Trainee, variants: tuple[str, ...]) -> list[Trial]:
    """Row 21: process 1 has another seed, optimizer, data set or source code."""
    trials = []
    for name in variants:
        place = bench.place(trainee, _TWO)
        changes, variables, field = _other(bench, name, place)
        own = [{"data.data_dir": bench.data_dir.as_posix()}, {"data.data_dir": bench.data_dir.as_posix(), **changes}]
        with bench.start(trainee, place, _TWO, changes=own, variables=[{}, variables]) as run:
            codes, outputs = run.wait(), run.outputs()
            seconds = max(run.ended.values(), default=run.begun) - run.begun
        message = Message(DISAGREE.cause.format(field), DISAGREE.remedy)
        refused = codes == [exit_codes.BAD_INPUT] * 2 and not trainee.steps(place.workdir)
        trials.append(
            Trial(
                name,
                # Both said that all is well, though they did not run the same.
                silently_wrong=codes == [0, 0],
                as_promised=refused,
                named=all(message.named_in(text) for text in outputs),
                detect_seconds=seconds,
                codes=codes,
                note="" if refused else f"ended with {codes}: {last_line(outputs[0])}",
            )
        )
        bench.remove(place)
    return trials


def _other(bench: Bench, name: str, place: Place) -> tuple[dict[str, Any], dict[str, str], str]:
    """What process 1 has instead, in its config and environment, and the field that the message must name."""
    if name == "seed":
        return {"seed": 1}, {}, "seed"
    if name == "optimizer":
        return {"optimizer.momentum": 0.8}, {}, r"optimizer\.momentum"
    if name == "data set":
        folder = build_digits(bench.folder / "other_data", "one fewer")
        return {"data.data_dir": folder.as_posix()}, {}, "data set's files"
    if name == "source code":
        package = Path(resnet_jax.__file__).parent
        copy = shutil.copytree(package, place.folder / "code" / "resnet_jax")
        configs = package.parent / "configs"
        if configs.is_dir():
            shutil.copytree(configs, copy.parent / "configs")
        with (copy / "random_keys.py").open("a") as file:
            file.write("# Changed on one host.\n")
        return {}, {"PYTHONPATH": str(copy.parent)}, "source files of resnet_jax"
    raise ValueError(f"variant {name!r}")
