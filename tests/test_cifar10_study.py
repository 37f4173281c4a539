"""The CIFAR-10 study: its runs are the paper's, it goes on wherever it was stopped, its tables are the records'."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from experiment_modules import experiment_modules
from test_records import a_record

from resnet_jax import load_config, summarize
from resnet_jax.config import differing_keys, resolve, without_places
from resnet_jax.exit_codes import DIVERGED, DONE, PREEMPTED
from resnet_jax.records import read_record, read_rows, write_record

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "cifar10"
SEEDS = {"resnet": 5, "plain": 3}
# What may differ from configs/cifar10.py: how much is written and kept.
KEEPING = {"seed", "train.log_every", "checkpoint.every", "checkpoint.keep_best", "steps.checkpoint_every"}


@pytest.fixture(scope="module")
def modules():
    """Imports the experiment's modules by name."""
    with experiment_modules(FOLDER) as imported:
        yield imported


@pytest.fixture(scope="module")
def runs(modules):
    return modules("runs")


@pytest.fixture
def study(modules):
    before = signal.getsignal(signal.SIGTERM)
    yield modules("study")
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def tables(modules):
    return modules("tables")


# The lists


def resolved(runs, config):
    return resolve(config, train_examples=runs.images_in(config.data.train_split), device_count=1)


@pytest.mark.parametrize("ending, split", [("", set()), ("_45k", {"data.train_split", "data.validation_split"})])
def test_the_full_list_has_the_papers_nets_with_the_papers_recipe(runs, ending, split):
    full = runs.SCALES["full"].runs
    groups = Counter(run.group for run in full)
    nets = [f"{family}{depth}" for family in SEEDS for depth in (20, 32, 44, 56, 110)]
    assert {net: groups[net + ending] for net in nets} == {net: SEEDS[re.sub(r"\d", "", net)] for net in nets}
    assert groups["resnet1202"] == 5 and groups["resnet1202_45k"] == 1
    for run in full:
        if run.group not in [net + ending for net in (*nets, "resnet1202")]:
            continue
        config, given = resolved(runs, run.config()), load_config(f"cifar10:{run.group.removesuffix(ending)}")
        paper = resolve(given, train_examples=config.steps.train_examples, device_count=1)
        assert set(differing_keys(config, paper)) <= KEEPING | split, run
        assert (config.steps.total, config.steps.boundaries, config.train.batch_size) == (64_000, (32_000, 48_000), 128)
        assert (config.optimizer.weight_decay, config.schedule.learning_rate, config.model.bn_group_size) == (
            1e-4,
            0.1,
            64,
        )
        deep = run.group.removesuffix(ending) in ("resnet110", "plain110", "resnet1202")
        assert config.schedule.warmup == ("until_error" if deep else "none")
        assert runs.images_in(config.data.train_split) == (45_000 if ending else 50_000)
        assert bool(config.data.validation_split) == bool(ending)


@pytest.mark.parametrize("scale", ["full", "small", "short"])
def test_every_config_is_possible_and_the_seeds_of_a_net_follow_each_other(runs, scale):
    scale = runs.SCALES[scale]
    assert len({run.name for run in scale.runs}) == len(scale.runs)
    shown = {*scale.plain, *scale.residual, *scale.deep, *scale.responses}
    assert shown <= {run.group for run in scale.runs}
    for run in scale.runs:
        config = resolved(runs, run.config())
        assert config.seed == run.seed and run.name == f"{run.group}_seed{run.seed}"
    for group in {run.group for run in scale.runs}:
        assert [run.seed for run in scale.runs if run.group == group] == list(
            range(sum(run.group == group for run in scale.runs))
        )


def test_the_most_informative_runs_come_first(runs):
    groups = list(dict.fromkeys(run.group for run in runs.SCALES["full"].runs))
    assert groups[:5] == ["resnet20", "resnet110", "plain20", "plain56", "resnet56"]
    assert groups.index("plain110") < groups.index("resnet20_45k") < groups.index("resnet1202")
    assert groups.index("resnet1202") < groups.index("resnet110_dropout0.5")


