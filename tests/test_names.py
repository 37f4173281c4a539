"""The jax-free table of names agrees with the module it describes."""

from resnet_jax.models import names
from resnet_jax.models.resnet import ResNet


def test_options_are_the_attributes_of_the_module():
    assert set(names._OPTIONS) == set(ResNet.__dataclass_fields__) - {"parent", "name"}


def test_every_named_setting_is_an_attribute_of_the_module():
    for name in names.list_models():
        assert names.settings_of(name, {}).keys() <= ResNet.__dataclass_fields__.keys(), name
