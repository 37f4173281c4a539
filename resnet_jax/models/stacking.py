"""Between the parameters of a net built block by block and of one with `scan=True`, exactly, both ways."""

import re
from typing import Any

import jax
import jax.numpy as jnp

_BLOCK = re.compile(r"stage(\d+)_block(\d+)")
_STACK = re.compile(r"stage(\d+)_blocks")


def stack_blocks(variables: dict) -> dict:
    """Stacks the second to last block of each stage along a new first axis, as `scan=True` wants them.

    Args:
      variables: {"params", "batch_stats"} (or any tree of that form, e.g. gradients) of an unrolled net.

    Returns:
      The same values with "stageI_block2", "stageI_block3", ... as one "stageI_blocks".
    """
    return {collection: _stack(tree) for collection, tree in variables.items()}


def unstack_blocks(variables: dict) -> dict:
    """Takes the stacked blocks of each stage apart again; the inverse of `stack_blocks`."""
    return {collection: _unstack(tree) for collection, tree in variables.items()}


def _stack(tree: dict) -> dict:
    kept: dict[str, Any] = {}
    stages: dict[str, dict[int, Any]] = {}
    for name, value in tree.items():
        match = _BLOCK.fullmatch(name)
        if match and int(match[2]) > 1:
            stages.setdefault(match[1], {})[int(match[2])] = value
        else:
            kept[name] = value
    for stage, blocks in stages.items():
        in_order = [blocks[index] for index in sorted(blocks)]
        kept[f"stage{stage}_blocks"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *in_order)
    return kept


def _unstack(tree: dict) -> dict:
    kept = {}
    for name, value in tree.items():
        match = _STACK.fullmatch(name)
        if not match:
            kept[name] = value
            continue
        for index in range(jax.tree.leaves(value)[0].shape[0]):
            kept[f"stage{match[1]}_block{index + 2}"] = jax.tree.map(lambda leaf, i=index: leaf[i], value)
    return kept
