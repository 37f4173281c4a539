"""What a localizer starts with: the logits of its classes, and a trained net's layers."""

import math

import jax.numpy as jnp


def starting_bias(num_classes: int) -> float:
    """The logit of 1 / (2 num_classes), a class's share of what is sampled where half has an object of some class."""
    return -math.log(2 * num_classes - 1)


def with_trunk(variables: dict, net_variables: dict) -> dict:
    """The variables of a `PerClassRpn` or a `RegionNet` that goes on from a trained net: its layers but the classifier.

    Args:
      variables: of the localizer, from `init`.
      net_variables: {"params", "batch_stats"} of the classification net.

    Raises:
      ValueError: the net has not the trunk's layers and shapes.
    """
    found = {}
    for collection, tree in variables.items():
        own = {name: value for name, value in net_variables.get(collection, {}).items() if name != "classifier"}
        shapes, wanted = (_shapes(each) for each in (own, tree.get("trunk", {})))
        if shapes != wanted:
            different = sorted(set(shapes.items()) ^ set(wanted.items()))
            raise ValueError(f"the net's {collection} are not those of the trunk; the first to differ: {different[0]}")
        found[collection] = tree | ({"trunk": own} if own else {})
    return found


def _shapes(tree: dict, path: str = "") -> dict[str, tuple[int, ...]]:
    """The shape of each array by its names joined with slashes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, value in tree.items():
        shapes |= _shapes(value, f"{path}{name}/") if isinstance(value, dict) else {f"{path}{name}": jnp.shape(value)}
    return shapes
