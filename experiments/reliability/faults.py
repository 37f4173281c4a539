"""Tries the faults of the matrix on real runs and writes one record.

    python experiments/reliability/faults.py --scale=full --output=experiments/reliability/records/faults.json

Every run trains a tiny net on the embedded digits, as one process or as two that talk through the loopback, and is
compared with one that nothing befell. Where a plain loop around Orbax has the same fault to stand, it is tried, too.
"""

import argparse
import faulthandler
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The runs are processes of their own; what is compared here is read on a CPU.
os.environ["JAX_PLATFORMS"] = "cpu"

from bench import Bench, OutOfTime  # noqa: E402
from disks import CannotMount  # noqa: E402
from marked import publish  # noqa: E402
from rows import NOT_COVERED, ROWS, TRAINEES, Row  # noqa: E402
from trainees import SMALL  # noqa: E402
from trials import summary  # noqa: E402

from resnet_jax.atomic_files import write_text_atomically  # noqa: E402
from resnet_jax.environment import environment  # noqa: E402

_HEADER = (
    *("#", "fault", "trials", "silently wrong", "as promised", "ends exact", "steps lost", "found after, s"),
    *("goes on after, s", "message", "exit codes"),
)


# For the runs that are at work when the time is over.
_LAST_SECONDS = 1200.0


def try_row(row: Row, scale: str, bench: Bench) -> tuple[dict[str, Any], list[str]]:
    """A row's entry in the record, and why a part of it could not be tried."""
    entry: dict[str, Any] = {"row": row.number, "fault": row.fault, "promise": row.promise}
    entry["messages"] = {name: message._asdict() for name, message in row.messages.items()}
    reasons = []
    for name, tries in (("library", row.library), ("plain", row.plain)):
        begun = time.monotonic()
        try:
            trials = tries[scale](bench, TRAINEES[name]) if tries else []
        except CannotMount as error:
            reasons.append(f"no file system may be mounted here ({error})")
            continue
        except (OutOfTime, RuntimeError) as error:
            # The other rows are worth their time without this one, which a published record must have.
            reasons.append(f"{name}: not tried to the end: {error or type(error).__name__}".partition("\n")[0])
            print(f"row {row.number}, {reasons[-1]}", flush=True)
            continue
        for trial in trials:
            trial.note = trial.note.replace(f"{bench.folder}/", "")
        if trials:
            entry[name] = summary(trials) | {"seconds": round(time.monotonic() - begun, 1)}
            print(f"row {row.number}, {name}: {json.dumps(entry[name])}", flush=True)
    return entry, reasons


def make_record(rows: Sequence[Row], scale: str, seed: int, folder: Path, *, minutes: float) -> dict:
    """Tries the rows in a folder, those that the minutes are enough for, and returns the record."""
    bench = Bench(folder, seed=seed, until=time.monotonic() + 60 * minutes)
    entries, not_covered = [], []
    for row in rows:
        entry, reasons = try_row(row, scale, bench)
        if "library" in entry:
            entries.append(entry)
        reasons += [NOT_COVERED[row.number]] if row.number in NOT_COVERED else []
        not_covered += [{"row": row.number, "reason": reason} for reason in reasons]
    bench.check_source()
    config = {"scale": scale, "seed": seed, "keys": SMALL}
    return {"config": config, **environment(), "rows": entries, "not_covered": not_covered}


def table(record: dict) -> str:
    """In Markdown: this library's rows, and those that the plain loop had to stand, too."""
    parts = [_table(record["rows"], "library")]
    plain = [entry for entry in record["rows"] if "plain" in entry]
    if plain:
        parts += ["The same on a plain loop around Orbax's CheckpointManager:", _table(plain, "plain")]
    wrong = sum(entry["library"]["silently_wrong"] for entry in record["rows"])
    count = sum(entry["library"]["trials"] for entry in record["rows"])
    bound = f", so below {3 / count:.2%} of such faults with 95 % confidence" if not wrong else ""
    parts.append(f"Of {count:,} trials of this library {wrong} ended silently wrong{bound}.")
    return "\n\n".join(parts)