@pytest.mark.parametrize(
    "scale, wide, deep",
    [
        ("full", "resnet20_width41", "resnet110"),
        ("full", "resnet110_width54", "resnet1202"),
        ("full", "resnet20_width136", "resnet1202"),
        ("small", "resnet8_width20", "resnet32"),
    ],
)
def test_width_is_traded_for_depth_at_equal_parameters(runs, scale, wide, deep):
    by_group = {run.group: run.config().model for run in runs.SCALES[scale].runs}
    wide, deep = (summarize(by_group[group].name, width=by_group[group].width).parameters for group in (wide, deep))
    assert abs(wide / deep - 1) < 0.02


def test_the_small_list_has_every_kind_of_run(runs):
    small, full = ([run.config() for run in runs.SCALES[scale].runs] for scale in ("small", "full"))

    def kinds(configs):
        return {
            (
                "plain" in config.model.name,
                config.schedule.warmup,
                config.model.scan,
                bool(config.data.validation_split),
                config.model.dropout_rate,
                config.optimizer.weight_decay,
                config.data.cutout,
                config.data.mixup,
                config.data.policy,
            )
            for config in configs
        }

    assert kinds(small) <= kinds(full)
    assert {kind[:3] for kind in kinds(small)} == {kind[:3] for kind in kinds(full)}
    for position in range(9):
        assert {kind[position] for kind in kinds(small)} == {kind[position] for kind in kinds(full)}
    for config in small:
        total = config.train.duration
        assert config.schedule.boundaries == (total / 2, total * 3 / 4)


# What is stored of a run, made up


def store(runs, folder, run, *, train=0.01, test=0.08, config=(), measured=(), counts=None):
    """Writes the three files of a run that ended with these errors."""
    given = resolved(runs, run.config())
    depth, data = int(re.findall(r"\d+", given.model.name)[0]), given.data
    counts = counts or [
        runs.images_in(split) for split in (given.evaluate.train_split or data.train_split, data.test_split)
    ]
    of_train = {"loss": 0.1, "error": train, "count": counts[0]}
    of_test = {"error_top1": test, "error_top5": 0.01, "count": counts[1], "protocol": "center"}
    record = {
        **a_record(),
        "config": without_places(given) | dict(config),
        "model": given.model.name,
        "seed": run.seed,
        "steps": given.steps.total,
        "parameters": 1000 * depth,
        "train": of_train,
        "test": of_test,
        **({"validation": of_test | {"error_top1": test + 0.001}} if data.validation_split else {}),
    }
    write_record(folder / f"{run.name}.json", record)
    half = given.steps.total // 2
    lines = [
        {"step": step, "train/error_top1": error + train, "test/error_top1": error + test}
        for step, error in ((half, 0.1), (2 * half, 0.0))
    ]
    (folder / f"{run.name}.metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    responses = {f"layer{index}": 1 / (index + 1) for index in range(depth - 1)}
    found = {
        "data": {"files": "abc", "stored_as": "JPEG"},
        "split": "test[:10]",
        "responses": responses,
        "train_pixels": "0123",
        **dict(measured),
    }
    (folder / f"{run.name}.responses.json").write_text(json.dumps(found))


def store_yardstick(folder, run, *, train=0.02, test=0.09, config=()):
    """Writes the record of a run of PyTorch's."""
    path = folder / run.record
    path.parent.mkdir(exist_ok=True)
    record = {
        "config": run.config() | {"train_pixels": "0123"} | dict(config),
        **{"model": run.net, "seed": run.seed, "steps": run.steps},
        "commit": {"hash": "0" * 40, "dirty": False},
        "train": {"error": train, "count": 50_000},
        "test": {"error_top1": test, "count": 10_000},
    }
    path.write_text(json.dumps(record))


def named(runs, name, scale="full"):
    return next(run for run in runs.in_order(runs.SCALES[scale]) if run.name == name)


# What is done


class OneCall:
    """Stands for a call's time and processes: notes the jobs that would be run, stores their records."""

    codes: dict[str, int] = {}

    def __init__(self, runs, calls=99):
        self.runs, self.left, self.jobs, self.signalled = runs, calls, [], False

    def __call__(self, minutes):
        self.minutes = minutes
        return self

    def over(self):
        return len(self.jobs) >= self.left

    def run(self, function, job, workdir, records, data_dir, responses_on):
        self.jobs.append([run.name for run in job])
        code = self.codes.get(job[0].name, DONE)
        for run in job if code == DONE else ():
            (store_yardstick if isinstance(run, self.runs.Yardstick) else partial(store, self.runs))(records, run)
        return code


def call(study, runs, monkeypatch, folder, *flags, **options):
    slot = OneCall(runs, **options)
    monkeypatch.setattr(study, "Slot", slot)
    code = study.main([f"--workdir={folder}/runs", f"--experiment={folder}", *flags])
    return code, slot.jobs


def test_runs_with_a_record_are_passed_over_and_the_others_made_in_order(study, runs, tmp_path, monkeypatch, capsys):
    records = tmp_path / "records"
    records.mkdir()
    store(runs, records, named(runs, "resnet20_seed1"))
    code, jobs = call(study, runs, monkeypatch, tmp_path, "--only=resnet20_seed*", calls=2)
    assert code == DONE and jobs == [["resnet20_seed0"], ["resnet20_seed2"]]
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "study: 3 of 5 runs are done",
        "study: left are resnet20_seed3, resnet20_seed4",
    ]
    assert call(study, runs, monkeypatch, tmp_path, "--only=resnet20_seed*")[1] == [
        ["resnet20_seed3"],
        ["resnet20_seed4"],
    ]
    assert call(study, runs, monkeypatch, tmp_path, "--only=resnet20_seed*")[1] == []


