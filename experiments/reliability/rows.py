"""The matrix: each row's fault, what is promised, and how it is tried, a little (small) or enough to publish (full)."""

import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import computing
import data_sets
import disks
import hostile
import inputs
import kills
import peers
import resuming
import stops
import stored
from bench import Bench, Shape
from trainees import Library, Plain, Trainee
from trials import Message, Trial

Tries = Callable[[Bench, Trainee], list[Trial]]


@dataclass(frozen=True)
class Row:
    """A fault of the matrix.

    Attributes:
      number: in the matrix.
      fault: in words.
      promise: what counts as "as promised".
      library: how it is tried on this library, by scale.
      plain: how on the plain loop; {} where there is nothing to compare.
      messages: patterns of cause and remedy, by what they are for; none where a run has nothing to say.
    """

    number: int
    fault: str
    promise: str
    library: Mapping[str, Tries]
    plain: Mapping[str, Tries] = field(default_factory=dict)
    messages: Mapping[str, Message] = field(default_factory=dict)


def _either(small: Tries, full: Tries) -> dict[str, Tries]:
    return {"small": small, "full": full}


def _alike(tries: Tries) -> dict[str, Tries]:
    return _either(tries, tries)


def _one_or_all(tries: Callable[[Bench, tuple], list[Trial]], variants: Iterable) -> dict[str, Tries]:
    """The first variant at the small scale, at the full one all."""
    names = tuple(variants)
    return _either(lambda b, t: tries(b, names[:1]), lambda b, t: tries(b, names))


EXACT = "started again the run ends bit for bit like one that nothing befell, and leaves nothing unfinished behind"

