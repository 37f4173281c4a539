"""SIGKILL at random times, in saves and outside them, and the same run started again; rows 1, 2 and 24."""

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bench import BEGUN, Bench, Finished, Place, Shape, step_gone_on_from
from processes import Run
from trainees import CHECKPOINT_EVERY, KEEP, STEPS, Trainee, last_step
from trials import Trial, last_line

# Longer than a save of the tiny state takes, so that kills fall on all of it and a little after.
_SAVE_SECONDS = 0.2
_MOST_RUNS = 200

# Waits for the moment to kill; False if the run ended before.
Moment = Callable[[Run, Trainee, Place, random.Random], bool]


def in_a_save(run: Run, trainee: Trainee, place: Place, chance: random.Random) -> bool:
    """A random time after one of the next three saves has begun."""
    # Before it says so, what the kill before has left is still there.
    if run.wait_for_text(BEGUN) is None:
        return False
    for _ in range(chance.randint(1, 3)):
        newest = trainee.steps(place.workdir)[-1:]
        if not run.wait_until(lambda: trainee.is_saving(place.workdir)):
            return False
        at = time.monotonic() + chance.uniform(0, _SAVE_SECONDS)
        if not run.wait_until(lambda newest=newest, at=at: newest != trainee.steps(place.workdir)[-1:] or _past(at)):
            return False
    return True


def outside_saves(seconds: float) -> Moment:
    """A random time within so many seconds from the first import on, at which nothing is being saved."""

    def moment(run: Run, trainee: Trainee, place: Place, chance: random.Random) -> bool:
        at = run.begun + chance.uniform(0, seconds)
        return run.wait_until(lambda: _past(at) and not trainee.is_saving(place.workdir))

    return moment


def after_some_progress(run: Run, trainee: Trainee, place: Place, chance: random.Random) -> bool:
    """A random time after none, one or two more checkpoints."""
    newest = max(trainee.steps(place.workdir), default=0) + chance.choice((0, 1, 1, 2)) * CHECKPOINT_EVERY
    if run.wait_for_text(BEGUN) is None:
        return False
    if not run.wait_until(lambda: max(trainee.steps(place.workdir), default=0) >= newest):
        return False
    at = time.monotonic() + chance.uniform(0, 1)
    return run.wait_until(lambda: _past(at))


def _past(at: float) -> bool:
    return time.monotonic() >= at


@dataclass
class Killing:
    """Kills of one kind.

    Attributes:
      bench: where.
      trainee: which program.
      moment: when.
      name: of the chance.
      shape: processes and devices.
      steps: of each run.
    """

    bench: Bench
    trainee: Trainee
    moment: Moment
    name: str
    shape: Shape = field(default_factory=Shape)
    steps: int = STEPS

    def trials(self, kills: int) -> list[Trial]:
        """So many kills of runs that go on where they can; one that ends before is judged, and the next one begins."""
        trials: list[Trial] = []
        for run_number in range(_MOST_RUNS):
            if len(trials) >= kills:
                return trials
            place = self.bench.place(self.trainee, self.shape, steps=self.steps)
            trials += self._of_one_run(place, kills - len(trials), run_number)
            self.bench.remove(place)
        raise RuntimeError(f"{self.name}: {_MOST_RUNS} runs of {self.trainee.name} ended before {kills} kills")

    def _of_one_run(self, place: Place, kills: int, run_number: int) -> list[Trial]:
        """Kills of one run until it has ended or there were enough; each is judged by the end."""
        trials: list[Trial] = []
        killed_at: int | None = None
        changes = {"train.duration": self.steps} if self.steps != STEPS else {}
        while len(trials) < kills:
            chance = self.bench.chance(self.name, self.trainee.name, self.shape, run_number, len(trials))
            with self.bench.start(self.trainee, place, self.shape, changes=changes) as run:
                if not self.moment(run, self.trainee, place, chance):
                    run.wait()
                    _resumed(trials, killed_at, step_gone_on_from(run.output()), run.seen.get(BEGUN))
                    break
                saving = self.trainee.is_saving(place.workdir)
                run.strike(chance.randrange(self.shape.hosts), signal.SIGKILL)
                codes = run.wait()
                _resumed(trials, killed_at, step_gone_on_from(run.output()), run.seen.get(BEGUN))
            trials.append(Trial("while a checkpoint was written" if saving else "at another time", codes=codes))
            killed_at = last_step(place.workdir)
            self._look(place, trials[-1])
        end = self.bench.finish(self.trainee, place, self.shape, steps=self.steps)
        _resumed(trials, killed_at, end.from_step, end.resume_seconds)
        self._judge(trials, end, place)
        return trials

    def _look(self, place: Place, trial: Trial) -> None:
        wrong = self.bench.wrong_checkpoints(self.trainee, place, self.shape, self.steps)
        if wrong:
            trial.silently_wrong, trial.note = True, f"checkpoints {wrong} are not those of the reference"

    def _judge(self, trials: list[Trial], end: Finished, place: Place) -> None:
        """All kills of a run by its end."""
        done = all(code == 0 for code in end.codes)
        left = leftovers(self.trainee, place)
        for trial in trials:
            trial.exact = end.exact
            trial.silently_wrong |= done and not end.exact
            trial.as_promised = end.exact and not trial.silently_wrong and not left
            if not end.exact and not trial.note:
                trial.note = f"the run started again ended with {end.codes}: {last_line(end.output)}"
            elif left and not trial.note:
                trial.note = f"left behind: {left}"


def _resumed(trials: list[Trial], killed_at: int | None, from_step: int | None, seconds: float | None) -> None:
    """What the next process says of where it goes on; it may have been killed before it could."""
    if trials and killed_at is not None and from_step is not None and trials[-1].steps_lost is None:
        trials[-1].steps_lost = max(0, killed_at - from_step)
        trials[-1].resume_seconds = seconds


def leftovers(trainee: Trainee, place: Place) -> list[str]:
    """What a run that has ended should not have in its checkpoints' folder: parts, or more than it keeps."""
    folder = trainee.checkpoints(place.workdir)
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    whole = sorted(map(int, filter(str.isdigit, names)))
    # Besides the latest few this library keeps the best.
    return sorted(name for name in names if not name.isdigit()) + [str(step) for step in whole[: -(KEEP + 1)]]


def in_saves(bench: Bench, trainee: Trainee, kills: dict[int, int]) -> list[Trial]:
    """Row 1: so many kills of a run of one process and of two (by the number of processes)."""
    trials = []
    for hosts, count in kills.items():
        more = Killing(bench, trainee, in_a_save, "in a save", Shape(hosts)).trials(count)
        for trial in more:
            trial.variant = f"{hosts} process{'es' if hosts > 1 else ''}, {trial.variant}"
        trials += more
    return trials


def anywhere(bench: Bench, trainee: Trainee, kills: dict[int, int]) -> list[Trial]:
    """Row 2."""
    trials = []
    for hosts, count in kills.items():
        shape = Shape(hosts)
        seconds = bench.typical_seconds(trainee, shape)
        trials += Killing(bench, trainee, outside_saves(seconds), "outside saves", shape).trials(count)
    for trial in trials:
        trial.variant = "outside saves"
    return trials


def marathon(bench: Bench, trainee: Trainee, kills: int, *, steps: int) -> list[Trial]:
    """Row 24: one run of so many steps, killed again and again."""
    trials = Killing(bench, trainee, after_some_progress, "marathon", steps=steps).trials(kills)
    for trial in trials:
        trial.variant = "kill and resume"
    return trials
