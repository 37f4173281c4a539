"""An experiment's table and figure, made from its stored records and nothing else."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.analysis import costs, differences
from resnet_jax.analysis.curves import Curves, error_curves, mean_curves, plot_panels
from resnet_jax.analysis.diagnostics_plot import plot_diagnostics
from resnet_jax.records import read_record
from resnet_jax.workdir import Workdir

# What a table shows, and where a record has it.
_NETS = {"training error, %": ("train", "error"), "test error, %": ("test", "error_top1")}
_DETECTORS = {"AP at 0.5, %": ("test", "ap_50")}
_LOCALIZERS = {"localization error, true class, %": ("test", "error_localization")}
_BEGIN, _END = "<!-- table: made by resnet-jax report -->", "<!-- end of table -->"


def report(experiment: str | os.PathLike, *, add: Sequence[str | os.PathLike] = ()) -> str:
    """Makes the table and the figure of an experiment.

    Runs whose configs differ in nothing but the seed, and the runs that they go on from, are one line: mean and sample
    standard deviation over the seeds. Nets for classification have a column for every other key in which they differ,
    and what they cost, where the folder has a `costs.json`.

    Args:
      experiment: a folder with `records/NAME.json` and, for the figure, `records/NAME.metrics.jsonl` of the same runs.
      add: workdirs of finished runs to take into the records first, each under its folder's name.

    Returns:
      The table in Markdown. It also replaces what stands between the two table marks of the folder's README.md, if it
      has them, and `curves.png` in the folder shows training (dashed) and test error, a panel for each family of nets;
      `diagnostics.png` shows the diagnoses, if the metrics have any.

    Raises:
      FileNotFoundError: the folder holds no record.
      ValueError: a file in it is no record.
    """
    folder = Path(experiment)
    for workdir in add:
        Workdir(workdir).publish(folder, Path(workdir).resolve().name)
    paths = sorted((folder / "records").glob("*.json"))
    if not paths:
        raise FileNotFoundError(f"{folder / 'records'} holds no record (*.json)")
    groups = _by_config([(path, read_record(path)) for path in paths])
    table = _table(groups, costs.read_costs(folder))
    _write_into_readme(folder / "README.md", table)
    _plot(groups, folder / "curves.png")
    plot_diagnostics(groups, folder / "diagnostics.png")
    return table


# Keys that name the workdir of another run, and what stands for it.
_RUNS, _A_RUN = ("start_from", "proposals_from"), "a run"
_Runs = list[tuple[Path, dict[str, Any]]]


def _by_config(runs: _Runs) -> list[_Runs]:
    groups: dict[str, _Runs] = defaultdict(list)
    for path, record in runs:
        groups[json.dumps(_without_seed(record["config"]), sort_keys=True)].append((path, record))
    return sorted(groups.values(), key=lambda group: _sort_key(group[0][1]["model"]))


def _without_seed(config: dict[str, Any]) -> dict[str, Any]:
    """The config but for the seed and which runs this one goes on from, which differ from seed to seed."""
    return {
        section: {key: _A_RUN if key in _RUNS and value else value for key, value in values.items()}
        if isinstance(values, dict)
        else values
        for section, values in {**config, "seed": None}.items()
    }


def _sort_key(model: str) -> tuple[str, int]:
    depth = re.search(r"\d+", model)
    return _family(model), int(depth[0]) if depth else 0


def _family(model: str) -> str:
    return re.sub(r"\d.*", "", model)


def _table(groups: list[_Runs], cost_rows: Sequence[dict[str, Any]]) -> str:
    tasks = sorted({_task_of(group[0][1]) for group in groups})
    if len(tasks) > 1:
        raise ValueError(
            f"records of {' and '.join(tasks)} have no table in common; keep them in experiments of their own"
        )
    results, named = _OF_TASK[tasks[0]]
    keys = _shown_keys(groups)
    cost_columns = costs.COLUMNS if cost_rows else ()
    header = (
        *("net", *map(differences.header_of, keys), "parameters", *cost_columns),
        *("steps", "seeds", *results, "test images"),
    )
    rows = [header, ("---",) * (1 + len(keys)) + ("---:",) * (len(header) - 1 - len(keys))]
    for group in groups:
        records = [record for _, record in group]
        first = records[0]
        rows.append(
            (
                named(first),
                *(differences.cell_of(differences.value_of(first["config"], key)) for key in keys),
                f"{first['parameters']:,}",
                *(costs.cells_of(first["config"], cost_rows) if cost_rows else ()),
                f"{first['steps']:,}",
                str(len(records)),
                *(_mean_and_std([record[split][name] for record in records]) for split, name in results.values()),
                f"{first['test']['count']:,}{_set_of(first)}",
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _shown_keys(groups: list[_Runs]) -> list[str]:
    """Of detectors and localizers the first column says what tells them apart."""
    records = [group[0][1] for group in groups]
    if any(_task_of(record) != "classification" for record in records):
        return []
    return differences.differing_keys([record["config"] for record in records])


def _task_of(record: dict[str, Any]) -> str:
    return record["config"].get("task", "classification")


def _net(record: dict[str, Any]) -> str:
    return record["model"]


def _detector(record: dict[str, Any]) -> str:
    """The net and how it was trained."""
    c = record["config"]["detector"]
    if c["start_from"]:
        trained = "from other classes" if c.get("new_classes") else "four steps"
    else:
        trained = "from scratch" if c["weights"] is None else "pretrained"
    return f"{record['model']}, {trained}" + (", context" if c["context"] else "")


def _set_of(record: dict[str, Any]) -> str:
    """Of which sets the test images are, where a config has several kinds to choose from."""
    sets = record["config"].get("data", {}).get("test_sets")
    return "" if sets is None else f" of {sets.replace('.../', '')}"


def _localizer(record: dict[str, Any]) -> str:
    """The net and its part of the work."""
    return f"{record['model']}, {record['config']['localizer']['trains']}"


_OF_TASK = {
    "classification": (_NETS, _net),
    "detection": (_DETECTORS, _detector),
    "localization": (_LOCALIZERS, _localizer),
}


def _mean_and_std(fractions: Sequence[float]) -> str:
    percent = 100 * np.asarray(fractions)
    return f"{percent.mean():.2f}" + (f" ± {percent.std(ddof=1):.2f}" if len(percent) > 1 else "")


def _write_into_readme(readme: Path, table: str) -> None:
    if not readme.is_file():
        return
    before, begin, rest = readme.read_text(encoding="utf-8").partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if begin and end:
        readme.write_text(f"{before}{_BEGIN}\n{table}\n{_END}{after}", encoding="utf-8")


def _plot(groups: list[_Runs], output: Path) -> None:
    panels: dict[str, list[tuple[str, Curves]]] = defaultdict(list)
    keys, named = _shown_keys(groups), _OF_TASK[_task_of(groups[0][0][1])][1]
    several_sets = len({_set_of(group[0][1]) for group in groups}) > 1
    for group in groups:
        metrics = [path.with_suffix(".metrics.jsonl") for path, _ in group]
        curves = [error_curves(path) for path in metrics if path.is_file()]
        if curves:
            record = group[0][1]
            label = ", ".join(filter(None, (named(record), differences.label_of(record["config"], keys))))
            if several_sets:
                label += f"{_set_of(record).replace(' of ', ', ').partition(':')[0]}:"
            panels[_family(record["model"])].append((label, mean_curves(curves)))
    if panels:
        plot_panels(panels, output)
