"""Makes the tables and figures of the study from its stored records and nothing else.

python experiments/cifar10/tables.py                    # --scale=small: of the small runs
"""

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from difference import compare
from figures import TEST, TRAIN, Net, Panel, draw_errors
from runs import HERE, SCALES, Run, Scale, Yardstick, images_in

from resnet_jax.analysis.curves import Curves, error_curves
from resnet_jax.analysis.responses import plot_responses
from resnet_jax.atomic_files import write_text_atomically
from resnet_jax.config import flatten
from resnet_jax.config_files import from_json
from resnet_jax.config_keys import KEYS
from resnet_jax.records import read_record

# Table 6, and the text of section 4.2 for plain-110; 110 layers: the best of five runs, their mean and deviation.
PAPER = {
    "ResNet-20": "8.75",
    "ResNet-32": "7.51",
    "ResNet-44": "7.17",
    "ResNet-56": "6.97",
    "ResNet-110": "6.43 (6.61 ± 0.16)",
    "ResNet-1202": "7.93",
    "plain-110": "> 60",
}
PAPER_STEPS = 64_000
# What tells nets of one name apart.
WORDS = {
    "model.width": "width {:g}",
    "model.dropout_rate": "dropout {:g}",
    "optimizer.weight_decay": "weight decay {:g}",
    "data.cutout": "cutout {}",
    "data.mixup": "mixup {:g}",
    "data.policy": "{}",
}
DATA = {
    "JPEG": "**The data are JPEG copies of CIFAR-10's images**, which raises every error: compare the nets here with "
    "each other, and not with the paper's, which had the original pixels.",
    "PNG": "The data are CIFAR-10's images, stored without loss.",
}


class Stored(NamedTuple):
    """What is stored of a run: record, error curves, and what `study.measure` gave."""

    record: dict[str, Any]
    curves: Curves
    measured: dict[str, Any]


Group = list[Stored]
Groups = dict[str, Group]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--experiment", type=Path, default=HERE, help="whose records are read (%(default)s)")
    flags = parser.parse_args(argv)
    print(make(flags.scale, flags.experiment))


def make(name: str, experiment: Path) -> str:
    """Makes the figures of a scale; its tables replace what stands between their marks in README.md, and are returned.

    Raises:
      FileNotFoundError: there is no record, or not all files of a run.
      ValueError: a record is none of the scale's runs, or of other data.
    """
    scale = SCALES[name]
    groups = stored_runs(scale, experiment / scale.folder / "records")
    drawn = draw(scale, groups, experiment / scale.folder)
    links = [f"![{words}]({(scale.folder / file).as_posix()})" for file, words in drawn]
    beside = beside_pytorch(groups, stored_yardsticks(scale, experiment / scale.folder / "records"))
    text = "\n\n".join([DATA[stored_as(groups)], *tables(scale, groups), *beside, *links])
    write_between_marks(experiment / "README.md", name, text)
    return text


def stored_runs(scale: Scale, folder: Path) -> Groups:
    """All that is stored, by group in the order of the list; raises as `make`."""
    known = {f"{run.name}{ending}" for run in scale.runs for ending in (".json", ".responses.json")}
    if strange := sorted(path.name for path in folder.glob("*.json") if path.name not in known):
        raise ValueError(f"{folder}: {', '.join(strange)} belongs to none of the runs in runs.py")
    groups: Groups = {}
    for run in scale.runs:
        path = folder / f"{run.name}.json"
        if path.is_file():
            groups.setdefault(run.group, []).append(read_stored(path, run))
    if not groups:
        raise FileNotFoundError(f"{folder} holds no record of a run in runs.py")
    data = {json.dumps(stored.measured["data"]) for group in groups.values() for stored in group}
    if len(data) > 1:
        raise ValueError(f"{folder}: the runs are of different files of the data set: {'; '.join(sorted(data))}")
    return groups


def read_stored(path: Path, run: Run) -> Stored:
    """Checks that a record is what its name says; ValueError if not."""
    record = read_record(path)
    check_config(path, record, run)
    data = record["config"]["data"]
    splits = {"train": record["config"]["evaluate"]["train_split"] or data["train_split"], "test": data["test_split"]}
    for split, which in splits.items():
        if record[split]["count"] != (expected := images_in(which)):
            raise ValueError(f"{path}: its {split} error is over {record[split]['count']} images, not {expected}")
    measured = json.loads(path.with_suffix(".responses.json").read_text(encoding="utf-8"))
    return Stored(record, error_curves(path.with_suffix(".metrics.jsonl")), measured)


