"""Bad configs stop with the key, the value and what is allowed; good ones become exact step counts."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from resnet_jax import config as configs

CHECKOUT = Path(__file__).resolve().parent.parent


def changed(**values):
    """The base config with `section__key=value` changed."""
    config = configs.base_config()
    for name, value in values.items():
        section, _, key = name.partition("__")
        config[section][key] = value
    return config


def resolved_steps(*, train_examples=50_000, device_count=1, **values):
    return configs.resolve(changed(**values), train_examples=train_examples, device_count=device_count).steps


# The table and overrides


@pytest.mark.parametrize("key", configs.KEYS)
def test_a_default_is_allowed_and_its_text_reads_as_itself(key):
    default = configs.KEYS[key].default
    value = configs.parse_value(key, str(default))
    assert value == default and type(value) is type(default)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.duration", "64_000", 64_000),
        ("train.duration", "81.92", 81.92),
        ("optimizer.weight_decay", "0", 0.0),
        ("optimizer.weight_decay", "5e-4", 0.0005),
        ("schedule.boundaries", "(1,2)", (1, 2)),
        ("schedule.boundaries", "1, 2.5,", (1, 2.5)),
        ("model.bn_group_size", "none", None),
        ("model.scan", "True", True),
        ("model.scan", "false", False),
        ("schedule.warmup", "none", "none"),
        ("data.train_split", "train[:45000]", "train[:45000]"),
    ],
)
def test_an_override_is_read_by_its_keys_type(key, text, value):
    read = configs.parse_value(key, text)
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("train.batch_size", "-3", "train.batch_size=-3: must be an integer at least 1"),
        ("train.batch_size", "1e3", "train.batch_size=1e3: must be an integer"),
        ("train.batch_size", "12.5", "must be an integer"),
        ("train.batch_size", "None", "must be an integer"),
        ("schedule.learning_rate", "nan", "schedule.learning_rate=nan: must be a finite number above 0"),
        ("schedule.learning_rate", "inf", "must be a finite number"),
        ("schedule.learning_rate", "0", "above 0"),
        ("schedule.boundaries", "1,inf", "a tuple of finite numbers"),
        ("schedule.boundaries", "0,10", "above 0"),
        ("optimizer.momentum", "1", "below 1"),
        ("model.scan", "1", "model.scan=1: must be true or false"),
        ("model.name", "", "model.name=: must be a name"),
        ("data.name", "None", "must be a name"),
        ("model.shortcut", "b", "one of A, B, C, None; did you mean B?"),
        ("schedule.name", "cosin", "did you mean cosine?"),
        ("train.unit", "epoch", "one of steps, epochs, examples; did you mean epochs?"),
    ],
)
def test_a_bad_value_is_refused_with_what_is_allowed(key, text, message):
    with pytest.raises(ValueError) as error:
        configs.parse_value(key, text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("train.bacth_size", "train.batch_size"),
        ("optimzer.momentum", "optimizer.momentum"),
        ("optimizer.learning_rate", "schedule.learning_rate"),
        ("learning_rate", "schedule.learning_rate"),
        ("schedule.momentum", "optimizer.momentum"),
        ("train.width", "model.width"),
        ("sed", "seed"),
        ("schedule.boundary", "schedule.boundaries"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(key, nearest):
    with pytest.raises(ValueError, match=f"unknown config key {key}; did you mean {nearest}"):
        configs.parse_value(key, "1")


def test_a_section_is_not_a_key():
    with pytest.raises(ValueError, match="optimizer is a section; its keys: momentum, nesterov"):
        configs.parse_value("optimizer", "1")


# Whole configs


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train__batch_size": True}, "train.batch_size=True: must be an integer"),
        ({"train__batch_size": 128.0}, "must be an integer"),
        ({"train__batch_size": None}, "must be an integer"),
        ({"optimizer__momentum": "0.9"}, "optimizer.momentum=0.9: must be a finite number"),
        ({"optimizer__momentum": math.nan}, "must be a finite number"),
        ({"model__scan": 1}, "must be true or false"),
        ({"schedule__boundaries": 100}, "a tuple of finite numbers"),
        ({"schedule__factr": 0.1}, "unknown config key schedule.factr; did you mean schedule.factor?"),
        ({"data__data_dir": Path("data")}, "data.data_dir=data: must be a name, or None"),
        ({"schedule__boundaries": ()}, "schedule.boundaries"),
        ({"schedule__boundaries": (48_000, 32_000)}, "must be strictly increasing"),
        ({"schedule__boundaries": (32_000, 32_000)}, "must be strictly increasing"),
        ({"train__duration": 48_000}, "must be below the 48000 steps of train.duration=48000 steps"),
        ({"schedule__unit": "percent", "schedule__boundaries": (50, 100)}, "must be below the 64000 steps"),
        ({"schedule__warmup": "linear"}, "needs schedule.warmup_duration above 0"),
        ({"schedule__warmup_duration": 5}, "needs schedule.warmup=linear, not none"),
        (
            {"schedule__warmup": "linear", "schedule__warmup_duration": 32_000},
            "the first boundary, step 32000",
        ),
        (
            {"schedule__name": "cosine", "schedule__warmup": "linear", "schedule__warmup_duration": 64_000},
            "must be below the 64000 steps",
        ),
        ({"optimizer__nesterov": True, "optimizer__momentum": 0.0}, "optimizer.nesterov=True"),
        (
            {"model__bn_group_size": 50},
            "not divisible by model.bn_group_size=50; nearest that are: 100 and 150",
        ),
        ({"model__bn_group_size": 256}, "nearest that are: 256"),
        ({"train__duration": 64_000.5}, "train.duration=64000.5: must be whole in steps"),
        ({"data__validation_split": "test"}, "must share no image"),
        ({"data__test_split": "train"}, "must share no image"),
        ({"data__validation_split": "train[45000:]"}, "must share no image"),
        (
            {"data__train_split": "train[:90%]", "data__validation_split": "train[80%:]"},
            "must share no image",
        ),
        (
            {"data__train_split": "train[:9]", "data__validation_split": "extra+train[8:]"},
            "must share no image",
        ),
    ],
)
def test_check_refuses(values, message):
    with pytest.raises(ValueError) as error:
        configs.check(changed(**values))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"schedule__boundaries": [32_000, 48_000]},
        {"schedule__learning_rate": 1},
        {"data__train_split": "train[:45000]", "data__validation_split": "train[45000:]"},
        {"data__train_split": "train[:90%]+extra", "data__validation_split": "train[90%:]"},
        {"data__train_split": "train[10%:]", "data__validation_split": "train[:500]"},
        {"schedule__name": "constant", "train__duration": 10},
        {"schedule__warmup": "until_error"},
    ],
)
def test_check_lets_pass(values):
    configs.check(changed(**values))


def test_check_names_a_missing_key():
    config = configs.base_config()
    del config.data.pad
    with pytest.raises(ValueError, match=r"missing key data\.pad"):
        configs.check(config)


def test_a_section_that_is_no_section_is_refused():
    config = configs.base_config()
    config.schedule = "cosine"
    with pytest.raises(ValueError, match="schedule is a section"):
        configs.check(config)


# Steps


def test_steps_are_as_they_were_given():
    assert resolved_steps().to_dict() == {
        "total": 64_000,
        "warmup": 0,
        "boundaries": (32_000, 48_000),
        "evaluate_every": 1000,
        "checkpoint_every": 1000,
    }


def test_epochs_give_the_papers_steps():
    # 64k steps of 128 images are 163.84 passes over 50,000 images, the drops after 81.92 and 122.88.
    steps = resolved_steps(
        train__unit="epochs",
        train__duration=163.84,
        schedule__unit="epochs",
        schedule__boundaries=(81.92, 122.88),
        evaluate__every=1,
        checkpoint__every=0.0001,
    )
    assert (steps.total, steps.boundaries) == (64_000, (32_000, 48_000))
    assert (steps.evaluate_every, steps.checkpoint_every) == (391, 1)


def test_units_may_differ():
    steps = resolved_steps(
        train_examples=1280,
        train__unit="examples",
        train__duration=12_800,
        schedule__unit="percent",
        schedule__boundaries=(50, 75.5),
        schedule__warmup="linear",
        schedule__warmup_duration=2.5,
        evaluate__every=1280,
    )
    assert (steps.total, steps.boundaries, steps.warmup, steps.evaluate_every) == (100, (50, 76), 2, 10)
    steps = resolved_steps(train_examples=1280, schedule__unit="epochs", schedule__boundaries=(1, 4))
    assert (steps.total, steps.boundaries) == (64_000, (10, 40))


@pytest.mark.parametrize("name", ["constant", "cosine", "plateau"])
def test_only_piecewise_has_boundaries(name):
    assert resolved_steps(schedule__name=name, train__duration=100).boundaries == ()


def test_boundaries_in_epochs_are_checked_once_the_images_are_counted():
    config = changed(train__duration=100, schedule__unit="epochs", schedule__boundaries=(1, 2))
    configs.check(config)
    with pytest.raises(ValueError, match=r"epochs \(steps \(391, 781\)\): must be below the 100 steps"):
        configs.resolve(config, train_examples=50_000, device_count=1)


def test_resolve_refuses_a_batch_the_devices_cannot_share():
    with pytest.raises(
        ValueError, match="batch_size=100: not divisible by devices=8; nearest that are: 96 and 104"
    ):
        resolved_steps(train__batch_size=100, device_count=8)
    with pytest.raises(ValueError, match="devices=3 and model.bn_group_size=64; nearest that are: 192"):
        resolved_steps(model__bn_group_size=64, device_count=3)


def test_resolve_refuses_a_batch_the_split_cannot_fill():
    with pytest.raises(
        ValueError, match="train.batch_size=128: more than the 100 images of data.train_split='train'"
    ):
        resolved_steps(train_examples=100)


def test_resolve_checks_freezes_and_can_be_repeated():
    with pytest.raises(ValueError, match=r"schedule\.name"):
        resolved_steps(schedule__name="linear")
    given = configs.from_json(configs.to_json(configs.base_config()).replace('rate": 0.1', 'rate": 1'))
    config = configs.resolve(given, train_examples=50_000, device_count=8)
    assert isinstance(config, FrozenConfigDict)
    assert config.schedule.learning_rate == 1 and type(config.schedule.learning_rate) is float
    with pytest.raises(AttributeError):
        config.train.batch_size = 1
    assert configs.resolve(config, train_examples=50_000, device_count=8) == config


# Comparing and storing


def test_json_gives_the_same_values_and_types():
    config = configs.resolve(changed(optimizer__weight_decay=1 / 3), train_examples=50_000, device_count=1)
    again = configs.from_json(configs.to_json(config))
    assert again.to_dict() == config.to_dict()
    assert repr(again) == repr(ConfigDict(config))
    assert configs.differing_keys(again, config) == []
    assert configs.to_json(again) == configs.to_json(config)


def test_json_is_an_object_of_finite_numbers():
    with pytest.raises(ValueError, match="not list"):
        configs.from_json("[1]")
    with pytest.raises(ValueError):
        configs.to_json(changed(optimizer__momentum=math.nan))


def test_differing_keys_are_all_named():
    other = changed(train__batch_size=64, schedule__boundaries=(1, 2))
    other.seed = 1
    del other.data.pad
    expected = ["data.pad", "schedule.boundaries", "seed", "train.batch_size"]
    assert configs.differing_keys(configs.base_config(), other) == expected
    assert configs.differing_keys(other, configs.base_config()) == expected


# Config files

SMALL = """
from resnet_jax.config import base_config
def get_config(variant="a"):
    config = base_config()
    config.data.name = variant
    return config
