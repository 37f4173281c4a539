"""Which results a run repeats bit for bit, and what the compiler is told for it. The README has the three promises."""

import os
from typing import Any

import jax

from resnet_jax.xla_options import backend_options

# How many threads XLA has on a CPU; without it, as many as there are cores or devices of the process.
_THREADS = "NPROC"


def compiler_options(determinism: str) -> dict[str, Any]:
    """What XLA is told when it compiles a run's steps."""
    # Of all backends only GPUs have operations that round differently each time. The option turns the choice of
    # kernels by their speed off as well, which differs between two starts.
    needed = determinism != "default" and jax.default_backend() == "gpu"
    return backend_options() | ({"xla_gpu_deterministic_ops": True} if needed else {})


def promises(determinism: str) -> str:
    """The promises that a run has on the devices at hand, e.g. "A and B"."""
    backend = jax.default_backend()
    if determinism == "topology":
        if backend == "cpu":
            return f"A, B and C ({_THREADS}={os.environ.get(_THREADS)})"
        return f"A and B; C is asked for, and shown on CPUs only, not on {backend}"
    return "B" if determinism == "default" and backend == "gpu" else "A and B"


def check_threads(determinism: str, devices: int) -> None:
    """Raises ValueError where promise C is asked for and nothing fixes the threads, on which a CPU's sums depend.

    Args:
      determinism: of the config.
      devices: CPU devices of a process.
    """
    threads = os.environ.get(_THREADS, "")
    if determinism != "topology":
        return
    if not threads.isdecimal() or int(threads) < devices:
        raise ValueError(
            "train.determinism=topology: on a CPU sums depend on the number of threads, so set "
            f"{_THREADS} to one number on all hosts and for all runs that are to be the same, at least {devices}, the "
            "devices of a process here; "
            f"found {_THREADS}={threads or 'nothing'}"
        )
