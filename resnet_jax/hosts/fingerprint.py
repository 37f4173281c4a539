"""Fingerprints of arrays: one number for a whole tree, and a check that all devices hold the same copy of it."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, UInt32

from resnet_jax.distributed import replicated

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


class Replica(NamedTuple):
    """One device's copy: its position in the mesh (0, 1, ...), and the process that the device belongs to."""

    position: int
    process_index: int

    def __str__(self) -> str:
        return f"device {self.position} (process {self.process_index})"


def fingerprint(tree: Any) -> str:
    """SHA-256, in hex, of the paths, dtypes, shapes and bytes of a tree's arrays.

    Args:
      tree: of numpy arrays, numbers, or jax arrays that this process holds whole; of copies it takes the first.

    Raises:
      ValueError: for an array of which this process holds a part only.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        array = _on_host(name, leaf)
        digest.update(f"{name!r} {array.dtype} {array.shape}\n".encode())
        # As bytes, because bfloat16 has no buffer that others can read.
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _on_host(name: str, leaf: Any) -> np.ndarray:
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    if not leaf.is_fully_addressable:
        raise ValueError(f"{name}: this process holds only a part of it, so it has no fingerprint here")
    return np.asarray(leaf)


def make_replica_check(mesh: Mesh) -> Callable[[Any], list[Replica]]:
    """Makes the function that finds devices whose copy of a tree went astray.

    Each device reads its own copy once and reduces it to 64 bits, which are all that travels: 8 bytes a device. A
    change within one element of up to 32 bits, such as a flipped bit, is always seen; any other, such as two elements
    in each other's place, but for one in 2^64. Of what is divided within a slice, each part has a copy in every slice;
    with one slice there is nothing to compare it with.

    Args:
      mesh: the devices, from `data_mesh`; all processes call the function at the same step.

    Returns:
      (tree) -> the replicas whose value differs from the most frequent one, in the mesh's order, the same on every
      process; all of them if no value is the most frequent, as with two devices that differ. It waits for the devices.
      Raises ValueError for an array that has no copies.
    """
    devices, (slices, share) = list(mesh.devices.flat), mesh.devices.shape

    @cache
    def checksums(specs: tuple[PartitionSpec, ...]) -> Callable:
        # Every device takes its own copy for the copy; check_vma=False, because copies may differ against the rules.
        per_device = jax.shard_map(
            lambda *leaves: _checksum(leaves)[None],
            mesh=mesh,
            in_specs=specs,
            out_specs=PartitionSpec(mesh.axis_names),
            check_vma=False,
        )
        return jax.jit(per_device, out_shardings=replicated(mesh))

    def astray(leaves: list[Array], groups: list[range]) -> Iterator[int]:
        """Positions whose value is not their group's."""
        if not leaves:
            return
        specs = tuple(_spec(leaf) for leaf in leaves)
        values = [tuple(row) for row in np.asarray(checksums(specs)(*leaves).addressable_data(0)).tolist()]
        for group in groups:
            counts = Counter(values[position] for position in group).most_common(2)
            usual = None if len(counts) == 2 and counts[0][1] == counts[1][1] else counts[0][0]
            yield from (position for position in group if values[position] != usual)

    def check(tree: Any) -> list[Replica]:
        whole, parts = [], []
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if leaf.sharding.is_equivalent_to(replicated(mesh), leaf.ndim):
                whole.append(leaf)
            elif isinstance(leaf.sharding, NamedSharding) and "slices" not in str(leaf.sharding.spec):
                parts.append(leaf)
            else:
                raise ValueError(f"{jax.tree_util.keystr(path)}: {leaf.sharding} has no copies on {mesh}")
        found = {*astray(whole, [range(len(devices))])}
        if slices > 1:
            found |= {*astray(parts, [range(place, len(devices), share) for place in range(share)])}
        return [Replica(position, devices[position].process_index) for position in sorted(found)]

    return check


def _spec(leaf: Array) -> PartitionSpec:
    return leaf.sharding.spec if isinstance(leaf.sharding, NamedSharding) else PartitionSpec()


def _checksum(leaves: Sequence[Array]) -> UInt32[Array, "2"]:
    """Two sums, modulo 2^32, over all elements, each mixed with its place; the order of adding does not matter."""
    # In one row: a reduction for every leaf would take half a minute to compile for 50 layers, this takes a second.
    words = jnp.concatenate([_words(leaf) for leaf in leaves])
    # An odd multiplier gives each place a key of its own, and every operation on a word can be undone, so that no
    # change of one is lost. The constants are the golden ratio and those of murmur3's last step.
    places = lax.iota(jnp.uint32, words.size) * jnp.uint32(0x9E3779B9)
    mixed = words ^ places
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
    mixed = mixed ^ (mixed >> 16)
    return jnp.stack([jnp.sum(mixed, dtype=jnp.uint32), jnp.sum(mixed * (places | 1), dtype=jnp.uint32)])


def _words(leaf: Array) -> UInt32[Array, " words"]:
    """An array's bits, an element in one word or, of 64 bits, in two."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    bits = leaf if leaf.dtype == bool else lax.bitcast_convert_type(leaf, _WORDS[leaf.dtype.itemsize])
    return bits.astype(jnp.uint32).reshape(-1)
