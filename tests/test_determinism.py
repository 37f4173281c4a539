"""What a run promises to repeat is what its backend and its config give; XLA is told what that takes."""

import jax
import pytest

from resnet_jax.config_keys import DETERMINISM
from resnet_jax.training.determinism import check_threads, compiler_options, promises
from resnet_jax.xla_options import backend_options


@pytest.mark.parametrize(
    ("determinism", "backend", "promised"),
    [
        ("default", "cpu", "A and B"),
        ("default", "tpu", "A and B"),
        ("default", "gpu", "B"),
        ("repeatable", "gpu", "A and B"),
        ("topology", "cpu", "A, B and C (NPROC=8)"),
        ("topology", "gpu", "A and B; C is asked for, and shown on CPUs only, not on gpu"),
    ],
)
def test_the_promises_are_those_that_the_backend_keeps(monkeypatch, determinism, backend, promised):
    monkeypatch.setenv("NPROC", "8")
    monkeypatch.setattr("jax.default_backend", lambda: backend)
    assert promises(determinism) == promised


@pytest.mark.parametrize("determinism", DETERMINISM)
def test_gpus_are_told_and_xla_knows_the_options(monkeypatch, determinism):
    on_cpu = compiler_options(determinism)
    assert on_cpu == backend_options() and not any("deterministic" in name for name in on_cpu)
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    options = compiler_options(determinism)
    assert bool(options) == (determinism != "default")
    # XLA refuses names that it does not know, on any backend.
    assert jax.jit(lambda x: x + 1).lower(1).compile(options)(1) == 2


@pytest.mark.parametrize("threads", ["", "7", "many"])
def test_the_threads_that_a_sum_depends_on_must_be_fixed(monkeypatch, threads):
    monkeypatch.setenv("NPROC", threads)
    check_threads("default", 8)
    with pytest.raises(ValueError, match=f"set NPROC .* at least 8, .* found NPROC={threads or 'nothing'}"):
        check_threads("topology", 8)
    monkeypatch.setenv("NPROC", "8")
    check_threads("topology", 8)
