"""The jax-free table of names agrees with the module it describes."""

import re

import pytest

from resnet_jax.models import names
from resnet_jax.models.resnet import ResNet


def test_options_are_the_attributes_of_the_module():
    assert set(names._OPTIONS) == set(ResNet.__dataclass_fields__) - {"parent", "name"}


def test_every_named_setting_is_an_attribute_of_the_module():
    for name in names.list_models():
        assert names.settings_of(name, {}).keys() <= ResNet.__dataclass_fields__.keys(), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": "a"}, "width='a' must be a whole number"),
        ({"width": 1.5}, "width=1.5 must be a whole number"),
        ({"bn_group_size": 0}, "bn_group_size=0 must be a whole number, at least 1"),
        ({"stage_sizes": 3}, "stage_sizes=3 must be positive whole numbers"),
        ({"stage_sizes": (2, 0)}, "must be positive whole numbers"),
        ({"dropout_rate": "x"}, "dropout_rate='x' must be a number in"),
        ({"zero_init_residual": True, "activation_order": "pre"}, "needs activation_order='post'"),
        ({"norm": "frozen", "bn_group_size": 64}, "norm='frozen' is constant"),
        ({"norm": "none", "bn_group_size": 64}, "norm='none' normalizes nothing, so bn_group_size"),
        ({"norm": "skipinit", "zero_init_residual": True}, "norm='skipinit' normalizes nothing"),
        ({"norm": "fixup", "activation_order": "pre"}, "norm='fixup' is defined with activation_order='post' alone"),
        ({"zero_init_residual": True, "activation_order": "norm_after_addition"}, "with 'norm_after_addition' a zero"),
        (
            {"zero_init_residual": True, "activation_order": "relu_before_addition"},
            "with 'relu_before_addition' a zero",
        ),
        ({"stochastic_depth": 1.0}, "stochastic_depth=1.0 must be a number in [0, 1)"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        names.settings_of("cifar_resnet20", options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zero_init_residual": True}, "zero_init_residual needs shortcuts"),
        ({"stochastic_depth": 0.1}, "stochastic_depth needs shortcuts"),
        ({"norm": "skipinit"}, "norm='skipinit' starts branches at zero and needs shortcuts; .* batch, frozen, none"),
        ({"norm": "fixup"}, "norm='fixup' starts branches"),
        (
            {"activation_order": "relu_only_pre"},
            "says where an addition stands, .* there is none; choose 'post' or 'pre'",
        ),
    ],
)
def test_a_plain_net_has_nothing_that_is_of_shortcuts(options, message):
    with pytest.raises(ValueError, match=message):
        names.settings_of("cifar_plain20", options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cifar_plain20", {"norm": "none"}),
        ("cifar_plain20", {"activation_order": "pre"}),
        ("cifar_resnet20", {"activation_order": "relu_only_pre", "zero_init_residual": True}),
        ("cifar_resnet20", {"activation_order": "pre", "norm": "skipinit", "stochastic_depth": 0.5}),
    ],
)
def test_options_that_can_be_meant_are_taken(name, options):
    assert options.items() <= names.settings_of(name, options).items()
