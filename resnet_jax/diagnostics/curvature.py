"""The ends of the spectrum of a loss's Hessian, from products with vectors: the matrix is never formed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
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
    loss: Callable[..., Array],
    *,
    steps: int = 10,
    seed: int = 0,
    sharding: jax.sharding.Sharding | None = None,
    compiler_options: dict[str, Any] | None = None,
) -> Callable[..., Extremes]:
    """Returns the function (params, *batch) -> `Extremes` of the loss's Hessian.

    The largest eigenvalue is found from below; ten products come within a few percent of it where it stands apart from
    the others, as it does in nets. A product takes as long as some four to six gradients, and the program of one is
    compiled once.

    Args:
      loss: of parameters and a batch, differentiable twice, see `make_loss`.
      steps: products with the Hessian.
      seed: of the vector that it begins with, the same at each call.
      sharding: of the parameters on several devices, each of which has all of them.
      compiler_options: XLA's.

    Raises:
      ValueError: for steps below 1.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: must be at least 1 product with the Hessian")

    def one(at, params, *batch):
        return lanczos_step(lambda vector: hessian_product(loss, params, vector, *batch), at)

    # Not a loop on the device: a CPU's compiler makes second derivatives of convolutions slow in one.
    step = jax.jit(one, out_shardings=sharding, compiler_options=dict(compiler_options or {}))
    start = jax.jit(lanczos_start, out_shardings=sharding)

    def extremes(params: Any, *batch: Any) -> Extremes:
        # Drawn by the host: a program that draws for each array is slow to compile.
        random = np.random.default_rng(seed)
        drawn = jax.tree.map(lambda weights: random.standard_normal(weights.shape, np.float32), params)
        at, found = start(drawn), []
        for _ in range(steps):
            at = step(at, params, *batch)
            found.append((at.diagonal, at.beside))
        values = ritz_values(*zip(*jax.device_get(found), strict=True))
        return Extremes(float(values[0]), float(values[-1]))

    return extremes
