"""The source passes the linter, formatter and type checker; array annotations are checked as tests run."""

import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import jaxtyping
import pytest

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "command",
    ["ruff check --no-cache --output-format=concise", "ruff format --no-cache --check", "mypy"],
    ids=["lint", "format", "types"],
)
def test_source_is_clean(command):
    finished = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=CHECKOUT, capture_output=True, text=True, timeout=600
    )
    if finished.returncode != 0:
        pytest.fail(f"{command}\n{finished.stdout}{finished.stderr}", pytrace=False)


def test_array_annotations_are_checked():
    from resnet_jax.training.losses import cross_entropy_sum

    with pytest.raises(jaxtyping.TypeCheckError, match="labels"):
        cross_entropy_sum(jnp.zeros((3, 10)), jnp.zeros(4, jnp.int32), jnp.ones(3), label_smoothing=0.0)
