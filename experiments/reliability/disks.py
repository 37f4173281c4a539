"""Disks that fill up, are read-only or vanish, and surroundings that are not what they were; rows 11, 12 and 23."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import Bench, Finished, Place
from kills import leftovers
from processes import Run
from trainees import Library, Trainee
from trials import Message, Trial, last_line

from resnet_jax import exit_codes

FULL = Message(
    r"the checkpoint of step \d+ could not be saved: .*(bytes free|No space|RESOURCE_EXHAUSTED)",
    r"those before it are kept|needed",
)
READ_ONLY = Message(r"Read-only file system|cannot be written to", r"checkpoints|run\.lock|run")
_DISK_BYTES = 16 * 2**20
# Less than a state takes; enough for the arrays, but not for all files that hold them.
_TOO_LITTLE, _NOT_QUITE = 4096, 90_000


class CannotMount(Exception):
    """Nothing may be mounted here."""


@contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """A small file system of its own at a folder, in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    mount(folder, "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def mount(folder: Path, *words: str) -> None:
    done = subprocess.run(["mount", *words, str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise CannotMount(done.stderr.strip())


def fill(folder: Path, *, leave: int) -> Path:
    """A file that leaves so many bytes."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        while (more := shutil.disk_usage(folder).free - leave) > 0:
            try:
                file.write(bytes(min(more, 2**20)))
                file.flush()
            except OSError:
                break
    return filler


def full(bench: Bench, trainee: Trainee, variants: tuple[str, ...]) -> list[Trial]:
    """Row 11."""
    return [FULL_DISKS[name](bench, trainee, name) for name in variants]


@contextmanager
def _no_room(run: Run, trainee: Trainee, place: Place, folder: Path, *, leave: int) -> Iterator[None]:
    """Fills a disk once the run has its checkpoint of step 8; there is room again after the block."""
    run.wait_until(lambda: 8 in trainee.steps(place.workdir))
    filler = fill(folder, leave=leave)
    yield
    filler.unlink()


def _freed_again(leave: int) -> Callable[[Bench, Trainee, str], Trial]:
    """The disk of the checkpoints fills up, and there is room again when a save has failed."""

    def trial(bench: Bench, trainee: Trainee, name: str) -> Trial:
        place = bench.place(trainee)
        folder = trainee.checkpoints(place.workdir)
        with disk(folder):
            with bench.start(trainee, place) as run:
                with _no_room(run, trainee, place, folder, leave=leave):
                    noticed = run.wait_for_text("could not be saved")
                codes, output = run.wait(), run.output()
            at_once = noticed is not None and codes == [0]
            end = None if at_once else bench.finish(trainee, place)
            exact = bench.is_exact(trainee, place) if end is None else end.exact
            result = _trial(name, codes, output, end, exact=exact)
            result.as_promised = at_once and exact and result.named is True
            _note_leftovers(trainee, place, result)
        bench.remove(place)
        return result

    return trial


def _full_to_the_end(*, whole_run: bool) -> Callable[[Bench, Trainee, str], Trial]:
    """A disk stays full until the run has ended: the checkpoints', or the whole run's, with the metrics on it."""

    def trial(bench: Bench, trainee: Trainee, name: str) -> Trial:
        place = bench.place(trainee)
        folder = place.workdir if whole_run else trainee.checkpoints(place.workdir)
        with disk(folder):
            with bench.start(trainee, place) as run:
                with _no_room(run, trainee, place, folder, leave=0 if whole_run else _TOO_LITTLE):
                    codes, output = run.wait(), run.output()
                    recorded = (place.workdir / "record.json").exists()
            end = bench.finish(trainee, place)
            result = _trial(name, codes, output, end, exact=end.exact)
            if whole_run:
                result.named = "No space left" in output
            ended = codes[0] not in (0, 1) if whole_run else codes == [exit_codes.UNSAVED]
            result.as_promised = ended and not recorded and end.exact and result.named is True
            _note_leftovers(trainee, place, result)
        bench.remove(place)
        return result

    return trial


FULL_DISKS: dict[str, Callable[[Bench, Trainee, str], Trial]] = {
    "the checkpoints' disk, then room again": _freed_again(_TOO_LITTLE),
    "the checkpoints' disk to the end": _full_to_the_end(whole_run=False),
    "the checkpoints' disk, within a save": _freed_again(_NOT_QUITE),
    "the whole run's disk": _full_to_the_end(whole_run=True),
}


def _trial(name: str, codes: list[int | str], output: str, end: Finished | None, *, exact: bool) -> Trial:
    wrong = (codes == [0] or (end is not None and end.codes == [0])) and not exact
    trial = Trial(name, silently_wrong=wrong, exact=exact, codes=codes, named=FULL.named_in(output))
    trial.resume_seconds = end.resume_seconds if end else None
    if not exact:
        trial.note = f"ended with {codes}, then with {end.codes if end else 'nothing'}: " + last_line(
            end.output if end and end.codes != [0] else output
        )
    elif not trial.named:
        trial.note = f"{codes}: {last_line(output)}"
    return trial


def _note_leftovers(trainee: Trainee, place: Place, trial: Trial) -> None:
    if left := leftovers(trainee, place):
        trial.as_promised, trial.note = False, f"left behind: {left}"


def unwritable(bench: Bench) -> list[Trial]:
    """Row 12: read-only at the start, of a new run and of a stopped one; gone in the middle of a run."""
    trainee, trials = Library(), []
    for name in ("a new run on a read-only disk", "a stopped run on a read-only disk"):
        place = bench.stopped(trainee) if "stopped" in name else bench.place(trainee)
        kept = place.folder / "kept"
        if "stopped" in name:
            place.workdir.rename(kept)
        with disk(place.workdir):
            if "stopped" in name:
                shutil.copytree(kept, place.workdir, dirs_exist_ok=True)
            mount(place.workdir, "-o", "remount,ro")
            with bench.start(trainee, place) as run:
                codes, output = run.wait(), run.output()
                seconds = max(run.ended.values(), default=run.begun) - run.begun
            mount(place.workdir, "-o", "remount,rw")
            end = bench.finish(trainee, place)
        refused = codes == [exit_codes.BAD_INPUT] and "step 1" not in output
        trial = Trial(name, codes=codes, detect_seconds=seconds, exact=end.exact, resume_seconds=end.resume_seconds)
        trial.named, trial.silently_wrong = READ_ONLY.named_in(output), end.codes == [0] and not end.exact
        trial.as_promised = refused and end.exact
        trial.note = "" if trial.as_promised else f"ended with {codes}, then {end.codes}: {last_line(output)}"
        trials.append(trial)
        bench.remove(place)
    return [*trials, _vanished(bench, trainee)]


def _vanished(bench: Bench, trainee: Library) -> Trial:
    """The checkpoints' disk is unmounted while the run is at work; what is written then is in the folder below."""
    place = bench.place(trainee)
    folder = trainee.checkpoints(place.workdir)
    with disk(folder), bench.start(trainee, place) as run:
        run.wait_until(lambda: 8 in trainee.steps(place.workdir))
        subprocess.run(["umount", "-l", str(folder)], check=True)
        codes, output = run.wait(), run.output()
    end = bench.finish(trainee, place) if codes != [0] else None
    exact = end.exact if end else bench.is_exact(trainee, place)
    done = [0] in (codes, end.codes if end else None)
    trial = Trial("the checkpoints' disk is unmounted", codes=codes, exact=exact, silently_wrong=done and not exact)
    trial.as_promised = exact
    trial.note = "" if exact else f"ended with {codes}, then {end and end.codes}: {last_line(output)}"
    bench.remove(place)
    return trial


NO_TEXT = Message(r"these bytes are no text in this process's encoding, ascii", "set PYTHONUTF8=1")
_BEYOND_ASCII = "a locale without UTF-8, a folder beyond ASCII"
_ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def surroundings(bench: Bench, variants: tuple[str, ...]) -> list[Trial]:
    """Row 23: the run ends as ever; a folder whose name is no text where it runs is refused, with what helps."""
    trainee, trials = Library(), []
    for name in variants:
        place = bench.place(trainee)
        if name == _BEYOND_ASCII:
            trials.append(_beyond_ascii(bench, trainee, place))
            continue
        temporary = place.folder / "temporary"
        variables, hook = {
            "the clock jumps a day ahead": ({}, "clock_forth:9"),
            "the clock jumps a day back": ({}, "clock_back:9"),
            "/tmp is full": ({"TMPDIR": str(temporary)}, None),
            "no home": ({"HOME": "/nonexistent", "XDG_CACHE_HOME": "", "XDG_CONFIG_HOME": ""}, None),
            "a locale without UTF-8": (_ASCII, None),
        }[name]
        if "/tmp" in name:
            with disk(temporary):
                fill(temporary, leave=0)
                codes, output = _run(bench, trainee, place, variables, hook)
        else:
            codes, output = _run(bench, trainee, place, variables, hook)
        exact = codes == [0] and bench.is_exact(trainee, place)
        trial = Trial(name, codes=codes, exact=exact, as_promised=exact, silently_wrong=codes == [0] and not exact)
        trial.note = "" if exact else f"ended with {codes}: {last_line(output)}"
        trials.append(trial)
        bench.remove(place)
    return trials


def _beyond_ascii(bench: Bench, trainee: Library, place: Place) -> Trial:
    place.name = "läuf"
    codes, output = _run(bench, trainee, place, _ASCII, None)
    named, refused = NO_TEXT.named_in(output), codes == [exit_codes.BAD_INPUT] and not place.workdir.exists()
    then, last = _run(bench, trainee, place, _ASCII | {"PYTHONUTF8": "1"}, None)
    exact = then == [0] and bench.is_exact(trainee, place)
    trial = Trial(_BEYOND_ASCII, codes=codes, exact=exact, named=named, as_promised=exact and named and refused)
    trial.silently_wrong = [0] in (codes, then) and not exact
    trial.note = "" if trial.as_promised else f"ended with {codes}, then {then}: {last_line(last or output)}"
    bench.remove(place)
    return trial


def _run(
    bench: Bench, trainee: Library, place: Place, variables: dict[str, str], hook: str | None
) -> tuple[list[int | str], str]:
    with bench.start(trainee, place, variables=[variables], hooks=[hook]) as run:
        return run.wait(), run.output()


SURROUNDINGS = (
    *("the clock jumps a day ahead", "the clock jumps a day back"),
    *("/tmp is full", "no home", "a locale without UTF-8", _BEYOND_ASCII),
)
