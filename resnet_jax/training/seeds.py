"""The seeds of a run: one, or several that train as one program, whose every array has a leading axis of them."""

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


class Seeds:
    """What belongs to each seed, and what they carry together.

    Attributes:
      numbers: the seeds, one after the other.
    """

    def __init__(self, first: int, count: int):
        self.numbers = tuple(range(first, first + count))
        self._each = jax.jit(partial(_each, count=count))

    @property
    def together(self) -> bool:
        """Whether there are several, and so an axis of them."""
        return len(self.numbers) > 1

    def join(self, trees: Sequence[Any]) -> Any:
        """One tree of those of each seed."""
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) if self.together else trees[0]

    def split(self, tree: Any) -> list[Any]:
        """The tree of each seed."""
        return self._each(tree) if self.together else [tree]

    def over(self, function: Callable, in_axes: int | tuple[int | None, ...] = 0) -> Callable:
        """A function of one seed as one of all; `in_axes` says, as in `jax.vmap`, what has the axis."""
        return jax.vmap(function, in_axes) if self.together else function


def _each(tree: Any, *, count: int) -> list[Any]:
    return [jax.tree.map(operator.itemgetter(index), tree) for index in range(count)]