@pytest.mark.parametrize("section, key, value", [("optimizer", "weight_decay", 2e-4), ("data", "name", "cifar100")])
def test_a_record_of_another_config_is_not_taken_for_the_run(study, runs, tmp_path, section, key, value):
    run = named(runs, "resnet20_seed1")
    store(runs, tmp_path, run)
    assert study.is_done(run, tmp_path)
    config = read_record(tmp_path / f"{run.name}.json")["config"]
    store(runs, tmp_path, run, config={section: config[section] | {key: value}})
    assert not study.is_done(run, tmp_path)
    assert not study.is_done(named(runs, "resnet20_seed2"), tmp_path)


def test_a_record_from_before_a_key_came_is_of_the_run_that_has_its_default(study, runs, tmp_path):
    run = named(runs, "resnet20_seed1")
    store(runs, tmp_path, run)
    record = read_record(tmp_path / f"{run.name}.json")
    del record["config"]["train"]["loss"], record["config"]["num_seeds"]
    assert run.differing(record) == []
    del record["config"]["data"]["flip"], record["config"]["model"]["bn_group_size"]
    assert run.differing(record) == ["model.bn_group_size"]


def test_the_seeds_of_a_net_can_be_one_job(study, runs, tmp_path, monkeypatch):
    (tmp_path / "records").mkdir()
    _, jobs = call(study, runs, monkeypatch, tmp_path, "--together", "--scale=small", calls=1)
    assert jobs == [["resnet8_seed0", "resnet8_seed1"]]
    job = tuple(named(runs, name, "small") for name in jobs[0])
    assert {"--config.seed=0", "--config.num_seeds=2"} <= set(study.command(job, tmp_path, None))


def test_a_net_that_diverges_does_not_hold_up_the_others_but_any_other_failure_does(study, runs, tmp_path, monkeypatch):
    (tmp_path / "records").mkdir()
    monkeypatch.setattr(OneCall, "codes", {"resnet20_seed1": DIVERGED, "resnet20_seed3": 2})
    code, jobs = call(study, runs, monkeypatch, tmp_path, "--only=resnet20_seed[0-2]")
    assert code == DIVERGED and len(jobs) == 3
    code, jobs = call(study, runs, monkeypatch, tmp_path, "--only=resnet20_seed[0-4]")
    assert code == 2 and [job[0] for job in jobs] == ["resnet20_seed1", "resnet20_seed3"]


def test_the_command_of_a_run_gives_its_config(study, runs, tmp_path):
    from resnet_jax.cli import _split_overrides

    for scale in runs.SCALES.values():
        for run in scale.runs:
            overrides, rest = _split_overrides(study.command((run,), tmp_path, None))
            assert differing_keys(load_config(rest[1].removeprefix("--config="), overrides), run.config()) == []


