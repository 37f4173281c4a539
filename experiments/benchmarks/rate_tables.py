"""Tables of a record, in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any


def machine(record: Mapping[str, Any]) -> str:
    """A line of devices and versions."""
    devices, cpu, versions = record["devices"], record["cpu"], record["versions"]
    device = "" if devices["platform"] == "cpu" else f"{devices['kind']}, "
    named = ", ".join(f"{name} {versions[name]}" for name in ("python", "jax", "torch") if versions[name])
    return f"{device}{cpu['count']} cores of {cpu['model']}; {named}"


def rates(entries: Sequence[Mapping[str, Any]]) -> str:
    """Times and ratios of rows as `worker.compare` gives them; their notes below."""
    head = ("row", "subject", "ms a batch", "images/s", "times as long as", "ratio, 95 % interval", "pairs", "wanted")
    lines = [head, ("---", "---", "---:", "---:", "---", "---:", "---:", "---")]
    notes = []
    for entry in entries:
        ratios: dict[str, list] = {}
        for found in entry["ratios"]:
            ratios.setdefault(found["above"], []).append(found)
        for name, found in entry["rates"].items():
            spread = found["batch_seconds"]
            ms = f"{milliseconds(spread['median'])} ({milliseconds(spread['min'])} to {milliseconds(spread['max'])})"
            cells = (entry["row"], name, ms, f"{found['images_per_second']:,.0f}")
            lines += [(*cells, *ratio(found)) for found in ratios.get(name, [])] or [(*cells, "", "", "", "")]
        notes += [f"{entry['row']}: {note}." for note in entry["notes"]]
    return "\n\n".join([markdown(lines), *notes]) if entries else ""


def ratio(found: Mapping[str, Any]) -> tuple[str, ...]:
    """By what, the ratio with its interval, of how many pairs, and whether it is as wanted."""
    interval = found["interval"]
    ends = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "too few pairs for an interval"
    wanted = ""
    if found["wanted"] is not None:
        wanted = f"at most {found['wanted']}: {'met' if found['median'] <= found['wanted'] else 'not met'}"
    return found["below"], f"{found['median']:.3f} ({ends})", str(found["pairs"]), wanted


def milliseconds(seconds: float) -> str:
    """Three digits or more."""
    return f"{1000 * seconds:,.1f}" if seconds < 0.1 else f"{1000 * seconds:,.0f}"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """The first line is the head, the second its rule."""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
