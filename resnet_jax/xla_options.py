"""What XLA is told when it compiles programs that train or test nets."""

import functools
from typing import Any

import jax

# XLA hands some work to a library that computes a convolution in one thread, where XLA's own uses all cores; only for
# reductions is it faster.
_OF_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def backend_options() -> dict[str, Any]:
    """Of the default backend, for speed; an option that this version of XLA does not know is left out."""
    if jax.default_backend() != "cpu":
        return {}
    return {name: value for name, value in _OF_CPU.items() if _is_known(name)}


@functools.cache
def _is_known(name: str) -> bool:
    try:
        jax.jit(lambda: 0).lower().compile({name: _OF_CPU[name]})
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" in str(error):
            return False
        raise
    return True