# Beside PyTorch


@pytest.mark.parametrize("scale", ["full", "short"])
def test_a_yardstick_has_the_net_the_steps_and_the_seeds_of_its_group(runs, scale):
    scale = runs.SCALES[scale]
    assert {own.group for own in scale.yardsticks} == {"resnet20", "resnet56"}
    for group in ("resnet20", "resnet56"):
        theirs = [own for own in scale.yardsticks if own.group == group]
        ours = [run for run in scale.runs if run.group == group]
        assert [own.seed for own in theirs] == [run.seed for run in ours] == list(range(5))
        config = resolved(runs, ours[0].config())
        assert {(own.net, own.steps) for own in theirs} == {(config.model.name, config.steps.total)}
        # What `pytorch_reference.py` does at a half and three quarters of the steps.
        assert config.steps.boundaries == (config.steps.total // 2, config.steps.total * 3 // 4)
        assert (config.data.train_split, config.data.test_split, config.train.batch_size) == ("train", "test", 128)


def test_yardsticks_are_made_after_the_runs_that_they_are_compared_with(runs):
    names = [run.name for run in runs.in_order(runs.SCALES["full"])]
    assert len(names) == len(set(names)) == len(runs.SCALES["full"].runs) + 10
    place = names.index("resnet20_seed4")
    assert names[place + 1 : place + 7] == [f"pytorch_resnet20_seed{seed}" for seed in range(5)] + ["resnet110_seed0"]


def test_the_study_makes_them_where_pytorch_is(study, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study.importlib.util, "find_spec", lambda name: object())
    (tmp_path / "records").mkdir()
    wanted = ["resnet20_seed0", "resnet20_seed1", "pytorch_resnet20_seed0", "pytorch_resnet20_seed1"]
    store_yardstick(tmp_path / "records", named(runs, wanted[2]), config={"steps": 7})
    code, jobs = call(study, runs, monkeypatch, tmp_path, "--only=*resnet20_seed[01]", "--together")
    assert code == DONE and jobs == [wanted[:2], wanted[2:3], wanted[3:]]
    assert call(study, runs, monkeypatch, tmp_path, "--only=*resnet20_seed[01]")[1] == []
    monkeypatch.setattr(study.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "records" / "pytorch" / "resnet20_seed0.json").unlink()
    assert call(study, runs, monkeypatch, tmp_path, "--only=*resnet20_seed[01]") == (DONE, [])
    assert "PyTorch is not installed: its 2 runs are left out" in capsys.readouterr().out


@pytest.mark.slow
def test_a_yardstick_that_is_trained_leaves_the_record_that_says_so(study, runs, tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="the yardstick is PyTorch's, which is not installed")
    run, config = runs.Yardstick("resnet20", "cifar_resnet8", 8, 1), runs.Yardstick.config
    monkeypatch.setattr(runs.Yardstick, "config", lambda self: config(self) | {"dataset": "digits"})
    study.train_yardstick(run, tmp_path / "runs", tmp_path, tmp_path / "data")
    assert study.is_done(run, tmp_path) and not study.is_done(run._replace(seed=2), tmp_path)
    assert json.loads((tmp_path / "pytorch" / "resnet20_seed1.json").read_text())["steps"] == 8


def test_a_pattern_without_a_run_is_refused(study, tmp_path):
    with pytest.raises(ValueError, match="--only=resnet21 matches none of resnet20_seed0"):
        study.main([f"--workdir={tmp_path}", "--only=resnet21"])


# The time of a call

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


def test_a_process_that_does_not_stop_when_asked_is_ended(study):
    begun, slot = time.monotonic(), study.Slot(minutes=0.1)
    assert slot.run(exec, DEAF) == -signal.SIGKILL
    assert 5 < time.monotonic() - begun < 30 and slot.over() and not slot.signalled


def test_sigterm_is_passed_on(study):
    slot = study.Slot(minutes=None)
    before = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(1); os.kill({os.getpid()}, 15)"])
    assert slot.run(time.sleep, 60) == -signal.SIGTERM
    assert before.wait() == 0 and slot.signalled and slot.over()


# Real runs, of a tiny net

TINY = """
import sys
sys.path.insert(0, {folder!r})
import runs
changes = {{
    "data.name": "digits", "model.name": "cifar_resnet8", "model.width": 4, "model.bn_group_size": 32,
    "train.batch_size": 32, "train.duration": 600, "schedule.boundaries": (300, 450), "train.log_every": 10,
    "evaluate.every": 200, "checkpoint.every": 100,
}}
tiny = tuple(runs.several("resnet20", range(1), changes))
runs.SCALES["small"] = runs.SCALES["small"]._replace(runs=tiny, responses_on=50)
import study
if __name__ == "__main__":
    sys.exit(study.main())
"""


def start(folder, program):
    command = [sys.executable, program, "--scale=small", f"--workdir={folder}/runs", f"--experiment={folder}"]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return subprocess.Popen([*command, f"--data_dir={folder.parent}/data"], env=environment)


def wait_for_step(folder, step, process):
    metrics = folder / "runs" / "resnet20_seed0" / "metrics.jsonl"
    while not metrics.is_file() or not (rows := read_rows(metrics)) or rows[-1]["step"] < step:
        assert process.poll() is None, f"it ended ({process.returncode}) before step {step}"
        time.sleep(0.02)


def outcome(folder):
    """What must not depend on interruptions: everything but times and memory."""
    records = folder / "small" / "records"
    record = read_record(records / "resnet20_seed0.json")
    times = ("wall_seconds", "images_per_second", "compile_seconds", "start_seconds")
    for key in (*times, "peak_bytes", "resumed_from_step"):
        del record[key]
    rows = [
        {name: value for name, value in row.items() if name != "train/images_per_second"}
        for row in read_rows(records / "resnet20_seed0.metrics.jsonl")
    ]
    return record, rows, json.loads((records / "resnet20_seed0.responses.json").read_text())


@pytest.mark.slow
def test_a_study_that_was_killed_and_stopped_ends_like_one_that_was_not(tmp_path):
    program = tmp_path / "tiny.py"
    program.write_text(TINY.format(folder=str(FOLDER)))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole, program).wait() == DONE
    process = start(cut, program)
    wait_for_step(cut, 150, process)
    process.kill()
    process.wait()
    assert not (cut / "small").exists()
    process = start(cut, program)
    wait_for_step(cut, 350, process)
    process.terminate()
    assert process.wait() == PREEMPTED
    assert start(cut, program).wait() == DONE
    assert read_record(cut / "small" / "records" / "resnet20_seed0.json")["resumed_from_step"] > 300
    assert outcome(cut) == outcome(whole)
    assert len(outcome(cut)[2]["responses"]) == 7


