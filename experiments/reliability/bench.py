"""Where faults are tried: a folder of its own, runs that nothing befell to compare with, and what every trial needs."""

import math
import random
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from processes import Run
from trainees import STEPS, Trainee, metrics

from resnet_jax.data.prepare import prepare
from resnet_jax.environment import source_digest

# What both programs write before their first step.
BEGUN = "from step "
FROM_STEP = re.compile(r"^from step (\d+)", re.MULTILINE)


def step_gone_on_from(output: str) -> int | None:
    """What a run says of where it begins; None if it has not got there."""
    match = FROM_STEP.search(output)
    return int(match[1]) if match else None


class Shape(NamedTuple):
    """Processes of a run, and CPU devices of each."""

    hosts: int = 1
    devices: int = 1


ONE = Shape()


class Reference(NamedTuple):
    """A run that nothing befell: digests of the state by step, the metrics, and the seconds that it took."""

    digests: dict[int, str]
    metrics: list[dict[str, float]]
    seconds: float


class Finished(NamedTuple):
    """A run that was started again: its exit codes, where it went on, whether its end is the reference's."""

    codes: list[int | str]
    from_step: int | None
    exact: bool
    resume_seconds: float | None
    output: str


@dataclass
class Place:
    """Of one trial or a sequence: the run's folder, logs, and compiled programs of its own."""

    folder: Path
    caches: list[Path]
    runs: int = 0
    name: str = "run"

    @property
    def workdir(self) -> Path:
        return self.folder / self.name


class SourceChanged(Exception):
    """The package is not the one that the runs before were made with: none can be compared."""


class OutOfTime(Exception):
    """All that is tried here takes longer than it may."""


