"""Nets by name, and their initialisation."""

import jax
import jax.numpy as jnp

from resnet_jax.models.arrangements import NORMALIZING
from resnet_jax.models.names import list_models, settings_of
from resnet_jax.models.resnet import ResNet

__all__ = ["create_model", "initialize", "list_models", "name_of"]


def create_model(name: str, **options) -> ResNet:
    """Returns the net of that name.

    Args:
      name: one of `list_models()`, or `cifar_resnetN` and `cifar_plainN` of any depth N = 6n + 2, or N = 9n + 2 with
        `block="bottleneck"`.
      **options: attributes of `ResNet` that differ from the named net's, e.g. `num_classes`, `shortcut`, `dtype`
        (a dtype or its name), `stage_sizes` for another depth; None keeps what the name says, except for
        num_classes, where it leaves the classifier out.

    Returns:
      A linen module; `initialize` makes its variables.

    Raises:
      ValueError: for an unknown name or option, a value that is not among the choices, or options that
        contradict each other.

    Example:
      >>> model = create_model("cifar_resnet20", num_classes=100, shortcut="B")
      >>> model.stage_sizes, model.num_classes, model.shortcut
      ((3, 3, 3), 100, 'B')
      >>> create_model("cifar_resnet21")
      Traceback (most recent call last):
      ...
      ValueError: cifar_resnet21: a CIFAR net of basic blocks has 6n + 2 layers; the nearest depths are 20 and 26
    """
    dtype = options.get("dtype")
    if dtype is not None and not isinstance(dtype, str):
        options["dtype"] = jnp.dtype(dtype).name
    settings = settings_of(name, options)
    return ResNet(**{**settings, "dtype": jnp.dtype(settings["dtype"])})


def initialize(model: ResNet, key: jax.Array, image_shape: tuple[int, int, int]) -> dict:
    """Makes a net's variables without running it on images: seconds where a jitted `init` of 110 layers takes minutes.

    Args:
      model: the net.
      key: a PRNG key; each parameter's own key is derived from it by the parameter's name.
      image_shape: (height, width, channels) of the images.

    Returns:
      {"params", "batch_stats"}, equal to what `model.init` gives.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return dict(model.lazy_init(key, images, train=False))


def name_of(model: ResNet) -> str | None:
    """The name that `create_model` knows the net by, whatever its classes and numerics; None if it is none of those."""
    if model.norm not in NORMALIZING:
        return None
    names = list_models()
    if model.stem == "cifar":
        family = "plain" if model.shortcut is None else "resnet"
        names.append(f"cifar_{family}{6 * model.stage_sizes[0] + 2}")
    free = ("num_classes", "dtype")
    for name in names:
        named = {"stride_in": "1x1", "activation_order": "post", **settings_of(name, {})}
        if all(getattr(model, key) == value for key, value in named.items() if key not in free):
            return name
    return None
