"""A table of bad input: config keys, data folders, weights. Each is refused with what is wrong and what is allowed.

The part on config keys is made from `KEYS`, so that a new key is in it by being declared.
"""

import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from colored_images import build_colored_images
from tfrecord_files import as_tfrecord

import resnet_jax
from resnet_jax import cli
from resnet_jax.config import base_config, check, flatten, nest
from resnet_jax.config_files import load_config, to_json
from resnet_jax.config_keys import KEYS
from resnet_jax.config_rules import Rule
from resnet_jax.data.datasets import dataset_info
from resnet_jax.data.examples import Examples
from resnet_jax.data.input_description import InputDescription
from resnet_jax.data.statistics import measure

# Config keys

WRONG_TYPES = {
    "int": (1.5, "many", True, math.nan, (1,), "1e3", b"1"),
    "float": ("much", True, math.nan, math.inf, -math.inf, (1.0,), "nan", "-inf"),
    "number": ("long", True, math.nan, math.inf, (1,), "inf"),
    "numbers": (1, "one", (math.nan,), (True,), ("a", 1), (1, math.inf)),
    "bool": (0, 1, "yes", math.nan),
    "str": (1, "", True, math.nan, ("a",)),
}
WORDS = {
    "int": "an integer",
    "float": "a finite number",
    "number": "a finite number",
    "numbers": "a tuple of finite numbers",
    "bool": "true or false",
    "str": "a name",
}


def misspelt(name: str) -> list[str]:
    """A name with two letters exchanged, and one without its middle letter; as a capital, if it is one letter."""
    if len(name) < 3:
        return [name.swapcase()]
    middle = len(name) // 2
    exchanged = name[: middle - 1] + name[middle] + name[middle - 1] + name[middle + 1 :]
    return [wrong for wrong in (exchanged, name[:middle] + name[middle + 1 :]) if wrong != name]


def out_of_range(rule: Rule) -> list:
    bounds = [(rule.minimum, -1), (rule.above, 0), (rule.above, -1), (rule.below, 0), (rule.below, 1)]
    values = [limit + offset for limit, offset in bounds if limit is not None]
    values = [int(value) if rule.kind == "int" else float(value) for value in values]
    return [(value, value) for value in values] if rule.kind == "numbers" else values


def bad_values(rule: Rule) -> list:
    """What a key may not hold: of another type, out of range, NaN, nothing."""
    nothing = [] if rule.none else [None, "None"]
    if rule.kind == "str" and not rule.choices:
        return [*WRONG_TYPES["str"], *nothing]
    return [*WRONG_TYPES[rule.kind], *nothing, *out_of_range(rule)]


def phrases(rule: Rule) -> list[str]:
    """What a message says is allowed."""
    if rule.choices:
        return [f"one of {', '.join(rule.choices)}", *(["None"] if rule.none else [])]
    bounds = (("at least", rule.minimum), ("above", rule.above), ("below", rule.below))
    said = [f"{word} {limit}" for word, limit in bounds if limit is not None]
    return [WORDS[rule.kind], *said, *(["or None"] if rule.none else [])]


BAD_VALUES = [(key, value) for key, rule in KEYS.items() for value in bad_values(rule)]
MISSPELT_VALUES = [
    (key, wrong, choice)
    for key, rule in KEYS.items()
    for choice in rule.choices or ()
    for wrong in misspelt(choice)
    if wrong not in rule.choices
]
MISSPELT_KEYS = [
    (wrong, key)
    for key in KEYS
    for leaf in [key.rpartition(".")[2]]
    for wrong in [f"{key.removesuffix(leaf)}{misspelling}" for misspelling in misspelt(leaf)]
]


def config_with(key: str) -> str:
    """A config that has the key."""
    return {"detection": "detection:small", "localization": "localization:small"}.get(task_with(key), "digits")


def task_with(key: str) -> str:
    """A task that has the key."""
    return next(iter(KEYS[key].tasks), "classification")


def refusal(call, *args) -> str:
    with pytest.raises(ValueError) as error:
        call(*args)
    assert type(error.value) is ValueError
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("key", "value"), BAD_VALUES, ids=str)
def test_a_value_that_a_key_may_not_hold(key, value):
    message = refusal(load_config, config_with(key), {key: value})
    assert message.startswith(f"{key}={value}: must be "), message
    for phrase in phrases(KEYS[key]):
        assert phrase in message.partition("must be")[2]


@pytest.mark.parametrize(("key", "value"), BAD_VALUES, ids=str)
def test_such_a_value_in_a_config_file(key, value):
    # Not by assignment, where ConfigDict itself makes 1.0 of True.
    message = refusal(check, nest(flatten(base_config(task_with(key))) | {key: value}))
    assert message.startswith(f"{key}={value}: must be "), message


@pytest.mark.parametrize(("key", "wrong", "choice"), MISSPELT_VALUES)
def test_a_misspelt_choice_has_the_nearest_one(key, wrong, choice):
    message = refusal(load_config, config_with(key), {key: wrong})
    assert message.startswith(f"{key}={wrong}: must be one of {', '.join(KEYS[key].choices)}")
    assert message.endswith(f"did you mean {choice}?")


