"""SGD with momentum and coupled weight decay (sections 3.4 and 4.2)."""

import jax
import optax

DECAYED = ("kernels", "all")


def sgd(*, momentum: float, nesterov: bool, weight_decay: float, decay: str) -> optax.GradientTransformation:
    """v = momentum * v + (gradient + weight_decay * w); the step then takes w - learning_rate * v.

    The decay joins the gradient before the momentum, as L2 in the loss would (the paper's Caffe did it so).
    The learning rate is not inside: the step multiplies by it, because a schedule may depend on the errors seen.

    Args:
      momentum: 0.9 in the paper.
      nesterov: look ahead; not in the paper.
      weight_decay: 1e-4 in the paper.
      decay: "kernels" decays convolutions and dense kernels only; "all" also biases, gammas and betas.
        The paper does not say which; the field has done both.

    Raises:
      ValueError: for another `decay`.
    """
    if decay not in DECAYED:
        raise ValueError(f"decay={decay!r} is not one of {', '.join(DECAYED)}")
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=is_kernel if decay == "kernels" else None),
        optax.trace(momentum, nesterov=nesterov),
    )


def is_kernel(params):
    """A tree of booleans: which leaves are kernels of convolutions and dense layers."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
