"""The command line passes on what was typed, answers at once, and ends a user error with one line."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from resnet_jax import __version__, cli
from resnet_jax.data.input_description import InputDescription
from resnet_jax.evaluation.prediction import Prediction
from resnet_jax.models.registry import create_model
from resnet_jax.pretrained.weight_file import WeightFile

CHECKOUT = Path(__file__).resolve().parent.parent
INPUT = InputDescription((32, 32, 3), np.zeros(3, np.float32), np.ones(3, np.float32), tuple("0123456789"))
EVALUATION = {"error_top1": 0.0194444, "error_top5": 0.0, "count": 360, "protocol": "center"}


@pytest.fixture
def package(monkeypatch):
    """Stands in for the functions that the command line calls; `.calls` has what they were given."""
    fake = SimpleNamespace(calls=[], answers={}, error=None)

    def function(module, name):
        def stand_in(*args, **kwargs):
            fake.calls.append((name, args, kwargs))
            if fake.error:
                raise fake.error
            return fake.answers[name]

        home = ModuleType(module)
        setattr(home, name, stand_in)
        monkeypatch.setitem(sys.modules, module, home)

    function("resnet_jax.training.loop", "train_seeds")
    function("resnet_jax.evaluation.run", "evaluate")
    function("resnet_jax.evaluation.predict", "predict")
    function("resnet_jax.evaluation.trained_net", "load_net")
    function("resnet_jax.pretrained.convert", "convert")
    function("resnet_jax.pretrained.export", "export_inference")
    function("resnet_jax.models.summary", "summarize")
    function("resnet_jax.data.prepare", "prepare")
    function("resnet_jax.analysis.report", "report")
    fake.answers = {
        "train_seeds": [{"test": EVALUATION}],
        "evaluate": {"members": [EVALUATION]},
        "predict": [Prediction("a.png", (("three", 0.75), ("eight", 0.25))), Prediction("b,.png", (("six", 1.0),))],
        "load_net": WeightFile(create_model("cifar_resnet20"), {"params": {}}, INPUT, "name", {"a": 1}, "here", "MIT"),
        "convert": WeightFile(create_model("cifar_resnet20"), {}, name="cifar_resnet20"),
        "export_inference": Path("net.jax_export"),
        "summarize": "the table",
        "prepare": Path("sets/cifar10/3.0.2"),
        "report": "the report",
    }
    return fake


def test_train_passes_the_config_and_the_workdir(package, capsys):
    words = ["train", "--config=digits:plain20", "--workdir", "run", "--config.train.batch_size=64"]
    assert cli.main([*words, "--config.seed", "7", "--config.schedule.learning_rate=0.2"]) == 0
    [(name, (config, workdir), options)] = package.calls
    assert (name, workdir, list(options)) == ("train_seeds", "run", ["begun"])
    assert options["begun"] < time.perf_counter()
    assert (config.model.name, config.train.batch_size, config.seed) == ("cifar_plain20", 64, 7)
    assert config.schedule.learning_rate == 0.2
    assert capsys.readouterr().out == "test error 1.94 % of 360 images; see run\n"


def test_several_seeds_have_an_error_each(package, capsys):
    package.answers["train_seeds"] *= 2
    assert cli.main(["train", "--config=digits:plain20", "--workdir=run", "--config.num_seeds=2"]) == 0
    assert capsys.readouterr().out == "test error 1.94 %, 1.94 % of 360 images; see run\n"


def test_the_last_override_of_a_key_holds(package):
    assert cli.main(["train", "--config=digits", "--workdir=run", "--config.seed=1", "--config.seed=2"]) == 0
    assert package.calls[0][1][0].seed == 2


def test_print_config_trains_nothing_and_can_be_trained_from(package, capsys, tmp_path):
    assert cli.main(["train", "--config=digits", "--print_config", "--config.seed=5"]) == 0
    assert package.calls == []
    stored = tmp_path / "config.json"
    stored.write_text(capsys.readouterr().out)
    assert cli.main(["train", f"--config={stored}", "--print_config"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(stored.read_text())
    assert json.loads(stored.read_text())["seed"] == 5


def test_evaluate_passes_its_flags_and_prints_lines(package, capsys):
    assert cli.main(["evaluate", "--workdir=run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "error_top1: 1.94 %",
        "error_top5: 0.00 %",
        "count: 360",
        "protocol: center",
    ]
    flags = [
        "--checkpoint=300",
        "--protocol=multi_scale",
        "--average=logits",
        "--scales=224,256",
        "--split=train",
        "--data_dir=sets",
        "--save_scores=kept",
        "--batch_size=8",
        "--workers=0",
        "--recompute_statistics=20",
    ]
    assert cli.main(["evaluate", "--workdir=run", "--json", *flags]) == 0
    assert json.loads(capsys.readouterr().out) == EVALUATION
    names = ("scales", "split", "data_dir", "save_scores", "batch_size", "workers", "config")
    defaults = {"weights": [], "scores": [], "protocol": "center", "average": "probabilities", "checkpoint": "latest"}
    given = {"protocol": "multi_scale", "average": "logits", "scales": (224, 256), "checkpoint": 300, "split": "train"}
    given |= {
        "weights": [],
        "config": None,
        "scores": [],
        "data_dir": "sets",
        "save_scores": "kept",
        "batch_size": 8,
        "workers": 0,
    }
    assert package.calls == [
        ("evaluate", (["run"],), {**defaults, **dict.fromkeys(names), "recompute_statistics": 0}),
        ("evaluate", (["run"],), {**given, "recompute_statistics": 20}),
    ]


def test_several_members_are_a_table_with_their_ensemble(package, capsys):
    members = [{**EVALUATION, "member": name} for name in ("first", "the second")]
    result = {"members": members, "ensemble": {**EVALUATION, "member": "ensemble", "error_top1": 0.01}}
    package.answers["evaluate"] = result
    words = ["evaluate", "--workdir=a", "--workdir=b", "--scores=c.npz", "--scores=d.npz"]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.splitlines() == [
        "              top-1    top-5   count  protocol",
        "first        1.94 %   0.00 %     360  center",
        "the second   1.94 %   0.00 %     360  center",
        "ensemble     1.00 %   0.00 %     360  center",
    ]
    [(_, (workdirs,), options)] = package.calls
    assert (workdirs, options["scores"]) == (["a", "b"], ["c.npz", "d.npz"])
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == result


def test_predict_prints_the_classes_of_each_image(package, capsys):
    assert cli.main(["predict", "--workdir=run", "--checkpoint=best", "--top=2", "a.png", "b,.png"]) == 0
    assert capsys.readouterr().out == "a.png\n   75.00 %  three\n   25.00 %  eight\nb,.png\n  100.00 %  six\n"
    options = {"workdir": "run", "weights": None, "checkpoint": "best", "top": 2, "batch_size": 32}
    assert package.calls == [("predict", (["a.png", "b,.png"],), options)]
    assert cli.main(["predict", "--weights=net", "--json", "a.png", "b,.png"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["path"], line["classes"][0]["class"]) for line in lines] == [("a.png", "three"), ("b,.png", "six")]
    assert cli.main(["predict", "--weights=net", "--csv", "a.png", "b,.png"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [(row["path"], row["class"], float(row["probability"])) for row in rows] == [
        *(("a.png", "three", 0.75), ("a.png", "eight", 0.25), ("b,.png", "six", 1.0))
    ]


def test_images_that_cannot_be_read_make_an_error_at_the_end(package, capsys):
    bad = Prediction("bad\udcff.png", (), "no image")
    package.answers["predict"] = [bad, *package.answers["predict"]]
    assert cli.main(["predict", "--workdir=run", "bad.png", "a.png", "b.png"]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("bad\\udcff.png\n  error: no image\na.png\n") and "six" in out
    assert err == "resnet-jax: error: 1 of 3 images could not be read\n"


def test_convert_takes_a_file_or_a_run(package, capsys):
    words = ["--from=timm", "--to=huggingface", "--mean=1,2,3", "--stride_in=1x1"]
    assert cli.main(["convert", "in", "out", *words]) == 0
    assert cli.main(["convert", "--workdir=run", "--checkpoint=7", "out", "--mean=mean.binaryproto"]) == 0
    (_, arguments, options), (_, _, which), (_, others, more) = package.calls
    assert arguments == ("in", "out") and others == (package.answers["load_net"], "out")
    given = {key: value for key, value in options.items() if value is not None}
    overwrite = {"overwrite": False}
    assert given == {"format": "timm", "to": "huggingface", "mean": (1.0, 2.0, 3.0), "stride_in": "1x1", **overwrite}
    assert which == {"workdir": "run", "checkpoint": 7} and more["mean"] == "mean.binaryproto"
    assert capsys.readouterr().out == "cifar_resnet20 with 10 classes; the input is not described; see out\n" * 2


def test_export_takes_all_that_is_known_of_the_net(package, capsys):
    assert cli.main(["export", "net.jax_export", "--weights=net", "--fold_batch_norm", "--platforms=cpu,tpu"]) == 0
    assert capsys.readouterr().out == "net.jax_export\n"
    (_, _, which), (_, (path, model, variables), options) = package.calls
    file = package.answers["load_net"]
    assert which == {"workdir": None, "weights": "net", "checkpoint": "latest"}
    assert (path, model, variables, options["input"]) == ("net.jax_export", file.model, file.variables, file.input)
    assert (options["fold_batch_norm"], options["platforms"]) == (True, ["cpu", "tpu"])
    assert options["overwrite"] is False
    assert cli.main(["export", "net.jax_export", "--weights=net", "--overwrite"]) == 0
    assert package.calls[-1][2]["overwrite"] is True
    assert [options[key] for key in ("name", "metrics", "source", "license")] == ["name", {"a": 1}, "here", "MIT"]


def test_summarize_passes_only_what_was_given(package, capsys):
    assert cli.main(["summarize", "resnet50"]) == 0
    assert cli.main(["summarize", "resnet50", "--image_size=96", "--shortcut=C", "--stride_in=3x3"]) == 0
    assert package.calls == [
        ("summarize", ("resnet50",), {}),
        ("summarize", ("resnet50",), {"image_size": 96, "shortcut": "C", "stride_in": "3x3"}),
    ]
    assert capsys.readouterr().out == "the table\n" * 2


def test_prepare_and_report_print_what_they_made(package, capsys):
    assert cli.main(["prepare", "cifar10", "--data_dir=sets", "--source=cifar.tar.gz"]) == 0
    assert cli.main(["report", "experiments/degradation"]) == 0
    assert package.calls == [
        ("prepare", ("cifar10",), {"data_dir": "sets", "source": "cifar.tar.gz"}),
        ("report", ("experiments/degradation",), {"add": []}),
    ]
    assert capsys.readouterr().out == "sets/cifar10/3.0.2\nthe report\n"


TRAIN = ("train", "--config=digits", "--workdir=run")
ERRORS = [
    ((), "a command comes first: train, evaluate"),
    (("--workdir=run", "train"), "a command comes first"),
    (("trian", "--config=digits"), "unknown command 'trian'; did you mean 'train'?"),
    (("train", "--config=digits", "--wrkdir=run"), "unknown flag --wrkdir of train; did you mean --workdir?"),
    ((*TRAIN, "--confg.train.batch_size=8"), "did you mean --config.train.batch_size?"),
    ((*TRAIN, "--train.batch_size", "8"), "did you mean --config.train.batch_size?"),
    (
        (*TRAIN, "--config.train.bacth_size=8"),
        "unknown config key train.bacth_size; did you mean train.batch_size?",
    ),
    ((*TRAIN, "--config.optimizer.learning_rate", "1"), "did you mean schedule.learning_rate?"),
    ((*TRAIN, "--config.schedule.name=cosin"), "schedule.name=cosin: must be one of"),
    ((*TRAIN, "--config.schedule.learning_rate=nan"), "must be a finite number above 0"),
    ((*TRAIN, "--config.model.scan"), "--config.model.scan needs a value"),
    ((*TRAIN, "--config.model.scan", "--print_config"), "--config.model.scan needs a value"),
    ((*TRAIN, "more"), "unexpected argument 'more' of train"),
    (("train", "--config=digits"), "the flag --workdir is needed"),
    (("train", "--workdir=run"), "the flag --config is needed"),
    (("train", "--config=digit", "--workdir=run"), "no config 'digit'; did you mean 'digits'?"),
    (("train", "--config=digits:resnet21", "--workdir=run"), "did you mean 'resnet20'?"),
    (("evaluate",), "the flag --workdir is needed, or --weights or --scores"),
    (("evaluate", "--workdir=run", "--scales=224,big"), "'224,big' is not a list of whole numbers"),
    (
        ("evaluate", "--workdir=run", "--config.seed=1"),
        "is for detectors and localizers, --results and --recall for detectors alone",
    ),
    (("evaluate", "--workdir=run", "--checkpont=best"), "did you mean --checkpoint?"),
    (("evaluate", "--work=run"), "unknown flag --work of evaluate; did you mean --workdir?"),
    (("predict", "--workdir=run"), "required: IMAGE"),
    (("predict", "--workdir=run", "a.png", "--csv", "--json"), "argument --json: not allowed with argument --csv"),
    (("convert", "out"), "convert needs one net: IN, or --workdir=DIR, and then OUT"),
    (("convert", "in", "out", "--workdir=run"), "convert needs one net"),
    (("convert", "in", "out", "--std=1,x,1"), "'1,x,1' is not a list of numbers, such as 123.7,116.3,103.5"),
    (("export", "net.jax_export", "--platform=cpu"), "did you mean --platforms?"),
    (("summarize", "resnet50", "--image-size=96"), "did you mean --image_size?"),
    (("summarize", "resnet50", "--image_size=big"), "invalid int value: 'big'"),
    (("prepare",), "required: DATASET"),
]


@pytest.mark.parametrize(("words", "message"), ERRORS, ids=lambda part: " ".join(part)[-40:] if part else "none")
def test_a_user_error_is_one_line_and_code_2(package, capsys, words, message):
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and package.calls == []
    assert err.startswith("resnet-jax: error: ") and err.count("\n") == 1 and message in err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("wrong workdir"), 2, "resnet-jax: error: wrong workdir\n"),
        (FileNotFoundError("no data"), 2, "resnet-jax: error: no data\n"),
        (ConnectionError("cannot download"), 2, "resnet-jax: error: cannot download\n"),
        (PermissionError(13, "Permission denied", "a"), 2, "resnet-jax: error: [Errno 13] Permission denied: 'a'\n"),
        (OSError(28, "No space left on device"), 2, "resnet-jax: error: [Errno 28] No space left on device\n"),
        (FloatingPointError("loss is nan at step 7"), 3, "resnet-jax: error: loss is nan at step 7\n"),
        (KeyboardInterrupt(), 130, "resnet-jax: interrupted\n"),
    ],
)
def test_errors_of_the_package_have_their_exit_codes(package, capsys, monkeypatch, error, code, line):
    package.error = error
    monkeypatch.delenv(cli.TRACEBACK, raising=False)
    assert cli.main(TRAIN) == code
    assert capsys.readouterr().err == line


def test_a_fault_of_the_program_keeps_its_traceback(package, monkeypatch):
    package.error = TypeError("a bug")
    with pytest.raises(TypeError, match="a bug"):
        cli.main(TRAIN)
    package.error = ValueError("asked for")
    monkeypatch.setenv(cli.TRACEBACK, "1")
    with pytest.raises(ValueError, match="asked for"):
        cli.main(TRAIN)


def run(*words):
    """The command as a process: result, and the seconds it took."""
    environment = {name: value for name, value in os.environ.items() if name != cli.TRACEBACK}
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-m", "resnet_jax", *words],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
    )
    return result, time.perf_counter() - start


@pytest.mark.parametrize("words", [("--help",), ("-h",), ("train", "--help"), ("--version",)])
def test_help_is_there_within_a_second(words):
    # The better of two: the first may have to compile the files, and the machine has other work.
    result, seconds = min((run(*words) for _ in range(2)), key=lambda pair: pair[1])
    assert result.returncode == 0 and result.stderr == ""
    assert seconds < 1
    if words == ("--version",):
        assert result.stdout.strip() == __version__
    elif words == ("train", "--help"):
        assert "--workdir" in result.stdout and "--config.schedule.learning_rate=0.1" in result.stdout
    else:
        assert all(f"\n  {command} " in result.stdout for command in cli.COMMANDS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("trian",), "did you mean 'train'"),
        ((*TRAIN, "--config.schedule.nmae=cosine"), "did you mean schedule.name?"),
        ((*TRAIN, "--config.train.unit=epoch"), "did you mean epochs?"),
    ],
)
def test_a_typing_error_stops_the_process_within_five_seconds(words, message):
    result, seconds = run(*words)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1 and message in result.stderr
    assert seconds < 5


def test_bytes_that_are_no_text_are_refused_with_what_helps(tmp_path):
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "resnet_jax", "train", "--config=digits", f"--workdir={tmp_path}/läuf"]
    result = subprocess.run(command, cwd=CHECKOUT, env=os.environ | ascii_only, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "no text in this process's encoding, ascii; set PYTHONUTF8=1" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_net_that_does_not_exist_is_refused_without_jax():
    words = [*TRAIN, "--config.model.name=cifar_resnet21"]
    code = f"""
import sys, time
from resnet_jax import cli
print(cli.main({words}), sorted({{"jax", "flax", "tensorflow"}} & set(sys.modules)))
print(time.process_time())
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    result, seconds = process.stdout.splitlines()
    assert result == "2 []" and float(seconds) < 2
    assert process.stderr.count("\n") == 1 and "the nearest depths are 20 and 26" in process.stderr


def test_a_reader_that_has_enough_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-m", "resnet_jax", "--help"],
        cwd=CHECKOUT,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")