@pytest.mark.parametrize(("wrong", "key"), MISSPELT_KEYS)
def test_a_misspelt_key_has_the_nearest_one(wrong, key):
    said = f"unknown config key {wrong}; did you mean {key}?"
    assert refusal(load_config, config_with(key), {wrong: 1}) == said
    config = base_config(task_with(key))
    section, _, leaf = wrong.rpartition(".")
    (config[section] if section else config)[leaf] = 1
    assert refusal(check, config) == said


def run(capsys, *words) -> str:
    """The line that the command line ends with; it is the only one, and the exit code is 2."""
    assert cli.main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("resnet-jax: error: ") and err.count("\n") == 1, err
    return err.removeprefix("resnet-jax: error: ").rstrip("\n")


@pytest.mark.parametrize("key", KEYS)
def test_the_command_line_says_it_in_one_line(key, capsys, tmp_path):
    rule = KEYS[key]
    # As text, everything is the name of something, but nothing.
    texts = [""] if rule.kind == "str" else [value for value in bad_values(rule) if isinstance(value, str)]
    value = texts[0]
    message = run(capsys, "train", f"--config={config_with(key)}", f"--workdir={tmp_path}", f"--config.{key}={value}")
    assert message.startswith(f"{key}={value}: must be ")
    assert list(tmp_path.iterdir()) == []


# Names


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model.name", "cifar_resent20", "did you mean 'cifar_resnet20'?"),
        ("model.name", "ResNet50", "did you mean 'resnet50'?"),
        ("data.name", "digist", "did you mean 'digits'?"),
        ("data.name", "../digits", "allowed are NAME and NAME/CONFIG"),
        ("data.train_split", "trian", "the splits are train (1438), test (359)"),
        ("data.train_split", "train[2000:]", "train[2000:]"),
        ("data.test_split", "tset", "the splits are train (1438), test (359)"),
        ("data.validation_split", "train[-10:-20]", "train[-10:-20]"),
        ("evaluate.train_split", "train[:0]", "train[:0]"),
    ],
)
def test_a_name_that_does_not_exist(key, value, said, capsys, tmp_path, digits):
    words = ["train", "--config=digits", f"--workdir={tmp_path}", f"--config.data.data_dir={digits}"]
    message = run(capsys, *words, f"--config.{key}={value}")
    assert value in message and said in message


# Data folders


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    dataset_info("digits", data_dir=folder)
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    """One set in both forms; as TFRecord, train lies in two files."""
    array_record, tfrecord = tmp_path_factory.mktemp("array_record"), tmp_path_factory.mktemp("tfrecord")
    built = build_colored_images(array_record, classes=4, train=44, test=8)
    measure("colors", data_dir=array_record, split="test", image_size=32, short_side=32, workers=0)
    as_tfrecord(built, tfrecord / "colors" / "1.0.0", {"train": (20, 24), "test": (8,)})
    return {"array_record": array_record, "tfrecord": tfrecord}


@pytest.fixture(params=["array_record", "tfrecord"])
def copy(request, sets, tmp_path) -> Path:
    """The set in one of its forms, to be damaged."""
    return shutil.copytree(sets[request.param], tmp_path / "data")


def shard(folder: Path, split: str = "train") -> Path:
    return min(path for path in (folder / "colors" / "1.0.0").iterdir() if f"-{split}." in path.name)


def open_train(folder: Path, name: str = "colors") -> Examples:
    return Examples(dataset_info(name, data_dir=folder), "train")


@pytest.mark.parametrize("name", ["colors", "digist", "cifar10", "imagenet2012"])
@pytest.mark.parametrize("place", ["missing", "empty", "a file", "another set"])
def test_a_folder_without_the_set(name, place, capsys, tmp_path, digits):
    folder = digits if place == "another set" else tmp_path / "data"
    if place == "empty":
        folder.mkdir()
    if place == "a file":
        folder.write_text("")
    words = ["train", "--config=digits", f"--workdir={tmp_path / 'run'}"]
    message = run(capsys, *words, f"--config.data.name={name}", f"--config.data.data_dir={folder}")
    assert message.startswith(f"no data set {name!r} in {folder} (no {folder / name}/VERSION/dataset_info.json)")
    assert (
        f"data sets there: {'digits' if place == 'another set' else 'none'}; make it with: resnet-jax prepare "
        in message
    )
    assert ("did you mean 'digits'?" in message) == (name == "digist")


def test_a_file_of_the_set_that_is_missing(copy):
    path = shard(copy)
    path.unlink()
    with pytest.raises(FileNotFoundError) as error:
        open_train(copy)
    assert str(error.value) == (
        f"data set 'colors': {path} is missing; copy it anew, or remove {path.parent} and make the data set again"
    )
    # What is not needed may be missing.
    assert len(Examples(dataset_info("colors", data_dir=copy), "test")) == 8


