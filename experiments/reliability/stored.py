"""Damaged checkpoints, read back in this process as a run reads them at its start; rows 8, 9 and 10."""

import io
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import damage
import jax
import numpy as np
import plain_orbax
from bench import ONE, Bench, Place, Shape
from trainees import CHECKPOINT_EVERY, KEEP, SMALL, Library, Trainee, digest
from trials import Message, Trial, last_line

from resnet_jax.build import build
from resnet_jax.checkpoints import Checkpoints
from resnet_jax.config_files import load_config

SET_ASIDE = Message(r"checkpoint \d+ in .* is damaged: \S+", r"is kept as \d+\.damaged and not used")
ALL_BAD = Message(r"every checkpoint in .* is damaged:\n( +\d+\.damaged\S*: \S+.*){3}", "Put a good copy in place")


class Reader:
    """Reads the latest checkpoint of a folder as a program does, into a state of one device."""

    def __init__(self, bench: Bench, trainee: Trainee):
        config = load_config("digits", {**SMALL, "data.data_dir": str(bench.data_dir)})
        self.like, self.is_library = plain_orbax.initial_state(build(config)), isinstance(trainee, Library)

    def latest(self, folder: Path) -> tuple[int, str, str]:
        """The step, the state's digest, and what was written meanwhile; raises what the program raises."""
        with written() as lines:
            if self.is_library:
                with Checkpoints(folder) as checkpoints:
                    restored = checkpoints.restore_latest(self.like)
            else:
                with plain_orbax.open_manager(folder.parent, KEEP) as manager:
                    restored = plain_orbax.restore_latest(manager, self.like)
        if restored is None:
            return 0, "", "\n".join(lines)
        leaves = jax.tree_util.tree_leaves_with_path(restored[1])
        state = {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}
        return restored[0], digest(state), "\n".join(lines)


