"""Optimizers: SGD with momentum and coupled weight decay (sections 3.4 and 4.2), and LAMB for large batches."""

from collections.abc import Callable, Sequence

import jax
import optax

DECAYED = ("kernels", "all")


def sgd(
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    decay: str,
    clip_norm: float | None = None,
    constant: Sequence[str] = (),
) -> optax.GradientTransformation:
    """v = momentum * v + (gradient + weight_decay * w); the step then takes w - learning_rate * v.

    The decay joins the gradient before the momentum, as L2 in the loss would (the paper's Caffe did it so).
    The learning rate is not inside: the step multiplies by it, because a schedule may depend on the errors seen.

    Args:
      momentum: 0.9 in the paper.
      nesterov: look ahead; not in the paper.
      weight_decay: 1e-4 in the paper.
      decay: "kernels" decays convolutions and dense kernels only; "all" also biases, gammas and betas.
        The paper does not say which; the field has done both.
      clip_norm: scale the gradient down to this norm over all parameters where it is larger; not in the paper.
      constant: beginnings of the names of layers, as "trunk/stage1", that get no gradient, and so are not to decay.

    Raises:
      ValueError: for another `decay`, or a `clip_norm` that is not above 0.
    """
    return optax.chain(
        *_clip(clip_norm),
        optax.add_decayed_weights(weight_decay, mask=_decayed(decay, constant)),
        optax.trace(momentum, nesterov=nesterov),
    )


def lamb(
    *,
    momentum: float,
    weight_decay: float,
    decay: str,
    clip_norm: float | None = None,
    nesterov: bool = False,
    constant: Sequence[str] = (),
) -> optax.GradientTransformation:
    """Adam's direction plus weight_decay * w, each array's scaled to the norm of its w (You et al. 2020, LAMB).

    As in timm, with which "ResNet strikes back" (Wightman et al. 2021) trained: bias correction, epsilon 1e-6 outside
    of the root, second moments averaged with 0.999, decay added before the scaling, and no scaling of arrays that do
    not decay; timm clips with norm 1 unless told otherwise. Arrays of norm 0 are not scaled. As with `sgd`, the
    learning rate is not inside.

    Args:
      momentum: weight of the old value in the average of gradients; 0.9 in timm.
      weight_decay: 0.01 to 0.02 in "ResNet strikes back".
      decay: "kernels" decays and scales convolutions and dense kernels only; "all" also biases, gammas and betas.
      clip_norm: scale the gradient down to this norm over all parameters where it is larger.
      nesterov: must be False; here because `sgd` has it.
      constant: as of `sgd`.

    Raises:
      ValueError: for another `decay`, a `clip_norm` that is not above 0, or nesterov=True.
    """
    if nesterov:
        raise ValueError("nesterov=True: lamb has no such form; set False, or choose sgd")
    mask = _decayed(decay, constant)
    ratio = optax.scale_by_trust_ratio()
    return optax.chain(
        *_clip(clip_norm),
        optax.scale_by_adam(b1=momentum, b2=0.999, eps=1e-6),
        optax.add_decayed_weights(weight_decay, mask=mask),
        ratio if mask is None else optax.masked(ratio, mask),
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"sgd": sgd, "lamb": lamb}


def optimizer_named(name: str, **settings) -> optax.GradientTransformation:
    """The optimizer of that name in `OPTIMIZERS`, with its settings.

    Raises:
      ValueError: for another name, or settings that the optimizer refuses.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer={name!r} is not one of {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name](**settings)


def is_kernel(params):
    """A tree of booleans: which leaves are kernels of convolutions and dense layers."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _decayed(decay: str, constant: Sequence[str]):
    """The mask of the parameters that decay; None is all."""
    if decay not in DECAYED:
        raise ValueError(f"decay={decay!r} is not one of {', '.join(DECAYED)}")
    if not constant:
        return is_kernel if decay == "kernels" else None

    def mask(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: (
                (decay == "all" or path[-1].key == "kernel")
                and not "/".join(part.key for part in path).startswith(tuple(constant))
            ),
            params,
        )

    return mask


def _clip(clip_norm: float | None) -> list[optax.GradientTransformation]:
    if clip_norm is None:
        return []
    if not clip_norm > 0:
        raise ValueError(f"clip_norm={clip_norm}: choose a norm above 0, or None for no clipping")
    return [optax.clip_by_global_norm(clip_norm)]
