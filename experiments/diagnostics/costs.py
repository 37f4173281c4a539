"""What the diagnoses of the stored runs cost, as a table in the README."""

import re
from pathlib import Path

import numpy as np

from resnet_jax.records import read_metrics, read_record

HERE = Path(__file__).parent
BEGIN, END = "<!-- costs: made by costs.py -->", "<!-- end of costs -->"
HEADER = (
    "| net | diagnoses of a seed | first, s | each later, s | of it curvature, s | later ones / training steps, % |",
    "| --- | ---: | ---: | ---: | ---: | ---: |",
)


def write_costs(folder: Path) -> None:
    """Prints the table, and puts it between the two marks of the folder's README.md, if it has one."""
    rows = [_row(path) for path in sorted((folder / "records").glob("*_seed0.json"), key=_by_net)]
    print("\n".join([*HEADER, *rows]))
    readme = folder / "README.md"
    if not readme.is_file():
        return
    before, _, rest = readme.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    readme.write_text(f"{before}{BEGIN}\n" + "\n".join([*HEADER, *rows]) + f"\n{END}{after}")


def _row(path: Path) -> str:
    """Of the first seed, whose first diagnosis holds the compilation for all."""
    record, found = read_record(path), read_metrics(path.with_suffix(".metrics.jsonl"))
    seconds = found["diagnostics/seconds"][1]
    curvature = found["diagnostics/curvature_seconds"][1]
    seeds = record.get("seeds_together", 1)
    # Images per second are those of one seed, of all that train together.
    training = record["steps"] * record["config"]["train"]["batch_size"] / record["images_per_second"]
    share = seeds * seconds[1:].sum() / training
    numbers = f"{seconds[0]:.1f} | {np.mean(seconds[1:]):.2f} | {np.mean(curvature[1:]):.2f} | {100 * share:.0f}"
    return f"| {record['model']} | {len(seconds)} | {numbers} |"


def _by_net(path: Path) -> tuple[str, int]:
    match = re.match(r"([a-z]+)(\d+)", path.stem)
    return (match[1], int(match[2])) if match else (path.stem, 0)


if __name__ == "__main__":
    write_costs(HERE)
