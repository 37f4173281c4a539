"""Convolutions on a CPU use all cores, and an option that XLA does not know stops nobody."""

import jax
import jax.numpy as jnp
import pytest

from resnet_jax import xla_options
from resnet_jax.xla_options import backend_options


@pytest.fixture(autouse=True)
def forgotten():
    xla_options._is_known.cache_clear()
    yield
    xla_options._is_known.cache_clear()


def test_a_cpu_s_convolutions_stay_xla_s_own():
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((128, 16, 16, 32), (3, 3, 32, 32))]

    def convolve(images, kernel):
        return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    text = jax.jit(convolve).lower(*shapes).compile(backend_options()).as_text()
    assert "convolution" in text and "ynn" not in text


def test_other_backends_are_told_nothing(monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "tpu")
    assert backend_options() == {}


def test_an_unknown_option_is_left_out(monkeypatch):
    monkeypatch.setattr(xla_options, "_OF_CPU", {"xla_cpu_of_the_past": ""})
    assert backend_options() == {}


def test_a_wrong_value_is_an_error(monkeypatch):
    monkeypatch.setattr(xla_options, "_OF_CPU", {"xla_cpu_multi_thread_eigen": "perhaps"})
    with pytest.raises(jax.errors.JaxRuntimeError):
        backend_options()
