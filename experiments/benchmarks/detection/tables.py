"""Puts the table of the records beside it into the README, between its marks."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- table: made by tables.py -->\n", "<!-- end of table -->"
HEADER = "| detector | device | images a step | planned, GB | training, s an image | test, s an image | record |"


def table() -> str:
    """A line for each row of each record."""
    lines = [HEADER, "| --- | --- | ---: | ---: | ---: | ---: | --- |"]
    for path in sorted(HERE.glob("*.json")):
        lines += [line(row, path.name) for row in json.loads(path.read_text())["rows"]]
    return "\n".join(lines)


def line(row: Mapping[str, Any], record: str) -> str:
    seconds = [row.get(f"{what}_seconds_an_image") for what in ("train", "test")]
    told = [f"{each:.1f}" if each is not None else "" for each in seconds]
    device = row["device"] if any(told) else f"{row['device']}, planned"
    cells = (row["config"], device, str(row["batch_size"]), f"{row['planned_bytes'] / 1e9:.2f}", *told)
    return f"| {' | '.join(cells)} | [{record}]({record}) |"


def with_table(text: str) -> str:
    """The README's text with the records' table."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    readme = HERE / "README.md"
    readme.write_text(with_table(readme.read_text()))
