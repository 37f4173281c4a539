"""A record of measurements as a table, each rate beside what bounds it."""

from collections.abc import Mapping
from typing import Any

_GIBIBYTE = 2**30


def shares(row: Mapping[str, Any], ceilings: Mapping[str, float | int]) -> dict[str, float | int | None]:
    """How near a row is to what the device can do.

    Args:
      row: of a record.
      ceilings: of the same record.

    Returns:
      "flop_per_second" and "bytes_per_second" as achieved, "of_flop" and "of_bytes", their shares of the ceilings, and
      "bound", the images a second that the lower ceiling allows (the roofline); None where the row does not say enough.
      The arithmetic is the model's: multiply-adds x 2, and x 3 in training, whatever the device really computes.
    """
    rate = row.get("images_per_second")
    found: dict[str, float | int | None] = {}
    for what in ("flop", "bytes"):
        each, ceiling = row.get(f"{what}_per_image"), ceilings[f"{what}_per_second"]
        achieved = rate * each if rate and each else None
        found |= {f"{what}_per_second": achieved, f"of_{what}": achieved and achieved / ceiling}
    return {**found, "bound": bound(row, ceilings)}


def bound(row: Mapping[str, Any], ceilings: Mapping[str, float | int]) -> float | int | None:
    """Images a second that the lower ceiling allows."""
    each = {what: row.get(f"{what}_per_image") for what in ("flop", "bytes")}
    if not all(each.values()):
        return None
    return min(ceilings[f"{what}_per_second"] / count for what, count in each.items() if count)


def table(record: Mapping[str, Any]) -> str:
    """In Markdown, with what it was measured on."""
    ceilings = record["ceilings"]
    rates = ("images/s", "ms a batch", "TFLOP/s", "GB/s", "bound, images/s")
    head = ("subject", "model", "batch", "dtype", *rates, "tracing, s", "compiling, s", "planned, GiB", "peak, GiB")
    lines = [head, ("---", "---", "---:", "---") + ("---:",) * (len(head) - 4)]
    lines += [_line(row, ceilings) for row in record["rows"]]
    devices, cpu, versions = record["devices"], record["cpu"], record["versions"]
    device = f"{cpu['count']} cores of {cpu['model']}"
    if devices["platform"] != "cpu":
        device = f"{devices['count']} x {devices['kind']}, {device}"
    return (
        f"{device}; python {versions['python']}, jax {versions['jax']}. One device's ceilings, measured: "
        f"{ceilings['flop_per_second'] / 1e12:,.3g} TFLOP/s, {ceilings['bytes_per_second'] / 1e9:,.3g} GB/s.\n\n"
        + "\n".join(f"| {' | '.join(line)} |" for line in lines)
    )


def _line(row: Mapping[str, Any], ceilings: Mapping[str, float | int]) -> tuple[str, ...]:
    found = shares(row, ceilings)
    batch = str(row["batch"])
    if "batch_size_asked" in row:
        batch += f" (memory does not suffice for {row['batch_size_asked']})"
    spread = row.get("batch_seconds")
    timed = spread and f"{_ms(spread['median'])} ({_ms(spread['min'])} to {_ms(spread['max'])})"
    return (
        *(row["subject"], row["model"], batch, row["dtype"]),
        _number(row.get("images_per_second"), ",.0f"),
        timed or "",
        _of(found["flop_per_second"], 1e12, found["of_flop"]),
        _of(found["bytes_per_second"], 1e9, found["of_bytes"]),
        _number(found["bound"], ",.0f"),
        *(_number(row.get(name), ".1f") for name in ("trace_seconds", "compile_seconds")),
        *(_number(row.get(name), ".2f", _GIBIBYTE) for name in ("planned_bytes", "peak_bytes")),
    )


def _of(value: float | int | None, unit: float | int, share: float | int | None) -> str:
    return "" if value is None or share is None else f"{value / unit:,.3g} ({100 * share:.0f} %)"


def _number(value: float | int | None, form: str, unit: float | int = 1) -> str:
    return "" if value is None else format(value / unit, form)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f}" if seconds < 0.1 else f"{1000 * seconds:,.0f}"
