"""Images that are odd or damaged, labels that are none, workers that die, data that is missing; rows 17 to 20."""

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

from bench import Bench, Place, Shape
from data_sets import bad_images, build_digits, build_images, odd_images
from processes import PATIENCE_SECONDS, Run
from trainees import Library, Streamed, last_step
from trials import Message, Trial, last_line

from resnet_jax import exit_codes
from resnet_jax.records import read_record

UNREADABLE = Message(
    r"data set 'colors', split 'train', example \d+ \(image\d+\.jpg\): ", "data.unreadable=skip leaves such images out"
)
NO_CLASS = Message(r"data set 'digits', split 'train.*', example \d+.* has label -?\d+", "allowed is 0 to 9")
MISSING = Message("no data set 'cifar10' in ", r"make it with: resnet-jax prepare cifar10 --data_dir=")
MISSING_FILE = Message(r"digits-train\.array_record", r"data_dir|prepare|copy|make it")
WORKER = Message(r"lost \d of \d data workers: process \d+", r"start the same command again|data\.workers")

_WORKERS, _WORKER_SECONDS = 2, 5.0


def bad_examples(bench: Bench, stops: tuple[str, ...], *, hosts: tuple[int, ...], odd: bool) -> list[Trial]:
    """Row 17: each kind of bad image stops a run by name; all of them are left out and counted; odd ones train."""
    trials, place = [], None
    for name in stops:
        folder = build_images(bench.folder / "bad_image", {3: bad_images()[name]})
        place = bench.place(Streamed(), compiled=False) if place is None else bench.again(place)
        codes, output, _ = _run(bench, place, folder)
        trial = Trial(f"{name}, stop", silently_wrong=codes == [0], codes=codes, named=UNREADABLE.named_in(output))
        trial.as_promised = codes == [exit_codes.BAD_INPUT] and "example 3 (image3.jpg)" in output
        trial.note = "" if trial.as_promised else f"ended with {codes}: {last_line(output)}"
        trials.append(trial)
    if place is not None:
        bench.remove(place)
    trials += [_left_out(bench, count) for count in hosts]
    return [*trials, _odd(bench)] if odd else trials


def _left_out(bench: Bench, hosts: int) -> Trial:
    """Every bad image comes once an epoch; 40 steps of 32 are 29 epochs of 44 and 4 images more."""
    images = dict(zip(range(3, 44, 7), bad_images().values(), strict=False))
    folder = build_images(bench.folder / "bad_images", images)
    place = bench.place(Streamed(), Shape(hosts), compiled=False)
    codes, output, record = _run(bench, place, folder, hosts=hosts, changes={"data.unreadable": "skip"})
    found = record["unreadable_images"] if record else None
    epochs, rest = divmod(40 * 32, 44)
    right = codes == [0] * hosts and found is not None and 0 <= found - epochs * len(images) <= min(rest, len(images))
    name = f"{len(images)} kinds together, skip, {hosts} process{'es' if hosts > 1 else ''}"
    trial = Trial(name, silently_wrong=codes == [0] * hosts and not right, as_promised=right, codes=codes)
    trial.note = f"{found} counted" if right else f"{found} counted, ended with {codes}: {last_line(output)}"
    bench.remove(place)
    return trial


def _odd(bench: Bench) -> Trial:
    images = dict(zip(range(3, 44, 6), odd_images().values(), strict=False))
    folder = build_images(bench.folder / "odd_images", images)
    place = bench.place(Streamed(), compiled=False)
    codes, output, record = _run(bench, place, folder)
    right = codes == [0] and record["unreadable_images"] == 0 and record["train"]["count"] == 44
    bench.remove(place)
    note = "" if right else f"ended with {codes}: {last_line(output)}"
    return Trial("PNG, grey, CMYK, 1 x 1, EXIF: decoded", as_promised=right, codes=codes, note=note)


def _run(
    bench: Bench, place: Place, folder: Path, *, hosts: int = 1, changes: dict[str, Any] | None = None
) -> tuple[list[int | str], str, dict]:
    changes = {"data.data_dir": folder.as_posix(), **(changes or {})}
    with bench.start(Streamed(), place, Shape(hosts), changes=changes) as run:
        codes, output = run.wait(), run.output()
    path = place.workdir / "record.json"
    return codes, output, read_record(path) if path.is_file() else {}


