"""The difference of two sets of runs, this library's and PyTorch's, in mean error, with its uncertainty."""

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t as student

CONFIDENCE = 0.95
# What has to be alike for a difference to be one of frameworks.
_SAME = ("model", "steps")


def welch(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """The difference of the means, ours less theirs, and its interval of 95 % by Welch's t (unequal variances).

    Returns:
      `difference`; `interval`, its ends, or None where a set has one value and so no variance; `degrees` of freedom
      (Welch and Satterthwaite), likewise; of `ours` and `theirs` each `n`, `mean` and `std` (sample; None of one).

    Raises:
      ValueError: a set is empty.
    """
    sets = {"ours": list(ours), "theirs": list(theirs)}
    for name, values in sets.items():
        if not values:
            raise ValueError(f"{name}: no values, so no mean; give at least one")
    found: dict[str, Any] = {
        name: {
            "n": len(values),
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values) if len(values) > 1 else None,
        }
        for name, values in sets.items()
    }
    found |= {"difference": found["ours"]["mean"] - found["theirs"]["mean"], "interval": None, "degrees": None}
    if min(map(len, sets.values())) == 1:
        return found
    parts = [(statistics.variance(values) / len(values), len(values) - 1) for values in sets.values()]
    squared = math.fsum(part for part, _ in parts)
    # Without any scatter the formula is 0 / 0, and the interval a point whatever the degrees.
    degrees = squared**2 / math.fsum(part**2 / n for part, n in parts) if squared else float(sum(n for _, n in parts))
    half = float(student.ppf(0.5 + CONFIDENCE / 2, degrees)) * math.sqrt(squared)
    return found | {"interval": [found["difference"] - half, found["difference"] + half], "degrees": degrees}


def compare(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`welch` of the test and the training errors of two sets of records, in percent.

    Raises:
      ValueError: a set is empty or has a seed twice, or the runs differ in net, steps or counts of images.
    """
    for name, records in (("ours", ours), ("theirs", theirs)):
        seeds = [record["seed"] for record in records]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{name}: seeds {seeds} are not all different, so the runs are not independent")
    runs = [*ours, *theirs]
    alike = {key: {record[key] for record in runs} for key in _SAME}
    alike |= {f"{split}.count": {record[split]["count"] for record in runs} for split in ("train", "test")}
    for key, values in alike.items():
        if len(values) > 1:
            raise ValueError(f"the runs differ in {key}: {', '.join(map(str, sorted(values)))}")

    def errors(split: str, key: str) -> dict[str, Any]:
        return welch(*([100 * record[split][key] for record in records] for records in (ours, theirs)))

    what = {key: runs[0][key] for key in _SAME} if runs else {}
    return what | {"test": errors("test", "error_top1"), "train": errors("train", "error")}


def sentence(split: str, found: Mapping[str, Any]) -> str:
    """In words, in percentage points."""
    means = " and ".join(
        f"{title} {found[name]['mean']:.2f} % (n = {found[name]['n']}"
        + (f", std {found[name]['std']:.2f})" if found[name]["std"] is not None else ")")
        for name, title in (("ours", "ours"), ("theirs", "PyTorch"))
    )
    interval = found["interval"]
    spread = f"95 % interval {interval[0]:+.2f} to {interval[1]:+.2f}" if interval else "no interval: a set is one run"
    return f"{split} error, {means}: difference {found['difference']:+.2f} points, {spread}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    for name in ("ours", "theirs"):
        parser.add_argument(f"--{name}", type=Path, nargs="+", required=True, metavar="RECORD.json")
    parser.add_argument("--json", action="store_true", help="print JSON")
    flags = parser.parse_args(argv)
    found = compare(*([json.loads(path.read_text()) for path in paths] for paths in (flags.ours, flags.theirs)))
    if flags.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{found['model']}, {found['steps']:,} steps")
    for split in ("test", "train"):
        print(sentence(split, found[split]))


if __name__ == "__main__":
    main()