@contextmanager
def written() -> Iterator[list[str]]:
    """The library's warnings within the block."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("resnet_jax")
    logger.addHandler(handler)
    # Thousands of them, of which each is looked at here.
    propagates, logger.propagate = logger.propagate, False
    try:
        # Orbax goes on complaining in threads after a restore that has failed.
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


class Damaged:
    """Damages copies of a folder of three checkpoints and reads them back."""

    def __init__(self, bench: Bench, trainee: Trainee, shape: Shape = ONE):
        self.bench, self.trainee, self.shape = bench, trainee, shape
        self.reader = Reader(bench, trainee)
        self.original = self._original()
        self.steps = [int(path.name) for path in sorted(self.original.iterdir(), key=lambda path: int(path.name))]
        self.digests: dict[int, str] = {}
        for step in self.steps:
            with self.copy() as folder:
                for other in [other for other in self.steps if other > step]:
                    shutil.rmtree(folder / str(other))
                found, self.digests[step], _ = self.reader.latest(folder)
                assert found == step

    def _original(self) -> Path:
        folder = self.bench.folder / f"stored_{self.trainee.name.replace(' ', '_')}_{self.shape.hosts}"
        if not folder.is_dir():
            source = self.bench.reference_checkpoints(self.trainee, self.shape)
            for step in sorted(int(path.name) for path in source.iterdir())[-KEEP:]:
                shutil.copytree(source / str(step), folder / str(step))
        return folder

    @contextmanager
    def copy(self) -> Iterator[Path]:
        folder = self.bench.folder / "damaged" / "checkpoints"
        shutil.copytree(self.original, folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder.parent)

    @property
    def newest(self) -> str:
        return str(self.steps[-1])

    def trial(self, variant: str, change: Callable[[Path], Any], *, after: Callable[[], Any] = lambda: None) -> Trial:
        """One copy, damaged and read; `after` looks at what that has done."""
        with self.copy() as folder:
            change(folder)
            begun = time.perf_counter()
            try:
                step, found, text = self.reader.latest(folder)
            except Exception as error:
                seconds, text = time.perf_counter() - begun, str(error)
                note = f"not used, and none before it either: {last_line(text)}"
                return Trial(variant, as_promised=False, exact=False, named=False, detect_seconds=seconds, note=note)
            finally:
                after()
            seconds = time.perf_counter() - begun
        trial = Trial(variant, detect_seconds=seconds, steps_lost=self.steps[-1] - step)
        trial.exact = step > 0 and found == self.digests[step]
        trial.silently_wrong = not trial.exact
        trial.named = SET_ASIDE.named_in(text)
        fell_back = step == self.steps[-2] or (step == self.steps[-1] and "newer" in variant)
        trial.as_promised = trial.exact and fell_back and trial.named
        if trial.silently_wrong:
            trial.note = f"step {step} was restored with other values" if step else "started from step 0"
        elif not fell_back:
            trial.note = "undetected; the bytes are none that are read"
        return trial


def bit_flips(bench: Bench, trainee: Trainee, flips: dict[int, int]) -> list[Trial]:
    """Row 8: so many checkpoints with one bit flipped, written by one process and by two."""
    trials = []
    for hosts, count in flips.items():
        damaged = Damaged(bench, trainee, Shape(hosts))
        files = damage.files_of(damaged.original / damaged.newest)
        for number in range(count):
            chance, path = bench.chance("flip", trainee.name, hosts, number), files[number % len(files)]
            kind = damage.kind_of(path, damaged.original / damaged.newest)
            name = path.relative_to(damaged.original)
            trials.append(
                damaged.trial(kind, lambda folder, name=name, chance=chance: damage.flip_bit(folder / name, chance))
            )
    return trials


def lost_bytes(bench: Bench, trainee: Trainee, hosts: tuple[int, ...], *, files: int | None) -> list[Trial]:
    """Row 9: every file cut, emptied, deleted; empty folders. `files` limits how many files of a checkpoint."""
    trials = []
    for count in hosts:
        damaged = Damaged(bench, trainee, Shape(count))
        newest = damaged.original / damaged.newest
        chosen = damage.files_of(newest, empty=True)
        if files is not None:
            chosen = bench.chance("files", trainee.name, count).sample(chosen, min(files, len(chosen)))
        for path in chosen:
            for name, change in damage.ON_FILES.items():
                # What has no byte can only be deleted.
                if path.stat().st_size or name == "deleted":
                    where = path.relative_to(damaged.original)
                    trials.append(damaged.trial(name, lambda folder, w=where, c=change: c(folder / w)))
        for change_folder in damage.ON_FOLDERS:
            variant = (change_folder.__doc__ or "").rstrip(".")
            trials.append(damaged.trial(variant, change_folder))
    return trials


def all_bad(bench: Bench, trainee: Trainee, count: int) -> list[Trial]:
    """Row 10: every checkpoint of a stopped run is damaged; a real process must refuse to start, twice."""
    trials = []
    ways = {"cut in half": damage.cut_in_half, "a bit flipped": None, "deleted": damage.delete}
    place: Place | None = None
    for number in range(count):
        name, way = list(ways.items())[number % len(ways)]
        place = bench.stopped(trainee, again=place)
        chance = bench.chance("all bad", trainee.name, number)
        for step in trainee.steps(place.workdir):
            path = max(damage.files_of(trainee.checkpoints(place.workdir) / str(step)), key=lambda p: p.stat().st_size)
            damage.flip_bit(path, chance) if way is None else way(path)
        for time_number in range(2):
            with bench.start(trainee, place) as run:
                codes, output = run.wait(), run.output()
                seconds = max(run.ended.values(), default=run.begun) - run.begun
            refused = codes == [2] and not (place.workdir / "record.json").exists()
            wrong = codes == [0] and not bench.is_exact(trainee, place)
            trials.append(
                Trial(
                    f"{name}, start {time_number + 1}",
                    silently_wrong=wrong,
                    as_promised=refused,
                    named=ALL_BAD.named_in(output),
                    detect_seconds=seconds,
                    codes=codes,
                    note="" if refused else f"ended with {codes}: {last_line(output)}",
                )
            )
    if place is not None:
        bench.remove(place)
    return trials


def after_damage(bench: Bench, trainee: Trainee, count: int) -> list[Trial]:
    """Of rows 8 and 9, whole: a bit of a stopped run's newest checkpoint is flipped, and the run started again."""
    trials = []
    place: Place | None = None
    for number in range(count):
        place = bench.stopped(trainee, again=place)
        step = trainee.steps(place.workdir)[-1]
        newest = trainee.checkpoints(place.workdir) / str(step)
        # The largest file has the state.
        path = max(damage.files_of(newest), key=lambda path: path.stat().st_size)
        damage.flip_bit(path, bench.chance("whole", trainee.name, number))
        end = bench.finish(trainee, place)
        trials.append(
            Trial(
                "a run goes on after it",
                silently_wrong=end.codes == [0] and not end.exact,
                as_promised=end.exact and end.from_step == step - CHECKPOINT_EVERY,
                exact=end.exact,
                steps_lost=None if end.from_step is None else step - end.from_step,
                resume_seconds=end.resume_seconds,
                named=SET_ASIDE.named_in(end.output),
                note="" if end.exact else f"ended with {end.codes}: {last_line(end.output)}",
            )
        )
    if place is not None:
        bench.remove(place)
    return trials
