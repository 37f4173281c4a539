"""Puts the table of levers.json into the README: python experiments/benchmarks/levers.py"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "reliability"))
from marked import publish  # noqa: E402


def table(record: Mapping[str, Any]) -> str:
    """In Markdown, the levers that were kept first."""
    lines = ["| lever | predicted | measured | kept | why, or where |", "| --- | --- | --- | --- | --- |"]
    for lever in sorted(record["levers"], key=lambda lever: not lever["kept"]):
        nets: dict[str, list[str]] = {figure["net"]: [] for figure in lever["measured"]}
        for figure in lever["measured"]:
            nets[figure["net"]].append(_figure(figure))
        measured = "; ".join(f"{net}: {', '.join(figures)}" for net, figures in nets.items())
        kept = "yes" if lever["kept"] else "no"
        lines.append(f"| {lever['lever']} | {lever['prediction'] or '-'} | {measured} | {kept} | {lever['reason']} |")
    return "\n".join([f"For {record['target']}, by jax {record['jax']}.", "", *lines])


def _figure(figure: Mapping[str, Any]) -> str:
    decimals = {"kernels": 0, "MB an image": 2, "planned, GiB": 2}[figure["unit"]]
    before, after = (f"{figure[when]:,.{decimals}f}" for when in ("before", "after"))
    unit = figure["unit"].replace("planned, GiB", "GiB planned")
    return f"{before} to {after} {unit}"


if __name__ == "__main__":
    publish(HERE / "README.md", "levers.py", table(json.loads((HERE / "levers.json").read_text(encoding="utf-8"))))