# Tables and figures

README = "question\n{}\nold\n{}\nanswer\n".format(
    "<!-- full scale: made by tables.py -->", "<!-- end of full scale -->"
)


@pytest.fixture
def experiment(tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "README.md").write_text(README)
    return tmp_path


def cells(text, title):
    """The rows of the table under a title, by their first cell."""
    block = text.partition(f"**{title}**")[2].partition("\n\n")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
    return {row[0]: row[1:] for row in rows if row[0] != "---"}


def test_the_tables_have_means_deviations_and_the_papers_figures(tables, runs, experiment):
    for seed, (train, test) in enumerate([(0.001, 0.064), (0.002, 0.066), (0.003, 0.074)]):
        store(runs, experiment / "records", named(runs, f"resnet110_seed{seed}"), train=train, test=test)
    for name in ("resnet1202_seed0", "plain20_seed0", "plain110_seed0"):
        store(runs, experiment / "records", named(runs, name), train=0.5, test=0.6)
    store(runs, experiment / "records", named(runs, "resnet20_45k_seed0"), train=0.1, test=0.12)
    store(runs, experiment / "records", named(runs, "resnet110_dropout0.5_seed2"), train=0.1, test=0.13)
    text = tables.make("full", experiment)
    # The sample standard deviation of 6.4, 6.6 and 7.4 is 0.529.
    assert cells(text, "Table 6") == {
        "net": ["parameters", "seeds", "test error, %", "best seed", "training error, %", "paper's test error, %"],
        "ResNet-110": ["110,000", "3", "6.80 ± 0.53", "6.40", "0.20 ± 0.10", "6.43 (6.61 ± 0.16)"],
        "ResNet-1202": ["1,202,000", "1", "60.00", "60.00", "50.00", "7.93"],
        "plain-20": ["20,000", "1", "60.00", "60.00", "50.00", "–"],
        "plain-110": ["110,000", "1", "60.00", "60.00", "50.00", "> 60"],
    }
    held_out = cells(text, "With a part of the training images held out")
    assert held_out["ResNet-20"] == ["20,000", "1", "12.10", "12.00", "10.00"]
    overfitting = cells(text, "Overfitting")
    assert list(overfitting) == ["net", "ResNet-110", "ResNet-110, dropout 0.5", "ResNet-1202"]
    assert overfitting["ResNet-110, dropout 0.5"] == ["110,000", "1", "13.00", "13.00", "10.00"]
    assert "JPEG copies" in text


