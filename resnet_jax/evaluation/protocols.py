"""How the scores of an image come about: the paper's test protocols by name."""

from collections.abc import Callable

import jax
from flax import linen as nn
from jaxtyping import Array, Float


def center(model: nn.Module, variables: dict, images: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
    """The logits of the single centre view; of the original image for CIFAR (section 4.2)."""
    logits = model.apply(variables, images, train=False)
    assert isinstance(logits, jax.Array)
    return logits


PROTOCOLS: dict[str, Callable[..., jax.Array]] = {"center": center}


def protocol_named(name: str) -> Callable[..., jax.Array]:
    """The protocol of that name; ValueError lists them."""
    if name not in PROTOCOLS:
        raise ValueError(f"protocol={name!r} is not one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
