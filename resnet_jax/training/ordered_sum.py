"""A sum over groups of a batch whose every bit is the same on any number of devices and processes.

Floating-point sums depend on their order, and a compiler may compute the same group differently where it is worked
through beside others. So one compiled loop body computes each group, and the groups' results are added as the leaves
of one binary tree, neighbours first, whichever device holds them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from resnet_jax.data.batch import Batch


def sum_in_order(function: Callable[[Batch, Any], Any], batch: Batch, *, group_size: int, mesh: Mesh) -> Any:
    """The sum of function(group, index) over the batch's groups of consecutive examples, bit for bit the same anywhere.

    The tree adds groups 0 and 1, 2 and 3 and so on, then its results in the same way; an odd last one waits. Each
    device adds what lies in its share of the batch in aligned blocks of a power of two groups, as many as fit: one
    block where its groups are a power of two. The devices then exchange their blocks' sums, each adds one part of the
    sum's elements, and all collect the parts. A device of `blocks` blocks sends blocks + 1 times the result's bytes,
    where an all-reduce sends twice them, and keeps blocks + log2(groups in a block) results in memory.

    Args:
      function: (group, its number in the batch) -> a tree of float32 arrays; it sees one group alone.
      batch: split over the mesh.
      group_size: examples of a group, which is never split.
      mesh: all its axes share the batch, the first axis in the largest pieces.

    Returns:
      The sum, on every device.

    Raises:
      ValueError: if the devices times the group size do not divide the batch.
    """
    axes, devices, size = mesh.axis_names, mesh.size, batch.weight.shape[0]
    if group_size < 1 or size % (devices * group_size):
        raise ValueError(
            f"{devices} devices and groups of bn_group_size={group_size} examples do not divide the batch of {size}; "
            "choose a batch size that is a multiple of their product"
        )
    count = size // (devices * group_size)

    def on_device(batch: Batch):
        groups = jax.tree.map(lambda leaf: leaf.reshape(count, group_size, *leaf.shape[1:]), batch)
        first = lax.axis_index(axes) * count
        shapes = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], groups), first)
        zeros, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))

        def value(index):
            group = jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, index, keepdims=False), groups)
            # As if the group changed with the turn, which one group does not: it would be computed before the loop.
            group, index = lax.optimization_barrier((group, index))
            return ravel_pytree(function(group, first + index))[0]

        return unravel(_add_blocks(_block_sums(value, zeros, count), axes, devices))

    # Without check_vma=False the gradients of the parameters, which all devices share, would be added by JAX.
    split = PartitionSpec(axes)
    return jax.shard_map(on_device, mesh=mesh, in_specs=(split,), out_specs=PartitionSpec(), check_vma=False)(batch)


def _block_sums(value: Callable[[Any], Array], zeros: Float[Array, " n"], count: int) -> Float[Array, "blocks n"]:
    """The sums of value(0) to value(count - 1) in blocks of the largest power of two that divides the count."""
    block = count & -count
    levels = block.bit_length() - 1

    def add(index, rows):
        # Like a binary counter: rows[:levels] hold the sums that wait for their right-hand neighbours.
        place = index % block
        ready = lax.population_count(place ^ (place + 1)) - 1
        total = lax.fori_loop(0, ready, lambda level, right: rows[level] + right, value(index))
        return rows.at[jnp.where(ready == levels, levels + index // block, ready)].set(total)

    # A loop of one turn would be unrolled, and its body compiled into what surrounds it, if the compiler could count.
    turns = lax.optimization_barrier(jnp.int32(count))
    return lax.fori_loop(0, turns, add, jnp.zeros((levels + count // block, *zeros.shape), zeros.dtype))[levels:]


def _add_blocks(sums: Float[Array, "blocks n"], axes: tuple[str, ...], devices: int) -> Float[Array, " n"]:
    """The pairwise sum of all devices' rows, on every device."""
    if devices == 1:
        return _add_pairwise(sums)
    blocks, size = sums.shape
    parts = jnp.pad(sums, ((0, 0), (0, -size % devices))).reshape(blocks, devices, -1)
    parts = lax.all_to_all(parts, axes, split_axis=1, concat_axis=0, tiled=True)
    return lax.all_gather(_add_pairwise(parts[:, 0]), axes, tiled=True)[:size]


def _add_pairwise(rows: Float[Array, "rows n"]) -> Float[Array, " n"]:
    while len(rows) > 1:
        even = len(rows) // 2 * 2
        rows = jnp.concatenate([rows[0:even:2] + rows[1:even:2], rows[even:]])
    return rows[0]
