"""Bad configs stop with the key, the value and what is allowed; good ones become exact step counts."""

import math
from pathlib import Path

import pytest
from ml_collections import FrozenConfigDict

from resnet_jax import config as configs


def changed(**values):
    """The base config with `section__key=value` changed."""
    config = configs.base_config()
    for name, value in values.items():
        section, _, key = name.partition("__")
        config[section][key] = value
    return config


def resolved_steps(*, train_examples=50_000, device_count=1, **values):
    return configs.resolve(changed(**values), train_examples=train_examples, device_count=device_count).steps


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
        ({"train__most_skipped": 5}, "train.most_skipped=5: needs train.non_finite=skip, not stop"),
        ({"train__determinism": "topology"}, "train.determinism=topology: needs model.bn_group_size"),
        ({"train__determinism": "topology", "model__norm": "frozen"}, "groups, which model.norm=frozen has not"),
        (
            {"train__determinism": "topology", "model__bn_group_size": 8, "schedule__name": "plateau"},
            "train.determinism=topology: not with schedule.name=plateau",
        ),
        ({"train__slices": 2}, "train.slices=2: needs train.sharding=optimizer or parameters, not none"),
        (
            {"train__determinism": "topology", "model__bn_group_size": 8, "train__sharding": "optimizer"},
            "train.sharding=optimizer: must be none with train.determinism=topology",
        ),
        (
            {"train__determinism": "topology", "model__bn_group_size": 8, "train__accumulation_steps": 2},
            "train.accumulation_steps=2: must be 1 with train.determinism=topology",
        ),
        ({"model__bn_group_size": 256}, "nearest that are: 256"),
        ({"train__duration": 64_000.5}, "train.duration=64000.5: must be whole in steps"),
        ({"data__validation_split": "test"}, "must share no image"),
        ({"data__test_split": "train"}, "must share no image"),
        ({"data__validation_split": "train[45000:]"}, "must share no image"),
        ({"data__validation_split": "train[90%:]"}, "must share no image"),
        (
            {"data__train_split": "train[:90%]", "data__validation_split": "train[80%:]"},
            "must share no image",
        ),
        (
            {"data__train_split": "train[:9]", "data__validation_split": "extra+train[8:]"},
            "must share no image",
        ),
        ({"model__name": "cifar_resent20"}, "did you mean 'cifar_resnet20'?"),
        ({"model__name": "cifar_resnet21"}, "the nearest depths are 20 and 26"),
        ({"model__name": "cifar_plain20", "model__shortcut": "A"}, "cifar_plain20 has no shortcuts"),
        ({"model__stride_in": "3x3"}, "cifar_resnet20 has basic blocks"),
        ({"model__activation_order": "pre", "model__zero_init_residual": True}, "zero_init_residual needs"),
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
        {"model__name": "cifar_plain26"},
        {"model__name": "resnet50", "model__stride_in": "3x3", "model__shortcut": "C"},
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
        "diagnose_every": 0,
        "train_examples": 50_000,
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
    with pytest.raises(ValueError, match="batch_size=100: not divisible by devices=8; nearest that are: 96 and 104"):
        resolved_steps(train__batch_size=100, device_count=8)
    with pytest.raises(ValueError, match="devices=3 and model.bn_group_size=64; nearest that are: 192"):
        resolved_steps(model__bn_group_size=64, device_count=3)
    # No group is split.
    with pytest.raises(ValueError, match="devices x model.bn_group_size=256; nearest that are: 256"):
        resolved_steps(model__bn_group_size=64, train__determinism="topology", device_count=4)


def test_resolve_refuses_a_batch_the_split_cannot_fill():
    with pytest.raises(ValueError, match="train.batch_size=128: more than the 100 images of data.train_split='train'"):
        resolved_steps(train_examples=100)


def test_resolve_checks_freezes_and_can_be_repeated():
    with pytest.raises(ValueError, match=r"schedule\.name"):
        resolved_steps(schedule__name="linear")
    config = configs.resolve(changed(schedule__learning_rate=1), train_examples=50_000, device_count=8)
    assert isinstance(config, FrozenConfigDict)
    assert config.schedule.learning_rate == 1 and type(config.schedule.learning_rate) is float
    with pytest.raises(AttributeError):
        config.train.batch_size = 1
    assert configs.resolve(config, train_examples=50_000, device_count=8) == config


def test_differing_keys_are_all_named():
    other = changed(train__batch_size=64, schedule__boundaries=(1, 2))
    other.seed = 1
    del other.data.pad
    expected = ["data.pad", "schedule.boundaries", "seed", "train.batch_size"]
    assert configs.differing_keys(configs.base_config(), other) == expected
    assert configs.differing_keys(other, configs.base_config()) == expected
