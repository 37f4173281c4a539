"""The examples in the docstrings: each does what it says."""

import doctest
import importlib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
WITH_EXAMPLES = [
    ".".join(path.relative_to(CHECKOUT).with_suffix("").parts)
    for path in sorted((CHECKOUT / "resnet_jax").rglob("*.py"))
    if ">>> " in path.read_text()
]


def test_what_people_meet_first_has_examples():
    assert {
        "resnet_jax.config_files",
        "resnet_jax.detection.boxes",
        "resnet_jax.detection.nms",
        "resnet_jax.models.registry",
        "resnet_jax.models.summary",
        "resnet_jax.pretrained.weights",
    } <= set(WITH_EXAMPLES)


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_do_what_they_say(module):
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted > 0
    assert found.failed == 0
