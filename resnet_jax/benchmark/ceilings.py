"""What the device at hand can do at most: bytes to and from its memory, and multiplications of large matrices."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

# Larger than any cache, and a matrix that keeps all cores or multiprocessors busy.
_ELEMENTS = {"cpu": 2**26, "gpu": 2**29, "tpu": 2**29}
_SIDE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
_WINDOWS, _SECONDS = 5, 0.3


def ceilings(dtype: str) -> dict[str, float]:
    """Measures one device of this process.

    Args:
      dtype: of the matrices.

    Returns:
      "bytes_per_second" of an addition to a large array, in place, read and written; "flop_per_second" of a square
      matrix product. Each the median of a few windows.
    """
    backend = jax.default_backend()
    return {
        "bytes_per_second": _memory(_ELEMENTS.get(backend, 2**26)),
        "flop_per_second": _arithmetic(_SIDE.get(backend, 2048), dtype),
    }


def _memory(elements: int) -> float:
    @partial(jax.jit, donate_argnums=0)
    def add(x):
        return x + 1

    x = jnp.zeros(elements, jnp.float32)

    def run(times: int) -> None:
        nonlocal x
        for _ in range(times):
            x = add(x)
        x.block_until_ready()

    return 2 * x.nbytes * _per_second(run)


def _arithmetic(side: int, dtype: str) -> float:
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (side, side), jnp.dtype(dtype)) for key in keys)
    multiply: Callable[..., Any] = jax.jit(jnp.matmul)

    def run(times: int) -> None:
        for _ in range(times):
            product = multiply(a, b)
        product.block_until_ready()

    return 2 * side**3 * _per_second(run)


def _per_second(run: Callable[[int], None]) -> float:
    """How often a second: the median of a few windows, after one that is not counted."""
    run(1)
    times, seconds = 1, 0.0
    while seconds < _SECONDS:
        times *= 2
        seconds = _timed(run, times)
    return times / statistics.median(_timed(run, times) for _ in range(_WINDOWS))


def _timed(run: Callable[[int], None], times: int) -> float:
    begun = time.perf_counter()
    run(times)
    return time.perf_counter() - begun
