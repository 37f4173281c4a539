"""A key's text is read by its type; a bad value or name is answered with what is allowed or nearest."""

import pytest

from resnet_jax.config_keys import KEYS, parse_value
from resnet_jax.config_rules import nearest, unknown


@pytest.mark.parametrize("key", KEYS)
def test_a_default_is_allowed_and_its_text_reads_as_itself(key):
    default = KEYS[key].default
    value = parse_value(key, str(default))
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
    read = parse_value(key, text)
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
        parse_value(key, text)
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
        parse_value(key, "1")


def test_a_section_is_not_a_key():
    with pytest.raises(ValueError, match="optimizer is a section; its keys: name, momentum, nesterov"):
        parse_value("optimizer", "1")


def test_an_unknown_name_is_answered_with_the_nearest_whatever_its_capitals():
    assert nearest("RESNET2", ["plain20", "resnet20"]) == "resnet20"
    message = "unknown variant 'RESNET2'; did you mean 'resnet20'? Allowed: plain20, resnet20"
    assert unknown("variant", "RESNET2", ["plain20", "resnet20"]) == message
