"""Trains detectors of blood cells, tests them with each of appendix B's improvements, and draws what they find."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resnet_jax import load_config, train
from resnet_jax.atomic_files import write_text_atomically
from resnet_jax.data.decode import decode
from resnet_jax.detection.annotations import truths
from resnet_jax.detection.data import open_union
from resnet_jax.detection.drawing import contact_sheet, draw_boxes
from resnet_jax.detection.pr_curves import plot_precision_recall
from resnet_jax.detection.run import changed, detect_all, evaluate_detectors
from resnet_jax.detection.trained import TrainedDetector
from resnet_jax.detection.voc_ap import precision_recall
from resnet_jax.distributed import data_mesh
from resnet_jax.environment import environment
from resnet_jax.workdir import Workdir

HERE = Path(__file__).parent
CONFIG = "detection:small"
TEST = "bccd:test"
# Platelets are some 20 pixels wide, red cells 50 and white ones 100, when the image, of 480 x 640, is scaled to a half.
OVERRIDES: dict[str, Any] = {
    "data.train_sets": "bccd:train",
    "data.validation_sets": "bccd:validation",
    "data.test_sets": TEST,
    "data.short_side": 240,
    "data.long_side": 320,
    "data.max_boxes": 30,
    "detector.anchor_sizes": (20, 50, 110),
    "detector.new_classes": True,
    "sampling.regions": 64,
    "sampling.min_side": 4.0,
    "train.duration": 600,
    "evaluate.every": 200,
    "checkpoint.every": 200,
}
# With and without the whole image beside each region; several of the former, for the ensemble.
RUNS = {"plain_seed0": (False, 0), **{f"context_seed{seed}": (True, seed) for seed in range(3)}}
REFINED = {"evaluate.refinement": True, "evaluate.voting": 0.5}
SCALES = {"evaluate.short_sides": (192, 240, 288)}
# As Table 9 has them, each with all before it.
IMPROVEMENTS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "baseline": (("plain_seed0",), {}),
    "+ box refinement": (("plain_seed0",), REFINED),
    "+ context": (("context_seed0",), REFINED),
    "+ multi-scale testing": (("context_seed0",), {**REFINED, **SCALES}),
    "ensemble of 3": (("context_seed0", "context_seed1", "context_seed2"), {**REFINED, **SCALES}),
}
SHOWN = (0, 1, 2, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--data_dir", required=True, help="folder of TFDS data sets with bccd")
    parser.add_argument("--start_from", required=True, help="workdir of a detector that experiments/shapes has trained")
    flags = parser.parse_args()
    given = {"data.data_dir": flags.data_dir, "detector.start_from": flags.start_from}
    for name, (context, seed) in RUNS.items():
        config = load_config(CONFIG, {**OVERRIDES, **given, "detector.context": context, "seed": seed})
        train(config, flags.workdir / name)
        Workdir(flags.workdir / name).publish(HERE, name)
    rows = {name: test(flags.workdir, *how) for name, how in IMPROVEMENTS.items()}
    content = {**environment(), "test_sets": TEST, "rows": rows}
    write_text_atomically(HERE / "improvements.json", json.dumps(content, indent=2) + "\n")
    write_table(rows)
    draw(flags.workdir / "context_seed0")


def test(workdir: Path, names: tuple[str, ...], changes: dict[str, Any]) -> dict[str, Any]:
    """What a test of one detector, or of several as an ensemble, gives."""
    result = evaluate_detectors([workdir / name for name in names], changes=changes)
    return result.get("ensemble", result["members"][0])


def write_table(rows: dict[str, Any]) -> None:
    """Puts the table of the improvements into the README, between its marks."""
    classes = list(next(iter(rows.values()))["ap_50_of_classes"])
    columns = ("", "AP at 0.5, %", *classes, "images")
    lines = [f"| {' | '.join(columns)} |", "| --- |" + " ---: |" * (len(columns) - 1)]
    for name, row in rows.items():
        numbers = (row["ap_50"], *(row["ap_50_of_classes"][each] for each in classes))
        lines.append(f"| {name} | {' | '.join(f'{100 * number:.1f}' for number in numbers)} | {row['count']} |")
    begin, end = "<!-- improvements: made by sweep.py -->\n", "<!-- end of improvements -->"
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition(begin)
    readme.write_text(before + begin + "\n".join(lines) + "\n" + end + rest.partition(end)[2])


def draw(workdir: Path) -> None:
    """Precision against recall, and ground truth beside detections, of the refined detector."""
    detector = TrainedDetector.restore(Workdir(workdir), checkpoint="latest", mesh=data_mesh())
    config = changed(detector.config, REFINED)
    source = open_union(TEST, data_dir=config.data.data_dir)
    found, names = detect_all([detector], config, source), source.class_names
    plot_precision_recall(precision_recall(found, truths(source), names), HERE / "precision_recall.png", metric="area")
    pictures = []
    for index in SHOWN:
        example, detected = source[index], found[index]
        image, sure = Image.fromarray(decode(example.image)), detected.scores > 0.5
        truth = draw_boxes(image, example.boxes, labels=example.labels, class_names=names)
        ours = draw_boxes(
            image, detected.boxes[sure], labels=detected.labels[sure], scores=detected.scores[sure], class_names=names
        )
        pictures += [(f"{example.name}: ground truth", truth), (f"{int(np.sum(sure))} detections above 0.5", ours)]
    # Of few colours, and so of half a megabyte.
    contact_sheet(pictures, columns=2).quantize(dither=Image.Dither.NONE).save(HERE / "detections.png", optimize=True)


if __name__ == "__main__":
    main()
