"""Trains localizers of one drawn shape an image, tests them with and without regions, and stores their records."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from resnet_jax import load_config, train
from resnet_jax.atomic_files import write_text_atomically
from resnet_jax.environment import environment
from resnet_jax.localization.run import evaluate_localizers
from resnet_jax.workdir import Workdir

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "shapes"))
from make_shapes import Kind, make_shapes  # noqa: E402

IMAGES = 1000
SEEDS = range(2)
DENSE = {"evaluate.short_sides": (96, 112, 144)}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "proposals, 1-crop": ("proposals", {}),
    "proposals, dense": ("proposals", DENSE),
    "regions": ("regions", DENSE),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="folder for the images and the runs")
    flags = parser.parse_args()
    folder = flags.workdir / "shapes"
    if not folder.is_dir():
        make_shapes(folder, images=IMAGES, seed=0, kind=Kind(most=1))
    sets = {"data.train_sets": f"{folder.resolve()}:train", "data.test_sets": f"{folder.resolve()}:test"}
    for seed in SEEDS:
        proposals, regions = (flags.workdir / f"{what}_seed{seed}" for what in ("proposals", "regions"))
        train(load_config("localization:small", {**sets, "seed": seed}), proposals)
        given = {**sets, "seed": seed, "localizer.proposals_from": str(proposals.resolve())}
        train(load_config("localization:small_regions", given), regions)
        for run in (proposals, regions):
            Workdir(run).publish(HERE, run.name)
    rows = {name: test(flags.workdir, *how) for name, how in ROWS.items()}
    write_text_atomically(HERE / "tests.json", json.dumps({**environment(), "rows": rows}, indent=2) + "\n")
    write_table(rows)


def test(workdir: Path, what: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Of the runs of all seeds, each alone and as an ensemble."""
    return evaluate_localizers([workdir / f"{what}_seed{seed}" for seed in SEEDS], changes=changes)


def write_table(rows: dict[str, Any]) -> None:
    """Puts the table of the tests into the README, between its marks."""
    columns = ("", *(f"seed {seed}, %" for seed in SEEDS), f"ensemble of {len(SEEDS)}, %", "images")
    lines = [f"| {' | '.join(columns)} |", "| --- |" + " ---: |" * (len(columns) - 1)]
    for name, row in rows.items():
        entries = [*row["members"], row["ensemble"]]
        numbers = " | ".join(f"{100 * entry['error_localization']:.1f}" for entry in entries)
        lines.append(f"| {name} | {numbers} | {row['ensemble']['count']} |")
    begin, end = "<!-- tests: made by sweep.py -->\n", "<!-- end of tests -->"
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition(begin)
    readme.write_text(before + begin + "\n".join(lines) + "\n" + end + rest.partition(end)[2])


if __name__ == "__main__":
    main()