ROWS = (
    Row(
        1,
        "SIGKILL in a save",
        EXACT,
        _either(lambda b, t: kills.in_saves(b, t, {1: 2}), lambda b, t: kills.in_saves(b, t, {1: 20, 2: 5})),
        _either(lambda b, t: [], lambda b, t: kills.in_saves(b, t, {1: 6, 2: 2})),
    ),
    Row(
        2,
        "SIGKILL outside saves",
        EXACT,
        _either(lambda b, t: kills.anywhere(b, t, {1: 1}), lambda b, t: kills.anywhere(b, t, {1: 6, 2: 2})),
    ),
    Row(
        3,
        "SIGTERM to one of two processes",
        "both save at the same step and exit with 75 within 10 s; started again they end exact",
        _either(lambda b, t: stops.to_one_of_two(b, 1), lambda b, t: stops.to_one_of_two(b, 3)),
        messages={"stopped": stops.STOPPED},
    ),
    Row(
        4,
        "SIGTERM at any point, once or twice",
        "once: saved, exit 75; twice: an end at once, by the signal; started again the run ends exact",
        _either(
            lambda b, t: stops.at_any_point(b, 1, 0, tuple(stops.WAYS)[:2]),
            lambda b, t: stops.at_any_point(b, 1, 4),
        ),
        messages={"stopped": stops.STOPPED},
    ),
    Row(
        5,
        "a peer is killed",
        "the other ends within 15 s, not with 0; started again both end exact",
        _either(lambda b, t: peers.lost(b, t, 1, signal.SIGKILL), lambda b, t: peers.lost(b, t, 4, signal.SIGKILL)),
        messages={"lost": peers.LOST},
    ),
    Row(
        6,
        "a peer is frozen (SIGSTOP)",
        "as for a killed one",
        _either(lambda b, t: [], lambda b, t: peers.lost(b, t, 2, signal.SIGSTOP)),
        messages={"lost": peers.LOST},
    ),
    Row(
        7,
        "a peer is alive and makes no step",
        f"with a limit of {peers.LIMIT_SECONDS} s all end with the traceback of every thread, exit 70 (or 71)",
        _either(lambda b, t: peers.stuck(b, t, 1), lambda b, t: peers.stuck(b, t, 2)),
        _either(lambda b, t: [], lambda b, t: peers.stuck(b, t, 1)),
        messages={"stuck": peers.STUCK},
    ),
    Row(
        8,
        "a bit of a checkpoint's file flips",
        "found; the checkpoint is set aside, loudly, and the one before it is used",
        _either(
            lambda b, t: stored.bit_flips(b, t, {1: 26}) + stored.after_damage(b, t, 1),
            lambda b, t: stored.bit_flips(b, t, {1: 400, 2: 100}) + stored.after_damage(b, t, 3),
        ),
        _either(
            lambda b, t: stored.bit_flips(b, t, {1: 26}),
            lambda b, t: stored.bit_flips(b, t, {1: 200}) + stored.after_damage(b, t, 2),
        ),
        messages={"set aside": stored.SET_ASIDE},
    ),
    Row(
        9,
        "a checkpoint's file is cut, zeroed or gone; empty step folders",
        "as for a flipped bit",
        _either(
            lambda b, t: stored.lost_bytes(b, t, (1,), files=3),
            lambda b, t: stored.lost_bytes(b, t, (1, 2), files=None),
        ),
        _either(
            lambda b, t: stored.lost_bytes(b, t, (1,), files=3), lambda b, t: stored.lost_bytes(b, t, (1,), files=None)
        ),
        messages={"set aside": stored.SET_ASIDE},
    ),
    Row(
        10,
        "all checkpoints are bad",
        "every start is refused with exit 2 and a list; none begins at step 0",
        _either(lambda b, t: stored.all_bad(b, t, 1), lambda b, t: stored.all_bad(b, t, 3)),
        _either(lambda b, t: [], lambda b, t: stored.all_bad(b, t, 3)),
        messages={"all bad": stored.ALL_BAD},
    ),
    Row(
        11,
        "the disk fills up in a run",
        "training goes on, a later save succeeds, nothing is left behind; exit 74 if the last save fails; ends exact",
        _either(
            lambda b, t: disks.full(b, t, tuple(disks.FULL_DISKS)[:1]),
            lambda b, t: disks.full(b, t, tuple(disks.FULL_DISKS)),
        ),
        _either(lambda b, t: [], lambda b, t: disks.full(b, t, tuple(disks.FULL_DISKS)[:3])),
        messages={"full": disks.FULL},
    ),
    Row(
        12,
        "the folder is read-only, or vanishes in a run",
        "read-only: exit 2 before step 1; ends exact when that is over",
        _either(lambda b, t: [], lambda b, t: disks.unwritable(b)),
        messages={"read-only": disks.READ_ONLY},
    ),
    Row(
        13,
        "other processes or devices (tier B)",
        f"the next image; metrics of the same steps; training losses within {resuming.LOSS_BOUND:.0%} of their value",
        _one_or_all(resuming.on_other_devices, resuming.WAYS[:4]),
    ),
    Row(
        14,
        "another config in the same folder",
        "exit 2 with the key and both values; the right command then ends exact",
        _one_or_all(resuming.with_another_config, resuming.CONFIGS),
        messages={"another config": resuming.OTHER_CONFIG},
    ),
    Row(
        15,
        "changed data",
        "exit 2; the right command then ends exact",
        _one_or_all(resuming.with_other_data, resuming.DATA),
        messages={"other data": resuming.OTHER_DATA},
    ),
    Row(
        16,
        "NaN in a batch or gradient; learning rate 1e20",
        "stop: exit 3 before anything of it is saved; skip: parameters, statistics and momentum keep every bit; "
        "too many in a row: exit 3",
        _either(
            lambda b, t: computing.not_finite(b, ("learning rate 1e20",)),
            lambda b, t: computing.not_finite(b, tuple(computing.VARIANTS)),
        ),
        messages={"not finite": computing.NOT_FINITE, "too many": computing.GAVE_UP},
    ),
    Row(
        17,
        "images that are damaged or odd",
        "stop: exit 2 with the image's name; skip: each is counted, on any number of processes; odd ones are decoded",
        _either(
            lambda b, t: inputs.bad_examples(b, ("truncated JPEG",), hosts=(), odd=False),
            lambda b, t: inputs.bad_examples(b, tuple(data_sets.bad_images()), hosts=(1, 2), odd=True),
        ),
        messages={"unreadable": inputs.UNREADABLE},
    ),
    Row(
        18,
        "labels that are no class",
        "exit 2 before the first step, with the label",
        _one_or_all(inputs.bad_labels, (10, -1, 11)),
        messages={"no class": inputs.NO_CLASS},
    ),
    Row(
        19,
        "a data worker is killed",
        "exit 73 within 5 s of the last step that could be made; started again the run ends exact",
        _either(lambda b, t: [], lambda b, t: inputs.dead_workers(b, 2)),
        messages={"worker": inputs.WORKER},
    ),
    Row(
        20,
        "missing data",
        "exit 2 before the first step",
        _one_or_all(inputs.missing, inputs.MISSING_DATA),
        messages={"data set": inputs.MISSING, "file": inputs.MISSING_FILE},
    ),
    Row(
        21,
        "processes that disagree",
        "both exit with 2 before step 1 and name the field and both values",
        _either(
            lambda b, t: peers.disagreeing(b, t, ("seed",)),
            lambda b, t: peers.disagreeing(b, t, ("seed", "optimizer", "data set", "source code")),
        ),
        _either(lambda b, t: [], lambda b, t: peers.disagreeing(b, t, ("seed", "optimizer"))),
        messages={"disagree": peers.DISAGREE},
    ),
    Row(
        22,
        "a bit of one device's parameters flips",
        "found before the next checkpoint, exit 72, nothing of it is saved; started again the run ends exact",
        _one_or_all(computing.flipped_replicas, (Shape(2), Shape(1, 4))),
        messages={"astray": computing.ASTRAY},
    ),
    Row(
        23,
        "clock jumps, full /tmp, no home, no UTF-8",
        "the run ends exact; a name that is no text in the locale is refused with what helps, and nothing is made",
        _one_or_all(disks.surroundings, disks.SURROUNDINGS),
        messages={"no text": disks.NO_TEXT},
    ),
    Row(
        24,
        "a marathon: killed again and again",
        EXACT,
        _either(lambda b, t: kills.marathon(b, t, 3, steps=40), lambda b, t: kills.marathon(b, t, 30, steps=240)),
    ),
    Row(
        25,
        "hostile checkpoints",
        "set aside as damaged; nothing outside the folder is read, written or run",
        _alike(lambda b, t: hostile.hostile_checkpoints(b, tuple(hostile.CHECKPOINTS))),
        messages={"set aside": stored.SET_ASIDE},
    ),
    Row(
        26,
        "hostile archives, configs and weights",
        "exit 2; nothing is run, or written elsewhere",
        _one_or_all(hostile.hostile_files, hostile.FILES),
        messages={"refused": hostile.REFUSED},
    ),
)

# What the matrix has and the library does not, or what these trials leave out.
NOT_COVERED = {
    13: "train.determinism=topology (tier C), which changes no run that is stopped: see tests/test_topology.py",
    15: "changed pixels or labels of a streamed set in files of equal names and sizes: only resident ones are hashed",
    16: "the names of the images in such a batch: not there",
    17: "how many damaged images are too many: there is no limit",
    18: "labels that are no integers, or of another shape: TFDS refuses to store them",
    20: "checksums of a data set's files before a run: names, sizes and counts are compared",
    22: "what changes on all devices alike, and accelerators: only CPU devices were tried",
    23: "the clock of the whole machine: only the process's own view of it jumps",
    25: "checkpoints whose list of files is forged as a whole: it has hashes, no signature",
}

TRAINEES: Mapping[str, Trainee] = {"library": Library(), "plain": Plain()}