def test_differences_from_pytorch_have_their_interval(tables, runs, experiment):
    records = experiment / "records"
    for seed, test in enumerate((0.08, 0.09, 0.10)):
        store(runs, records, named(runs, f"resnet20_seed{seed}"), train=0.01, test=test)
        store_yardstick(records, named(runs, f"pytorch_resnet20_seed{seed}"), train=0.02, test=test + 0.005)
    store_yardstick(records, named(runs, "pytorch_resnet56_seed0"))
    text = tables.make("full", experiment)
    block = text.partition("**Beside PyTorch**")[2]
    # Welch with equal deviations of 1: 4 degrees, 2.776 * sqrt(2 / 3) = 2.27.
    assert "| ResNet-20 | 64,000 | test | 9.00 ± 1.00 (3) | 9.50 ± 1.00 (3) | -0.50 | -2.77 to +1.77 |" in block
    assert "| ResNet-20 | 64,000 | train | 1.00 ± 0.00 (3) | 2.00 ± 0.00 (3) | -1.00 | -1.00 to -1.00 |" in block
    # Of 56 layers there is no run of ours.
    assert "ResNet-56" not in block
    store_yardstick(records, named(runs, "pytorch_resnet20_seed1"), config={"train_pixels": "other"})
    with pytest.raises(ValueError, match="resnet20 and PyTorch's are of different training images"):
        tables.make("full", experiment)
    store_yardstick(records, named(runs, "pytorch_resnet20_seed1"), config={"bf16": True})
    with pytest.raises(ValueError, match="another config than the run pytorch_resnet20_seed1.*bf16"):
        tables.make("full", experiment)


def test_the_short_scale_is_told_beside_pytorch_and_not_beside_the_paper(tables, runs, experiment):
    records = experiment / "short" / "records"
    records.mkdir(parents=True)
    for run in runs.SCALES["short"].runs[:2]:
        store(runs, records, run, test=0.5)
        store_yardstick(records, named(runs, f"pytorch_{run.name}", "short"))
    text = tables.make("short", experiment)
    assert "| ResNet-20 | 400 | test | 50.00 ± 0.00 (2) | 9.00 ± 0.00 (2) | +41.00 |" in text
    assert "paper's test error" not in text and "figure1.png" not in text
    assert (experiment / "short" / "figure6.png").is_file() and "](short/figure6.png)" in text


def test_every_published_figure_is_the_papers(tables):
    published = {"20": "8.75", "32": "7.51", "44": "7.17", "56": "6.97", "1202": "7.93", "110": "6.43 (6.61 ± 0.16)"}
    assert {f"ResNet-{depth}": error for depth, error in published.items()} | {"plain-110": "> 60"} == tables.PAPER