def _table(entries: Sequence[dict], name: str) -> str:
    lines = [f"| {' | '.join(_HEADER)} |", f"| ---: | --- |{' ---: |' * (len(_HEADER) - 3)} --- |"]
    for entry in entries:
        sums = entry[name]
        bound = sums["silently_wrong_below"]
        cells = [
            str(entry["row"]),
            entry["fault"],
            f"{sums['trials']:,}",
            str(sums["silently_wrong"]) + (f" (< {min(bound, 1):.1%})" if bound else ""),
            f"{sums['as_promised']:,}",
            _of(sums["exact"]),
            _middle_and_most(sums["steps_lost"], 0),
            _middle_and_most(sums["detect_seconds"], 2),
            _middle_and_most(sums["resume_seconds"], 1),
            _of(sums["named"]),
            ", ".join(f"{code}: {count}" for code, count in sums["exit_codes"].items()),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _of(count: dict) -> str:
    return f"{count['count']:,} of {count['of']:,}" if count["of"] else ""


def _middle_and_most(numbers: dict | None, digits: int) -> str:
    return f"{numbers['median']:.{digits}f}, {numbers['max']:.{digits}f}" if numbers else ""


def with_rows(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A record with the rows of another in place of its own, or added.

    Raises:
      ValueError: they were not made of the same code on the same machine at the same scale.
    """
    lists = ("rows", "not_covered")
    differing = [name for name in old | new if name not in lists and old.get(name) != new.get(name)]
    if differing:
        raise ValueError(f"the record there has another {', '.join(differing)}; give --output another name")
    anew = {entry["row"] for entry in new["rows"]}
    kept = {name: [entry for entry in old[name] if entry["row"] not in anew] for name in lists}
    return new | {name: sorted(kept[name] + new[name], key=lambda entry: entry["row"]) for name in lists}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", help="numbers of the matrix, such as 1,2,8 (all)")
    parser.add_argument("--scale", choices=("small", "full"), default="small", help="how many trials (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is chosen by chance")
    parser.add_argument("--folder", type=Path, help="for the runs; kept (a temporary one, removed)")
    help = "after which no run is started, and what is left of the rows is left out (%(default)s)"
    parser.add_argument("--minutes", type=float, default=90, help=help)
    help = "the record's file; with --rows, those of one of the same code, scale and seed are made anew, or added"
    parser.add_argument("--output", type=Path, help=help)
    parser.add_argument("--readme", type=Path, help="whose tables are made anew")
    flags = parser.parse_args(argv)
    numbers = {int(word) for word in flags.rows.split(",")} if flags.rows else {row.number for row in ROWS}
    if unknown := numbers - {row.number for row in ROWS}:
        parser.error(f"--rows: no row {', '.join(map(str, sorted(unknown)))}; there are 1 to {ROWS[-1].number}")
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    folder = flags.folder or Path(tempfile.mkdtemp(prefix="faults_"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        rows = [row for row in ROWS if row.number in numbers]
        # What hangs in this process, which reads damaged files, shows where, and ends.
        faulthandler.dump_traceback_later(60 * flags.minutes + _LAST_SECONDS, exit=True)
        record = make_record(rows, flags.scale, flags.seed, folder, minutes=flags.minutes)
        faulthandler.cancel_dump_traceback_later()
    finally:
        if not flags.folder:
            shutil.rmtree(folder, ignore_errors=True)
    tried = len(record["rows"])
    if flags.output:
        if flags.rows and flags.output.is_file():
            record = with_rows(json.loads(flags.output.read_text()), record)
        flags.output.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(flags.output, json.dumps(record, indent=1) + "\n")
    print(table(record))
    if flags.readme:
        publish(flags.readme, "faults.py", table(record))
    wrong = any(entry["library"]["silently_wrong"] for entry in record["rows"])
    return int(wrong or tried < len(numbers))


if __name__ == "__main__":
    raise SystemExit(main())