def test_all_files_of_the_set_that_are_missing(sets, tmp_path):
    folder = shutil.copytree(sets["tfrecord"], tmp_path / "data")
    for _ in range(2):
        first = shard(folder)
        first.unlink()
    with pytest.raises(FileNotFoundError, match="00000-of-00002 is missing, and so are 1 more of its 2 files; copy"):
        open_train(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: bytes(len(content)),
    ],
    ids=["half", "one byte less", "empty", "zeros"],
)
def test_a_file_of_the_set_that_is_damaged(copy, damage):
    path = shard(copy)
    path.write_bytes(damage(path.read_bytes()))
    assert str(path) in refusal(open_train, copy)


def test_a_file_of_the_set_with_another_number_of_records(copy):
    path = shard(copy)
    path.write_bytes(shard(copy, "test").read_bytes())
    message = refusal(open_train, copy)
    assert str(path) in message and "8 records" in message and "dataset_info.json says" in message


@pytest.mark.parametrize("pipeline", ["resident", "streamed"])
@pytest.mark.parametrize("fault", ["missing", "cut off"])
def test_half_a_set_in_a_run(copy, pipeline, fault, capsys, tmp_path):
    path = shard(copy)
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1000])
    words = ["train", "--config=digits", f"--workdir={tmp_path / 'run'}", "--config.data.name=colors"]
    if pipeline == "streamed":
        # Not even where single images are left out.
        words += ["--config.data.pipeline=streamed", "--config.data.unreadable=skip", "--config.data.image_size=32"]
        words += ["--config.evaluate.short_side=32", "--config.data.short_sides=32,40"]
        words += ["--config.data.normalization=channel_mean"]
    message = run(capsys, *words, f"--config.data.data_dir={copy}", "--config.train.batch_size=8")
    assert str(path) in message


FORBIDDEN = """
import os, sys
from pathlib import Path
from resnet_jax.data.datasets import dataset_info
from resnet_jax.data.examples import Examples

def read(folder):
    examples = Examples(dataset_info("colors", data_dir=folder), "train")
    examples.check_some()

# Once with all rights, so that nothing is left to be imported.
read(sys.argv[1])
Path(sys.argv[2]).chmod(0)
if os.geteuid() == 0:
    os.seteuid(65534)
try:
    read(sys.argv[1])
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("form", ["array_record", "tfrecord"])
@pytest.mark.parametrize("part", [".", "colors/1.0.0", "colors/1.0.0/dataset_info.json", "train"])
def test_a_folder_or_file_without_permission(part, form, sets):
    # Root may read everything: the process becomes nobody, who needs a way to the folder that is open.
    with tempfile.TemporaryDirectory() as temporary:
        Path(temporary).chmod(0o755)
        folder = shutil.copytree(sets[form], Path(temporary, "data"))
        folder.chmod(0o755)
        path = shard(folder) if part == "train" else folder / part
        command = [sys.executable, "-c", FORBIDDEN, str(folder), str(path)]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        finished = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
        path.chmod(0o755)
    assert finished.returncode == 0, finished.stderr
    assert "Permission denied" in finished.stdout or "Could not read dataset info" in finished.stdout
    assert str(path) in finished.stdout


# Weights and workdirs


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A net for the digits' ten classes."""
    path = tmp_path_factory.mktemp("weights") / "digits.safetensors"
    model = resnet_jax.create_model("cifar_resnet8", num_classes=10, width=2)
    variables = resnet_jax.initialize(model, jax.random.key(0), (8, 8, 1))
    input = InputDescription((8, 8, 1), np.zeros(1, np.float32), np.ones(1, np.float32), tuple("0123456789"))
    resnet_jax.save_pretrained(path, model, variables, input=input)
    return path


def test_weights_of_other_classes(weights, sets, capsys, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(to_json(load_config("digits", {"data.name": "colors"})))
    message = run(
        capsys, "evaluate", f"--weights={weights}", f"--config={config}", f"--data_dir={sets['array_record']}"
    )
    assert message.startswith("the net was trained on other classes than those of 'colors' in ")
    assert "10 (0, 1, 2, ...), not 4 (0, 1, 2, ...)" in message


def test_a_workdir_of_another_net(capsys, tmp_path, digits):
    """The first run is stopped at once: it has claimed its workdir, and is refused to another."""
    config = load_config("digits", {"data.data_dir": str(digits)})
    (tmp_path / "config.json").write_text(to_json(config))
    message = run(capsys, "train", "--config=digits:plain20", f"--workdir={tmp_path}")
    assert "model.name: 'cifar_resnet20' there, 'cifar_plain20' now" in message
    assert "choose another workdir, or the same config" in message


def test_weights_that_are_no_weights(capsys, digits, tmp_path, weights):
    text = tmp_path / "notes.safetensors"
    text.write_text("no weights")
    half = tmp_path / "half.safetensors"
    half.write_bytes(weights.read_bytes()[:-100])
    for path in (text, half, tmp_path / "missing.safetensors"):
        message = run(capsys, "evaluate", f"--weights={path}", "--config=digits", f"--data_dir={digits}")
        assert str(path) in message, message
