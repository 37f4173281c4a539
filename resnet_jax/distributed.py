"""The mesh of devices and how arrays lie on it: the state on all of them, a batch split over them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Smaller arrays are not worth a message of their own: biases, scales and statistics stay copies.
_SMALLEST_DIVIDED = 4096


def data_mesh(devices: Sequence[jax.Device] | None = None, *, slices: int | None = None) -> Mesh:
    """Axes "slices" and "data": groups of devices with a fast network inside and a slow one across, and those of one.

    Args:
      devices: default: all.
      slices: number of groups; None takes what the devices say, which are the slices of Cloud TPUs and hosts with GPUs,
        if all are of one size and of several devices; else all devices are one group.

    Returns:
      A mesh in which the devices of one process lie side by side.

    Raises:
      ValueError: the devices do not form so many groups of one size, or a process would be in two of them.
    """
    devices = jax.devices() if devices is None else devices
    devices = sorted(devices, key=lambda device: (_slice(device), device.process_index))
    count = _slices_of(devices) if slices is None else slices
    if len(devices) % count:
        raise ValueError(f"train.slices={count}: {len(devices)} devices do not form so many groups of one size")
    grid = np.asarray(devices).reshape(count, -1)
    owners = [{device.process_index for device in row} for row in grid]
    if slices is not None and jax.process_count() > 1 and sum(map(len, owners)) > len(set.union(*owners)):
        raise ValueError(
            f"train.slices={count}: a process's devices would be in two of them; choose a divisor of hosts"
        )
    return Mesh(grid, ("slices", "data"), axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh, *, axis: int = 0) -> NamedSharding:
    """One axis, the first by default, divided among all devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, mesh.axis_names))


def divided(tree: Any, mesh: Mesh) -> Any:
    """Each leaf's sharding if it is divided among the devices of a slice, and each slice has a whole.

    So what has to be collected before it is used travels on the fast network alone. The longest axis that can be is
    divided; arrays that have none, or are small, are copied.
    """
    share = mesh.shape["data"]

    def sharding(leaf):
        axes = [axis for axis, length in enumerate(leaf.shape) if length % share == 0]
        if not axes or leaf.size < _SMALLEST_DIVIDED:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, "data"))

    return jax.tree.map(sharding, tree)


def place(tree: Any, shardings: Any) -> Any:
    """Puts every leaf on the devices as its sharding says; none shares memory with the original or with another leaf.

    So the copies can be donated: a buffer that two leaves share cannot, and crashes some backends. On several processes
    each gives the same values, which is not compared here, and waits for no other.
    """

    def own(leaf, sharding):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.jit(jnp.copy, out_shardings=sharding)(leaf)
        if jax.process_count() > 1:
            values = np.array(leaf)
            return jax.make_array_from_callback(values.shape, sharding, values.__getitem__)
        # `device_put` alone keeps the original's buffer on the device where it already is.
        return jax.device_put(jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf, sharding)

    return jax.tree.map(own, tree, shardings)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """As `place`, a whole copy on every device."""
    return place(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def collected(tree: Any, mesh: Mesh) -> Any:
    """The leaves whole on every device; those that are stay as they are. All processes call it together."""
    leaves, structure = jax.tree.flatten(tree)
    parts = {index: leaf for index, leaf in enumerate(leaves) if not leaf.is_fully_replicated}
    if parts:
        whole = jax.jit(_same, out_shardings=replicated(mesh))(parts)
        leaves = [whole.get(index, leaf) for index, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, leaves)


def local_rows(batch_size: int, mesh: Mesh) -> range:
    """The rows of a global batch that lie on this process's devices."""
    share = batch_size // mesh.size
    own = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    return range(own[0] * share, (own[-1] + 1) * share)


def _same(tree):
    return tree


def _slices_of(devices: Sequence[Any]) -> int:
    sizes = Counter(map(_slice, devices))
    return len(sizes) if len(set(sizes.values())) == 1 and len(sizes) < len(devices) else 1


def _slice(device: Any) -> int:
    # Not every backend's devices have the attribute.
    return getattr(device, "slice_index", 0) or 0
