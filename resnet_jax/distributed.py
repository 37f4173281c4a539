"""The mesh of devices and how arrays lie on it: the state on all of them, a batch split over them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """One axis, "data", over the given devices (default: all), those of one process side by side."""
    devices = jax.devices() if devices is None else devices
    devices = sorted(devices, key=lambda device: device.process_index)
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The first axis divided among the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of every leaf on every device; none shares memory with the original or with another leaf.

    So the copies can be donated: a buffer that two leaves share cannot, and crashes some backends. On several processes
    each gives the same values, which is not compared here.
    """
    sharding = replicated(mesh)

    def own(leaf):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jnp.copy(leaf)
        if jax.process_count() > 1:
            values = np.array(leaf)
            return jax.make_array_from_callback(values.shape, sharding, values.__getitem__)
        # `device_put` alone keeps the original's buffer on the device where it already is.
        return jax.device_put(jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf, sharding)

    return jax.tree.map(own, tree)


def local_rows(batch_size: int) -> range:
    """The rows of a global batch that lie on this process's devices, of which every process has as many."""
    share = batch_size // jax.process_count()
    return range(jax.process_index() * share, (jax.process_index() + 1) * share)
