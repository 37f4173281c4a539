"""How every test runs: eight simulated CPU devices, no silent broadcasting, a cache of compiled programs."""

import os

# Read by XLA when jax makes its first device, so they come before the import. A GPU or TPU, where
# there is one, stays out: the tests compare device counts and bits, which only simulated devices allow.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import tempfile
from pathlib import Path

import jax
import pytest

CHECKOUT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Sets up jax before any test module is imported."""
    jax.config.update("jax_numpy_rank_promotion", "raise")
    # Training steps are compiled many times over: a second run of `train` is a new jitted function and the
    # same program. The folder belongs to this process, because jax does not write its entries atomically.
    folder = tempfile.TemporaryDirectory(prefix="resnet_jax_tests_")
    config.add_cleanup(folder.cleanup)
    jax.config.update("jax_compilation_cache_dir", f"{folder.name}/of_the_tests")
    # Of the commands that tests run as processes: nothing of a test is to stay in the user's home.
    os.environ["RESNET_JAX_CACHE"] = f"{folder.name}/resnet_jax"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real TFDS data sets, to be given as `data_dir`; without it the test is skipped."""
    named = os.environ.get("RESNET_JAX_DATA")
    folder = Path(named).resolve() if named else CHECKOUT.parent / "shared" / "data"
    if (folder / "tfds").is_dir():
        return folder / "tfds"
    if named:
        pytest.fail(f"RESNET_JAX_DATA={named}: has no folder tfds")
    pytest.skip(f"needs real images: no {folder / 'tfds'}, and RESNET_JAX_DATA is not set")