def bad_labels(bench: Bench, labels: tuple[int, ...]) -> list[Trial]:
    """Row 18: what is no class is refused before the first step."""
    trials = []
    for label in labels:
        folder = build_digits(bench.folder / "labels", f"label {label}")
        place = bench.place(Library())
        with bench.start(Library(), place, changes={"data.data_dir": folder.as_posix()}) as run:
            codes, output = run.wait(), run.output()
        refused = codes == [exit_codes.BAD_INPUT] and not (place.workdir / "checkpoints").exists()
        trial = Trial(f"label {label} of 10 classes", silently_wrong=codes == [0], as_promised=refused, codes=codes)
        trial.named = NO_CLASS.named_in(output) and f"label {label}" in output
        trial.note = "" if refused else f"ended with {codes}: {last_line(output)}"
        trials.append(trial)
        bench.remove(place)
    return trials


def dead_workers(bench: Bench, count: int) -> list[Trial]:
    """Row 19: a decoding process is killed while the run trains; what is decoded already it may still use."""
    trainee, trials = Streamed(), []
    images = _streamed_bench(bench)
    for number in range(count):
        place = images.place(trainee)
        with images.start(trainee, place, changes={"data.workers": _WORKERS}) as run:
            run.wait_until(lambda place=place: trainee.steps(place.workdir) != [])
            # Those that evaluate come later.
            workers = children_of(run.processes[0].pid, "spawn_main")[:_WORKERS]
            time.sleep(bench.chance("worker", number).uniform(0, 0.3))
            if workers:
                os.kill(bench.chance("which worker", number).choice(workers), signal.SIGKILL)
            seconds = _seconds_without_a_step(run, place)
            codes, output = run.wait(), run.output()
        done = last_step(place.workdir)
        end = images.finish(trainee, place)
        trial = Trial("a worker is killed", codes=codes, exact=end.exact, resume_seconds=end.resume_seconds)
        trial.steps_lost = None if end.from_step is None else max(0, done - end.from_step)
        trial.detect_seconds, trial.named = seconds, WORKER.named_in(output)
        trial.silently_wrong = 0 in (codes[0], end.codes[0]) and not trial.exact
        trial.as_promised = codes == [exit_codes.WORKER_LOST] and seconds <= _WORKER_SECONDS and end.exact
        if not trial.as_promised or not trial.named:
            trial.note = f"of {len(workers)} workers, ended with {codes} after {seconds:.0f} s: {last_line(output)}"
        trials.append(trial)
        images.remove(place)
    return trials


def _seconds_without_a_step(run: Run, place: Place) -> float:
    """From the last step that the run made to its end."""
    step, since = -1, time.monotonic()
    deadline = since + PATIENCE_SECONDS
    while run.alive() and time.monotonic() < deadline:
        if (newest := last_step(place.workdir)) != step:
            step, since = newest, time.monotonic()
        time.sleep(0.01)
    return time.monotonic() - since


def _streamed_bench(bench: Bench) -> Bench:
    """A bench whose data are images to be decoded."""
    folder = bench.folder / "streamed"
    if not folder.is_dir():
        folder.mkdir()
    other = Bench(folder, seed=bench.seed, plant=bench.plant, until=bench.until)
    other.data_dir = build_images(folder / "images", {})
    return other


def children_of(process: int, text: str) -> list[int]:
    """Processes that one has started, by a piece of their command line; Linux only."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            parent = re.search(r"^PPid:\s+(\d+)", (folder / "status").read_text(), re.MULTILINE)
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent and int(parent[1]) == process and text in command:
            found.append(int(folder.name))
    return sorted(found)


def missing(bench: Bench, variants: tuple[str, ...]) -> list[Trial]:
    """Row 20."""
    trials = []
    for name in variants:
        place = bench.place(Library())
        changes: dict[str, Any] = {"data.data_dir": (bench.folder / "no_data").as_posix(), "data.name": "cifar10"}
        message = MISSING
        if name == "a file of the data set":
            folder = build_digits(bench.folder / "missing", "reordered")
            for path in folder.glob("digits/*/*train*"):
                path.unlink()
            changes, message = {"data.data_dir": folder.as_posix()}, MISSING_FILE
        with bench.start(Library(), place, changes=changes) as run:
            codes, output = run.wait(), run.output()
            seconds = max(run.ended.values(), default=run.begun) - run.begun
        refused = codes == [exit_codes.BAD_INPUT]
        trial = Trial(name, silently_wrong=codes == [0], as_promised=refused, codes=codes, detect_seconds=seconds)
        trial.named = message.named_in(output)
        trial.note = "" if refused and trial.named else f"ended with {codes}: {last_line(output)}"
        trials.append(trial)
        bench.remove(place)
    return trials


MISSING_DATA = ("the data set", "a file of the data set")
