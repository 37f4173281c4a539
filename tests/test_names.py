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
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        names.settings_of("cifar_resnet20", options)


def test_a_plain_net_cannot_start_at_zero():
    with pytest.raises(ValueError, match="zero_init_residual needs shortcuts"):
        names.settings_of("cifar_plain20", {"zero_init_residual": True})
