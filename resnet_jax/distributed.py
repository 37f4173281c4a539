"""The mesh of devices and how arrays lie on it: the state on all of them, a batch split over them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """One axis, "data", over the given devices (default: all)."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The first axis divided among the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of every leaf on every device; none shares memory with the original or with another leaf.

    So the copies can be donated: a buffer that two leaves share cannot, and crashes some backends.
    """

    def own(leaf):
        # `device_put` alone keeps the original's buffer on the device where it already is.
        return jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf

    return jax.device_put(jax.tree.map(own, tree), replicated(mesh))


def local_rows(batch_size: int) -> range:
    """The rows of a global batch that lie on this process's devices."""
    share = batch_size // jax.process_count()
    return range(jax.process_index() * share, (jax.process_index() + 1) * share)