"""


def write(folder, source, name="small.py"):
    path = folder / name
    path.write_text(source)
    return str(path)


def test_a_config_file_is_run_with_its_variant_and_overrides(tmp_path):
    path = write(tmp_path, SMALL)
    assert configs.load_config(path).data.name == "a"
    config = configs.load_config(f"{path}:b", {"train.batch_size": "64", "seed": "3"})
    assert (config.data.name, config.train.batch_size, config.seed) == ("b", 64, 3)


def test_a_stored_config_is_loaded_again(tmp_path):
    stored = configs.resolve(changed(data__name="c"), train_examples=50_000, device_count=1)
    path = write(tmp_path, configs.to_json(stored), "config.json")
    config = configs.load_config(path, {"train.log_every": "7"})
    assert (config.data.name, config.train.log_every, "steps" in config) == ("c", 7, False)
    with pytest.raises(ValueError, match="has no variants"):
        configs.load_config(f"{path}:a")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (SMALL.replace("data.name", "data.nmae"), "unknown config key data.nmae; did you mean data.name"),
        (SMALL.replace("config.data.name", "config.dta.name"), 'small.py: .*Did you mean "data"'),
        (SMALL.replace("variant\n", "3\n"), "data.name=3: must be a name"),
        (SMALL.replace("get_config", "make_config"), "defines no get_config"),
        (SMALL.replace("return config", "return None"), "gave NoneType"),
        (
            SMALL.replace("= base_config()", "= base_config(); del config.optimizer"),
            "missing key optimizer.momentum",
        ),
    ],
)
def test_a_wrong_config_file_is_refused(tmp_path, source, message):
    with pytest.raises(ValueError, match=message):
        configs.load_config(write(tmp_path, source), {"optimizer.momentum": "0.5"})


def test_a_file_without_variants_takes_none(tmp_path):
    path = write(tmp_path, SMALL.replace('variant="a"', "").replace("= variant", '= "only"'))
    assert configs.load_config(path).data.name == "only"
    with pytest.raises(ValueError, match="takes no variant"):
        configs.load_config(f"{path}:b")


@pytest.mark.parametrize("reference", ["digits", "digits.py", "configs/digits.py", "configs/digits:resnet20"])
def test_an_installed_config_is_found_by_name(reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configs.load_config(reference).model.name == "cifar_resnet20"


def test_a_wheel_carries_its_configs_inside_the_package(tmp_path, monkeypatch):
    (tmp_path / "resnet_jax" / "configs").mkdir(parents=True)
    write(tmp_path / "resnet_jax" / "configs", SMALL, "inside.py")
    monkeypatch.setattr(configs, "__file__", str(tmp_path / "resnet_jax" / "config.py"))
    assert configs.load_config("inside").data.name == "a"


@pytest.mark.parametrize(
    "reference", ["digit", "digits.txt", "elsewhere/digits.py", "configs/digit.py:resnet20"]
)
def test_a_missing_config_is_answered_with_the_installed_ones(reference):
    with pytest.raises(FileNotFoundError, match="did you mean 'digits'.*Installed configs: cifar10, digits"):
        configs.load_config(reference)


def test_a_file_that_is_no_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a config is a Python file"):
        configs.load_config(write(tmp_path, "seed: 1", "small.yaml"))


def test_importing_takes_no_jax_and_under_a_second():
    code = """
import sys, time
start = time.perf_counter()
import resnet_jax.config
print(time.perf_counter() - start, sorted({"jax", "flax", "tensorflow"} & set(sys.modules)))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    seconds, _, heavy = run.stdout.strip().partition(" ")
    assert float(seconds) < 1 and heavy == "[]"