class Bench:
    """Starts runs and judges them, all of one and the same package.

    Args:
      folder: for all files; emptied by whoever made it.
      seed: of all that is chosen by chance.
      plant: a hook for every run but the references, to see that its fault is found.
      until: no run is started after it, of `time.monotonic()`.
    """

    def __init__(self, folder: Path, *, seed: int = 0, plant: str | None = None, until: float = math.inf):
        self.folder, self.seed, self.plant, self.until = folder.resolve(), seed, plant, until
        self.data_dir = self.folder / "data"
        self._references: dict[tuple[str, Shape, int], Reference] = {}
        self._typical: dict[tuple[str, Shape], float] = {}
        self._places = 0
        self._source = source_digest()
        prepare("digits", data_dir=self.data_dir)

    def check_source(self) -> None:
        """Raises SourceChanged if somebody has edited the package meanwhile."""
        if source_digest() != self._source:
            raise SourceChanged("source files of resnet_jax were changed while faults were tried; begin anew")

    def chance(self, *names: object) -> random.Random:
        """Chance that depends on the seed and the names alone."""
        return random.Random(" ".join(map(str, (self.seed, *names))))

    def place(self, trainee: Trainee, shape: Shape = ONE, *, steps: int = STEPS, compiled: bool = True) -> Place:
        """A new one; with `compiled` it has the programs of the reference run, and nothing is compiled twice."""
        folder = self._new_folder()
        caches = [folder / f"compiled_{index}" for index in range(shape.hosts)]
        if compiled:
            self.reference(trainee, shape, steps)
        for cache in caches:
            if compiled:
                shutil.copytree(self._cache(trainee, shape, steps), cache)
            else:
                cache.mkdir(parents=True)
        return Place(folder, caches)

    def start(
        self,
        trainee: Trainee,
        place: Place,
        shape: Shape = ONE,
        *,
        changes: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
        hooks: Sequence[str | None] | None = None,
        variables: Sequence[Mapping[str, str]] | None = None,
    ) -> Run:
        """The run in the place's folder, for the first time or again.

        Args:
          trainee: which program.
          place: where.
          shape: processes and devices.
          changes: config keys and values, of all or of each process.
          hooks: what to run each process with, see `hooks.py`.
          variables: more of the environment, for each process.

        Raises:
          SourceChanged: see `check_source`.
          OutOfTime: it is later than `until`.
        """
        if time.monotonic() > self.until:
            raise OutOfTime("the time for all rows is over")
        self.check_source()
        each = [dict(changes)] * shape.hosts if not changes or isinstance(changes, Mapping) else changes
        hooks = [self.plant] * shape.hosts if hooks is None else hooks
        commands = [
            trainee.command(place.workdir, {"data.data_dir": self.data_dir.as_posix(), **own}, hook=hook)
            for own, hook in zip(each, hooks, strict=True)
        ]
        place.runs += 1
        logs = place.folder / f"logs_{place.runs}"
        caches = place.caches[: shape.hosts] if len(place.caches) >= shape.hosts else None
        return Run(commands, logs, devices=shape.devices, caches=caches, variables=variables)

    def finish(
        self,
        trainee: Trainee,
        place: Place,
        shape: Shape = ONE,
        *,
        steps: int = STEPS,
        reference: Shape | None = None,
        changes: Mapping[str, Any] = {},  # noqa: B006  (never changed)
        variables: Sequence[Mapping[str, str]] | None = None,
    ) -> Finished:
        """Starts the same command again, waits for its end, and compares that with the reference's."""
        changes = {**({"train.duration": steps} if steps != STEPS else {}), **changes}
        with self.start(trainee, place, shape, changes=changes, variables=variables) as run:
            seconds = run.wait_for_text(BEGUN)
            codes = run.wait()
            output = run.output()
        exact = codes == [0] * shape.hosts and self.is_exact(trainee, place, reference or shape, steps)
        return Finished(codes, step_gone_on_from(output), exact, seconds, output)

    def typical_seconds(self, trainee: Trainee, shape: Shape) -> float:
        """Of a whole run whose programs are compiled already; measured once."""
        key = (trainee.name, shape)
        if key not in self._typical:
            place = self.place(trainee, shape)
            begun = time.monotonic()
            end = self.finish(trainee, place, shape)
            if not end.exact:
                raise RuntimeError(f"two runs of {key} differ, without any fault")
            self._typical[key] = time.monotonic() - begun
            self.remove(place)
        return self._typical[key]

    def stopped(self, trainee: Trainee, shape: Shape = ONE, *, again: Place | None = None) -> Place:
        """A place with a run that was killed half way, after several checkpoints; made once, and then copied.

        Args:
          trainee: which program.
          shape: processes and devices.
          again: a place that is done with, whose compiled programs are taken over.
        """
        original = self.folder / f"stopped_{trainee.name.replace(' ', '_')}_{shape.hosts}x{shape.devices}"
        if not original.is_dir():
            place = self.place(trainee, shape)
            with self.start(trainee, place, shape, hooks=[None] * shape.hosts) as run:
                half = STEPS // 2
                steps = trainee.steps
                ready = run.wait_until(
                    lambda: steps(place.workdir)[-1:] >= [half] and not trainee.is_saving(place.workdir)
                )
                if not ready:
                    raise RuntimeError(f"the run of {trainee.name} could not be stopped half way: {run.outputs()}")
                run.kill()
            place.workdir.rename(original)
            self.remove(place)
        place = self.place(trainee, shape) if again is None else self.again(again)
        shutil.copytree(original, place.workdir)
        return place

    def again(self, place: Place) -> Place:
        """Another place with the compiled programs of one that is done with."""
        new = self._new_folder()
        caches = [cache.rename(new / cache.name) for cache in place.caches]
        self.remove(place)
        return Place(new, caches)

    def reference(self, trainee: Trainee, shape: Shape = ONE, steps: int = STEPS) -> Reference:
        """The run that nothing befell; trained once."""
        key = (trainee.name, shape, steps)
        if key not in self._references:
            folder = self._cache(trainee, shape, steps).parent
            # What one that failed has left would be gone on with.
            shutil.rmtree(folder, ignore_errors=True)
            self._cache(trainee, shape, steps).mkdir(parents=True)
            caches = [folder / "compiled", *(folder / f"others_{n}" for n in range(1, shape.hosts))]
            place = Place(folder, caches)
            changes = {"train.duration": steps, "checkpoint.keep_latest": steps}
            begun = time.monotonic()
            with self.start(trainee, place, shape, changes=changes, hooks=[None] * shape.hosts) as run:
                codes = run.wait(600)
                if codes != [0] * shape.hosts:
                    raise RuntimeError(f"the reference of {key} failed: {codes}\n" + "\n".join(run.outputs()))
            seconds = time.monotonic() - begun
            digests = {step: trainee.digest(place.workdir, step) for step in trainee.steps(place.workdir)}
            self._references[key] = Reference(digests, metrics(place.workdir), seconds)
        return self._references[key]

    def reference_checkpoints(self, trainee: Trainee, shape: Shape = ONE) -> Path:
        """The folder with all checkpoints of the run that nothing befell."""
        self.reference(trainee, shape)
        return trainee.checkpoints(self._cache(trainee, shape, STEPS).parent / "run")

    def is_exact(self, trainee: Trainee, place: Place, shape: Shape = ONE, steps: int = STEPS) -> bool:
        """Whether a run that has ended has the reference's last state, and its metrics from the first step on."""
        expected = self.reference(trainee, shape, steps)
        if trainee.steps(place.workdir)[-1:] != [steps]:
            return False
        same_state = trainee.digest(place.workdir, steps) == expected.digests[steps]
        return same_state and (not trainee.writes_metrics or metrics(place.workdir) == expected.metrics)

    def wrong_checkpoints(self, trainee: Trainee, place: Place, shape: Shape = ONE, steps: int = STEPS) -> list[int]:
        """Steps of complete checkpoints that can be read and are not the reference's."""
        expected = self.reference(trainee, shape, steps).digests
        wrong = []
        for step in trainee.steps(place.workdir):
            if step not in expected:
                continue
            try:
                found = trainee.digest(place.workdir, step)
            except Exception:
                continue  # It tells whoever reads it.
            if found != expected[step]:
                wrong.append(step)
        return wrong

    def remove(self, place: Place) -> None:
        """What a trial leaves is large."""
        shutil.rmtree(place.folder, ignore_errors=True)

    def _new_folder(self) -> Path:
        self._places += 1
        folder = self.folder / f"trial_{self._places}"
        folder.mkdir()
        return folder

    def _cache(self, trainee: Trainee, shape: Shape, steps: int) -> Path:
        name = trainee.name.replace(" ", "_")
        return self.folder / f"reference_{name}_{shape.hosts}x{shape.devices}_{steps}" / "compiled"
