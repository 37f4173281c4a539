"""Values of a net's tensors, from PyTorch's libraries' arrangement to ours and back."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from resnet_jax.models.resnet import ResNet
from resnet_jax.pretrained.pytorch.torch_layout import Place, Spelling, norm_names, places, stage_filters
from resnet_jax.pretrained.stored_tensor import StoredTensor


@dataclass(frozen=True)
class TorchNet:
    """A net that was found in someone else's tensors.

    Attributes:
      model: the net.
      spelling: of their names.
      channels: of the images.
    """

    model: ResNet
    spelling: Spelling
    channels: int


def read_variables(net: TorchNet, tensors: Mapping[str, StoredTensor]) -> dict:
    """Our variables of their tensors, read one by one, so that memory holds the result and one tensor.

    Kernels go from OIHW to HWIO and from (out, in) to (in, out), everything to float32.

    Shortcuts without parameters (option A) fill up new channels with zeros, the public CIFAR nets one half before and
    one half after the old ones, ours all of them after. This is only another order of the channels that pass from
    block to block. So each stage's are put in our order wherever they are written (a block's last convolution and
    normalization) or read (a block's first convolution, the classifier), and the function stays the same.

    Args:
      net: from `infer_torch` or `infer_huggingface` of the same tensors, which has checked names, shapes and dtypes.
      tensors: by their names.

    Returns:
      {"params", "batch_stats"} of numpy arrays, float32.

    Raises:
      ValueError: a value is finite, but not in float32, or a variance is negative or not finite.
    """
    orders = channel_orders(net.model) if net.model.shortcut == "A" else None
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for place in places(net.model, net.spelling, net.channels):
        value = _as_float32(place.name, tensors[place.name].read())
        if place.path[-1] == "var" and not (right := (value >= 0) & (value < np.inf)).all():
            raise ValueError(f"tensor {place.name} has the variance {value[~right][0]:g}; it must be finite and >= 0")
        if orders is not None:
            value = _reorder(value, place, orders)
        value = _to_ours(value)
        parent = variables
        for key in place.path[:-1]:
            parent = parent.setdefault(key, {})
        if place.stack is None:
            # The format may have given more than the values, or read-only memory.
            parent[place.path[-1]] = np.array(value, order="C")
        else:
            index, count = place.stack
            parent.setdefault(place.path[-1], np.empty((count, *value.shape), np.float32))[index] = value
    return variables


def torch_tensors(model: ResNet, variables: Mapping[str, Any], spelling: Spelling) -> dict[str, np.ndarray]:
    """Their tensors of our variables, by their names; with the counts of batches that their normalization has.

    Stacked blocks are taken apart, and a frozen normalization becomes an ordinary one.

    Args:
      model: a net of RGB images with activation_order "post" and shortcut "B" or "C".
      variables: its {"params", "batch_stats"}.
      spelling: of their names.

    Returns:
      float32, and int64 for the counts, all of them 0.

    Raises:
      ValueError: the variables are not the net's.
    """
    flat = dict(_leaves(variables))
    tensors, used = {}, set()
    for place in places(model, spelling, channels=3):
        expected = _shape_in_ours(place)
        found = flat.get(place.path)
        if found is None or (found.shape, found.dtype) != (expected, np.float32):
            what = "missing" if found is None else f"{found.dtype} of shape {found.shape}"
            raise ValueError(f"{'/'.join(place.path)} is {what}; the net has it as float32 of shape {expected}")
        used.add(place.path)
        value = found if place.stack is None else found[place.stack[0]]
        tensors[place.name] = np.ascontiguousarray(_to_theirs(value))
    for path in sorted(flat.keys() - used):
        raise ValueError(f"{'/'.join(path)} is none that the net has")
    # The libraries' own loading wants it, with or without a value.
    return tensors | {f"{name}.num_batches_tracked": np.zeros((), np.int64) for name in norm_names(model, spelling)}


def channel_orders(model: ResNet) -> list[np.ndarray]:
    """For the stem and each stage of a net with option A: our i-th channel is their `order[i]`-th.

    Raises:
      ValueError: the new channels of a stage have no halves.
    """
    orders = [np.arange(model.width)]
    for stage in range(1, len(model.stage_sizes) + 1):
        old, new = stage_filters(model, stage - 1), stage_filters(model, stage)
        half = (new - old) // 2
        if 2 * half != new - old:
            raise ValueError(f"stage {stage} has no projections, and its {new - old} new channels have no two halves")
        orders.append(np.concatenate([half + orders[-1], np.arange(half), np.arange(half + old, new)]))
    return orders


def _reorder(value: np.ndarray, place: Place, orders: list[np.ndarray]) -> np.ndarray:
    if place.outputs is not None:
        value = value[orders[place.outputs]]
    return value if place.inputs is None else value[:, orders[place.inputs]]


def _as_float32(name: str, value: np.ndarray) -> np.ndarray:
    try:
        with np.errstate(over="raise"):
            return value.astype(np.float32, copy=False)
    except FloatingPointError as error:
        raise ValueError(f"tensor {name} holds {value.dtype} values beyond float32's range") from error


def _to_ours(value: np.ndarray) -> np.ndarray:
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def _to_theirs(value: np.ndarray) -> np.ndarray:
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def _shape_in_ours(place: Place) -> tuple[int, ...]:
    shape = place.shape
    ours = (*shape[2:], shape[1], shape[0]) if len(shape) == 4 else shape[::-1]
    return ours if place.stack is None else (place.stack[1], *ours)


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), np.asarray(value)