def check_config(path: Path, record: Mapping[str, Any], run: Run | Yardstick) -> None:
    """Raises ValueError if a record is of another run."""
    if keys := run.differing(record):
        raise ValueError(f"{path} is of another config than the run {run.name} in runs.py: {', '.join(keys)} differ")


def stored_yardsticks(scale: Scale, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """PyTorch's records, by the group that they are compared with; raises as `make`."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in scale.yardsticks:
        path = folder / run.record
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            check_config(path, record, run)
            found.setdefault(run.group, []).append(record)
    return found


def stored_as(groups: Groups) -> str:
    return next(iter(groups.values()))[0].measured["data"]["stored_as"]


def data_in_short(groups: Groups) -> str:
    return "JPEG copies of CIFAR-10" if stored_as(groups) == "JPEG" else "CIFAR-10"


def label(record: Mapping[str, Any]) -> str:
    """A net in words, with what differs from the paper's: "ResNet-20, width 8"."""
    family, depth = re.fullmatch(r"cifar_(resnet|plain)(\d+)", record["model"]).groups()
    words = [f"{'ResNet' if family == 'resnet' else 'plain'}-{depth}"]
    config = flatten(from_json(json.dumps(record["config"])))
    words += [word.format(config[key]) for key, word in WORDS.items() if config[key] != KEYS[key].default]
    return ", ".join(words)


# Tables. A column is its head and what it says of the stored runs of a net.


def percent(fractions: Sequence[float]) -> str:
    """Mean and, of several, sample standard deviation, in %."""
    values = 100 * np.asarray(fractions)
    return f"{values.mean():.2f}" + (f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else "")


def errors(group: Group, split: str) -> list[float]:
    return [stored.record[split]["error" if split == "train" else "error_top1"] for stored in group]


def published(record: Mapping[str, Any]) -> str:
    """The paper's error of the net, for a run as long as its own."""
    return PAPER.get(label(record), "–") if record["steps"] == PAPER_STEPS else "–"


COLUMNS: dict[str, Callable[[Group], str]] = {
    "net": lambda group: label(group[0].record),
    "parameters": lambda group: f"{group[0].record['parameters']:,}",
    "seeds": lambda group: str(len(group)),
    "validation error, %": lambda group: percent(errors(group, "validation")),
    "test error, %": lambda group: percent(errors(group, "test")),
    "best seed": lambda group: f"{100 * min(errors(group, 'test')):.2f}",
    "training error, %": lambda group: percent(errors(group, "train")),
    "paper's test error, %": lambda group: published(group[0].record),
}
HELD_OUT, PUBLISHED = "validation error, %", "paper's test error, %"


def tables(scale: Scale, groups: Groups) -> list[str]:
    """Those that have a row: Table 6, the same with a validation split, and the question of overfitting."""
    split = {name: group for name, group in groups.items() if "validation" in group[0].record}
    plain = {name: group for name, group in groups.items() if "_" not in name}
    varied = {name: group for name, group in groups.items() if name not in split and name not in plain}
    compared = {name: plain[name] for name in scale.deep if name in plain} | varied
    found = [
        ("Table 6", sorted(plain.values(), key=by_depth), {HELD_OUT}),
        ("With a part of the training images held out", sorted(split.values(), key=by_depth), {"best seed", PUBLISHED}),
        ("Overfitting", sorted(compared.values(), key=by_size) if varied else [], {HELD_OUT, PUBLISHED}),
    ]
    return [f"**{title}**{caption(rows)}\n\n{table(rows, leave_out)}" for title, rows, leave_out in found if rows]


def by_depth(group: Group) -> tuple[bool, int]:
    model = group[0].record["model"]
    return "plain" in model, int(re.findall(r"\d+", model)[0])


def by_size(group: Group) -> int:
    return group[0].record["parameters"]


def caption(rows: Sequence[Group]) -> str:
    record = rows[0][0].record
    images = images_in(record["config"]["data"]["train_split"])
    return (
        f": errors after the last of {record['steps']:,} steps on {images:,} images, over {record['test']['count']:,} "
        f"test images and, without augmentation, {record['train']['count']:,} training images; mean ± sample standard "
        "deviation over the seeds."
    )


def table(rows: Sequence[Group], leave_out: set[str]) -> str:
    """The rows in Markdown, without some columns and without those that say nothing of any."""
    cells = {head: [say(group) for group in rows] for head, say in COLUMNS.items() if head not in leave_out}
    cells = {head: column for head, column in cells.items() if set(column) != {"–"}}
    lines = [tuple(cells), ("---",) + ("---:",) * (len(cells) - 1), *zip(*cells.values(), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def beside_pytorch(groups: Groups, yardsticks: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """A table of the differences of mean errors, if there are both; ValueError if they trained on other pixels."""
    rows = []
    for name, theirs in yardsticks.items():
        if name not in groups:
            continue
        ours = groups[name]
        pixels = [run.measured["train_pixels"] for run in ours] + [run["config"]["train_pixels"] for run in theirs]
        if len(set(pixels)) > 1:
            raise ValueError(f"the runs of {name} and PyTorch's are of different training images")
        found = compare([stored.record for stored in ours], theirs)
        for split in ("test", "train"):
            sides = [f"{side['mean']:.2f}" + spread(side) for side in (found[split]["ours"], found[split]["theirs"])]
            interval = found[split]["interval"]
            ends = f"{interval[0]:+.2f} to {interval[1]:+.2f}" if interval else "one run has none"
            difference = f"{found[split]['difference']:+.2f}"
            rows.append((label(ours[0].record), f"{found['steps']:,}", split, *sides, difference, ends))
    if not rows:
        return []
    head = ("net", "steps", "split", "this library, %", "PyTorch, %", "difference, points", "95 % interval (Welch)")
    lines = [head, ("---",) + ("---:",) * (len(head) - 1), *rows]
    title = "**Beside PyTorch**: errors after the last step; mean ± sample standard deviation (seeds)."
    return [f"{title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)]


def spread(side: Mapping[str, Any]) -> str:
    return (f" ± {side['std']:.2f}" if side["std"] is not None else "") + f" ({side['n']})"


def write_between_marks(readme: Path, scale: str, text: str) -> None:
    """Replaces what stands between a scale's two marks; a file without them stays as it is."""
    begin, end = f"<!-- {scale} scale: made by tables.py -->", f"<!-- end of {scale} scale -->"
    if not readme.is_file():
        return
    before, found, rest = readme.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if found and closed:
        write_text_atomically(readme, f"{before}{begin}\n\n{text}\n\n{end}{after}")


# Figures


def draw(scale: Scale, groups: Groups, folder: Path) -> list[tuple[str, str]]:
    """Draws what there are records for; returns the files' names, with words for each."""
    drawn = []
    note = f"{data_in_short(groups)}; means over the seeds, and the range about them"
    depths = sorted({int(re.findall(r"\d+", name)[0]) for name in (*scale.plain, *scale.residual, *scale.deep)})
    if shown := nets(groups, (*scale.plain[:1], *scale.plain[-1:])):
        panels = [
            Panel("", f"{word} error (%)", (kind,), shown) for word, kind in (("training", TRAIN), ("test", TEST))
        ]
        draw_errors(panels, depths, note, folder / "figure1.png")
        drawn.append(("figure1.png", "Figure 1: training and test error of a shallower and a deeper plain net"))
    parts = [("plain nets", scale.plain), ("residual nets", scale.residual), ("the two deepest", scale.deep)]
    panels = [Panel(title, "error (%)", (TRAIN, TEST), nets(groups, names)) for title, names in parts if names]
    if any(panel.nets for panel in panels):
        draw_errors(panels, depths, note, folder / "figure6.png")
        drawn.append(("figure6.png", "Figure 6: training and test error of plain and residual nets"))
    series = {label(groups[name][0].record): responses(groups[name]) for name in scale.responses if name in groups}
    if series:
        plot_responses(series, folder / "figure7.png")
        drawn.append(("figure7.png", "Figure 7: standard deviations of layer responses, in order and sorted"))
    return drawn


def nets(groups: Groups, names: Sequence[str]) -> list[Net]:
    """Curves of the groups that there are."""
    found = [groups[name] for name in names if name in groups]
    return [Net(by_depth(group)[1], [stored.curves for stored in group]) for group in found]


def responses(group: Group) -> list[float]:
    """Of each layer, the mean over the seeds of its responses' standard deviation."""
    return np.mean([list(stored.measured["responses"].values()) for stored in group], axis=0).tolist()


if __name__ == "__main__":
    main()
