"""Puts the tables of the records beside it into the README: python experiments/benchmarks/rates/tables.py"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[1] / "reliability"))
from marked import publish  # noqa: E402

from resnet_jax.benchmark.table import table  # noqa: E402


def tables() -> str:
    """Of all records, by their names."""
    paths = sorted(HERE.glob("*.json"))
    return "\n\n".join(f"**{path.stem}**: {table(json.loads(path.read_text(encoding='utf-8')))}" for path in paths)


if __name__ == "__main__":
    publish(HERE / "README.md", "tables.py", tables())
