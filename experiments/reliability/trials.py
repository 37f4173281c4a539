"""What became of one fault, and the sums over many."""

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

NOTES_KEPT = 8


class Message(NamedTuple):
    """Patterns that what a process writes at a fault must match: what happened, and what to do."""

    cause: str
    remedy: str

    def named_in(self, text: str) -> bool:
        return all(re.search(pattern, text, re.DOTALL) for pattern in self)


@dataclass
class Trial:
    """What became of one fault.

    Attributes:
      variant: which one.
      silently_wrong: a state that is not the right one was used or saved as if it were, and nothing said so.
      as_promised: everything that the row promises came true.
      exact: whether the run, started again, ended like one that nothing befell, bit for bit; None: no run to compare.
      steps_lost: done before the fault, and once more after it.
      detect_seconds: from the fault to the end of the process or to its message.
      resume_seconds: from the start of the same command to its first step.
      named: whether what was written names cause and remedy; None: nothing had to be written.
      codes: exit codes of the processes that the fault was to end.
      note: what is worth to know of it, above all where a promise was broken.
    """

    variant: str
    silently_wrong: bool = False
    as_promised: bool = True
    exact: bool | None = None
    steps_lost: int | None = None
    detect_seconds: float | None = None
    resume_seconds: float | None = None
    named: bool | None = None
    codes: Sequence[int | str] = field(default_factory=list)
    note: str = ""


def summary(trials: Sequence[Trial]) -> dict[str, Any]:
    """The sums of a row's trials, as in the record."""
    wrong = sum(trial.silently_wrong for trial in trials)
    exact = [trial.exact for trial in trials if trial.exact is not None]
    named = [trial.named for trial in trials if trial.named is not None]
    broken = [f"{trial.variant}: {trial.note}" for trial in trials if not trial.as_promised or trial.silently_wrong]
    return {
        "trials": len(trials),
        "variants": dict(Counter(trial.variant for trial in trials)),
        "silently_wrong": wrong,
        # The rule of three: none in n trials bounds the rate with 95 % confidence.
        "silently_wrong_below": 3 / len(trials) if trials and not wrong else None,
        "as_promised": sum(trial.as_promised for trial in trials),
        "exact": {"of": len(exact), "count": sum(exact)},
        "named": {"of": len(named), "count": sum(named)},
        "steps_lost": middle_and_most([trial.steps_lost for trial in trials]),
        "detect_seconds": middle_and_most([trial.detect_seconds for trial in trials]),
        "resume_seconds": middle_and_most([trial.resume_seconds for trial in trials]),
        "exit_codes": dict(Counter(str(code) for trial in trials for code in trial.codes)),
        "broken": broken[:NOTES_KEPT],
        "notes": sorted({trial.note for trial in trials if trial.note and trial.as_promised})[:NOTES_KEPT],
    }


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:300]


def middle_and_most(values: Sequence[float | int | None]) -> dict[str, float] | None:
    """Median and largest; None if there is no value."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"median": round(statistics.median(known), 2), "max": round(max(known), 2), "of": len(known)}
