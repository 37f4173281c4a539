"""The ends of the spectrum of a loss's Hessian, from products with vectors: the matrix is never formed."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array

from resnet_jax.diagnostics.lanczos import lanczos_start, lanczos_step, ritz_values


class Extremes(NamedTuple):
    """The smallest and the largest eigenvalue, as far as they are found."""

    smallest: float
    largest: float


def hessian_product(loss: Callable[..., Array], params: Any, vector: Any, *batch: Any) -> Any:
    """The Hessian of loss(params, *batch) times a tree of the form of `params`.

    The gradient of the gradient's component along the vector: the net's layers have no forward derivatives.
    """

    def along(params):
        return optax.tree.vdot(jax.grad(loss)(params, *batch), vector)

    return jax.grad(along)(params)


def make_curvature(
    loss: Callable[..., Array], *, steps: int = 10, compiler_options: Mapping[str, Any] | None = None
) -> Callable[..., Extremes]:
    """Returns the function (key, params, *batch) -> `Extremes` of the loss's Hessian.

    The largest eigenvalue is found from below; ten products come within a few percent of it where it stands apart from
    the others, as it does in nets. A product takes as long as some four to six gradients, and the program of one is
    compiled once.

    Args:
      loss: of parameters and a batch, differentiable twice, see `make_loss`.
      steps: products with the Hessian.
      compiler_options: XLA's.

    Raises:
      ValueError: for steps below 1.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: must be at least 1 product with the Hessian")

    def one(at, params, *batch):
        return lanczos_step(lambda vector: hessian_product(loss, params, vector, *batch), at)

    # Not a loop on the device: a CPU's compiler makes second derivatives of convolutions slow in one.
    step = jax.jit(one, compiler_options=compiler_options)
    start = jax.jit(lambda key, params: lanczos_start(optax.tree.random_like(key, params)))

    def extremes(key: Array, params: Any, *batch: Any) -> Extremes:
        at, found = start(key, params), []
        for _ in range(steps):
            at = step(at, params, *batch)
            found.append((at.diagonal, at.beside))
        values = ritz_values(*zip(*jax.device_get(found), strict=True))
        return Extremes(float(values[0]), float(values[-1]))

    return extremes