def test_tables_and_figures_go_between_the_marks_and_into_the_scales_folder(tables, runs, experiment):
    readme = README.replace("full", "small")
    (experiment / "README.md").write_text(README + readme)
    (experiment / "small" / "records").mkdir(parents=True)
    for run in runs.SCALES["small"].runs:
        store(runs, experiment / "small" / "records", run)
    text = tables.make("small", experiment)
    assert (experiment / "README.md").read_text() == README + readme.replace("old", f"\n{text}\n")
    for name in ("figure1", "figure6", "figure7"):
        assert f"](small/{name}.png)" in text
        assert (experiment / "small" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    # No net of the small scale is in the paper.
    assert "paper's test error" not in text
    assert cells(text, "Table 6")["ResNet-8, width 8"][1] == "2"


def test_a_row_is_there_only_with_a_record_and_no_record_at_all_is_refused(tables, runs, experiment):
    with pytest.raises(FileNotFoundError, match="no record"):
        tables.make("full", experiment)
    store(runs, experiment / "records", named(runs, "resnet44_seed3"))
    text = tables.make("full", experiment)
    assert list(cells(text, "Table 6")) == ["net", "ResNet-44"]
    assert "figure6.png" in text and "figure1.png" not in text and "Overfitting" not in text


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"config": {"data": {"name": "cifar100"}}}, "another config than the run resnet44_seed3.*data.name"),
        ({"config": {"seed": 4}}, "another config than the run resnet44_seed3.*seed differ"),
        ({"counts": (50_000, 9_999)}, "test error is over 9999 images, not 10000"),
        ({"counts": (45_000, 10_000)}, "train error is over 45000 images, not 50000"),
        ({"measured": {"data": {"files": "other", "stored_as": "PNG"}}}, "different files of the data set"),
    ],
)
def test_a_record_of_other_data_or_another_run_is_refused(tables, runs, experiment, changes, message):
    folder = experiment / "records"
    store(runs, folder, named(runs, "resnet44_seed2"))
    store(runs, folder, named(runs, "resnet44_seed3"))
    own = read_record(folder / "resnet44_seed3.json")["config"]
    if "data" in (config := changes.get("config", {})):
        changes = {"config": {"data": own["data"] | config["data"]}}
    store(runs, folder, named(runs, "resnet44_seed3"), **changes)
    with pytest.raises(ValueError, match=message):
        tables.make("full", experiment)


def test_a_record_that_is_none_of_the_runs_is_refused(tables, runs, experiment):
    run = named(runs, "resnet44_seed3")
    store(runs, experiment / "records", run._replace(name="resnet44_seed7"))
    with pytest.raises(ValueError, match="resnet44_seed7.json.* none of the runs"):
        tables.make("full", experiment)


def test_curves_are_means_over_the_seeds_at_the_steps_that_all_have(modules):
    figures = modules("figures")
    first = {figures.TEST: (np.array([1, 2, 3]), np.array([0.5, 0.3, 0.2]))}
    second = {figures.TEST: (np.array([1, 3]), np.array([0.7, 0.4]))}
    steps, mean, low, high = figures.mean_curve([first, second], figures.TEST)
    assert steps.tolist() == [1, 3]
    np.testing.assert_allclose([mean, low, high], [[60, 30], [50, 20], [70, 40]])


def test_names_beside_a_figure_do_not_overlap(modules):
    heights = modules("figures").apart([7.0, 7.1, 20.0, 7.05], 1.0)
    assert np.diff(np.sort(heights)).min() > 0.98
    assert heights[2] == 20 and np.argsort(heights).tolist() == [0, 3, 1, 2]


def test_the_tables_in_the_readme_are_those_of_the_stored_records_of_clean_checkouts(tables, runs, tmp_path):
    stored = [name for name, scale in runs.SCALES.items() if [*(FOLDER / scale.folder / "records").glob("*.json")]]
    if not stored:
        pytest.skip("no record yet: experiments/cifar10/README.md says how they are made")
    copy = shutil.copytree(FOLDER, tmp_path / "cifar10")
    for record in FOLDER.rglob("records/**/*.json"):
        commit = json.loads(record.read_text())["commit"]
        assert commit is not None and not commit["dirty"], record
    for name in stored:
        tables.make(name, copy)
        for figure in copy.joinpath(runs.SCALES[name].folder).glob("*.png"):
            assert (FOLDER / figure.relative_to(copy)).is_file()
    text = (FOLDER / "README.md").read_text()
    assert (copy / "README.md").read_text() == text
    beside = [line for line in text.splitlines() if "| 400 | test |" in line]
    readme = (FOLDER.parent.parent / "README.md").read_text()
    assert len(beside) == 2 and all(line in readme for line in beside)
