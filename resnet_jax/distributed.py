"""The mesh of devices and how arrays lie on it: the state on all of them, a batch split over them."""

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
      slices: number of groups; None takes what the devices say: the slices of Cloud TPUs, hosts with GPUs.

    Returns:
      A mesh in which the devices of one process lie side by side.

    Raises:
      ValueError: the devices do not form so many groups of one size.
    """
    devices = jax.devices() if devices is None else devices
    devices = sorted(devices, key=lambda device: (_slice(device), device.process_index))
    count = len({_slice(device) for device in devices}) if slices is None else slices
    if len(devices) % count:
        given = "" if slices is None else f"train.slices={slices}: "
        raise ValueError(f"{given}{len(devices)} devices do not form {count} slices of one size; choose a divisor")
    grid = np.asarray(devices).reshape(count, len(devices) // count)
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


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of every leaf on every device; none shares memory with the original or with another leaf.

    So the copies can be donated: a buffer that two leaves share cannot, and crashes some backends. On several processes
    each gives the same values, which is not compared here.
    """
    sharding = replicated(mesh)
    copy = jax.jit(jnp.copy, out_shardings=sharding)

    def own(leaf):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return copy(leaf)
        if jax.process_count() > 1:
            values = np.array(leaf)
            return jax.make_array_from_callback(values.shape, sharding, values.__getitem__)
        # `device_put` alone keeps the original's buffer on the device where it already is.
        return jax.device_put(jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf, sharding)

    return jax.tree.map(own, tree)


def local_rows(batch_size: int, mesh: Mesh) -> range:
    """The rows of a global batch that lie on this process's devices."""
    share = batch_size // mesh.size
    own = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    return range(own[0] * share, (own[-1] + 1) * share)


def _slice(device: Any) -> int:
    # Not every backend's devices have the attribute.
    return getattr(device, "slice_index", 0) or 0
