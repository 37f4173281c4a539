"""Runs one of the two programs in this process with a fault built in: python hooks.py HOOK[:STEP] PROGRAM WORDS...

Each hook changes one function before the program starts; what follows is the program's own code.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def stuck(step: int) -> None:
    """The process is alive, and makes no step beyond this one."""
    from resnet_jax.data.feeds import ResidentFeed

    arguments = ResidentFeed.arguments

    def waiting(self: Any, at: int) -> Any:
        if at >= step:
            time.sleep(3600)
        return arguments(self, at)

    ResidentFeed.arguments = waiting  # type: ignore[method-assign]


def _change_batches(change: Callable[[Any, Any], Any]) -> None:
    from resnet_jax import build

    make = build.make_train_step

    def making(*arguments: Any, **named: Any) -> Any:
        step = make(*arguments, **named)
        return lambda state, progress, batch: step(state, progress, change(state, batch))

    build.make_train_step = making


def nan_in_batch(step: int) -> None:
    """One value of the images of the step after this one is NaN."""

    def change(state: Any, batch: Any) -> Any:
        spoiled = batch.image.at[0, 0, 0, 0].set(jnp.nan)
        return batch.replace(image=jnp.where(state.step == step, spoiled, batch.image))

    _change_batches(change)


def nan_from(step: int) -> None:
    """As `nan_in_batch`, in all steps after this one."""

    def change(state: Any, batch: Any) -> Any:
        return batch.replace(image=jnp.where(state.step >= step, jnp.nan, batch.image))

    _change_batches(change)


@jax.custom_vjp
def _spoiled_gradient(value: Any, spoil: Any) -> Any:
    return value


_spoiled_gradient.defvjp(
    lambda value, spoil: (value, spoil), lambda spoil, gradient: (jnp.where(spoil, jnp.nan, gradient), None)
)


def nan_in_gradient(step: int) -> None:
    """The loss of the step after this one is finite, its gradient is not."""
    from resnet_jax.training import steps

    named = steps.loss_named

    def spoiled(name: str) -> Any:
        loss = named(name)

        def sum_losses(logits: Any, labels: Any, weights: Any, **options: Any) -> Any:
            # The batch at hand is known by a weight that no other has, see `change`.
            spoil = weights[0] > 1
            weights = weights.at[0].min(1)
            return _spoiled_gradient(loss(logits, labels, weights, **options), spoil)

        return sum_losses

    steps.loss_named = spoiled

    def change(state: Any, batch: Any) -> Any:
        return batch.replace(weight=batch.weight.at[0].add(jnp.where(state.step == step, 1e-6, 0)))

    _change_batches(change)


def flipped_replica(step: int) -> None:
    """After this step one bit of one parameter differs on the last device."""
    from resnet_jax.training.loop import _Run

    advance = _Run.advance

    def astray(leaf: Any) -> Any:
        shards = [np.array(shard.data) for shard in leaf.addressable_shards]
        shards[-1].reshape(-1).view(np.uint32)[0] ^= 1 << 3
        copies = [jax.device_put(s, shard.device) for s, shard in zip(shards, leaf.addressable_shards, strict=True)]
        return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, copies)

    def advancing(self: Any, preemption: Any, stop: int) -> Any:
        if self.step <= step < stop:
            result = advance(self, preemption, step) if self.step < step else False
            if result:
                return result
            leaves, tree = jax.tree.flatten(self.state.params)
            self.state = self.state.replace(params=jax.tree.unflatten(tree, [astray(leaves[0]), *leaves[1:]]))
        return advance(self, preemption, stop)

    _Run.advance = advancing  # type: ignore[method-assign]


def slow_evaluation(step: int) -> None:
    """From this step on an evaluation says so, and takes two seconds."""
    from resnet_jax.training.loop import _Run

    evaluate = _Run.test_errors

    def slow(self: Any) -> Any:
        if self.step >= step:
            print("evaluating slowly", file=sys.stderr, flush=True)
            time.sleep(2)
        return evaluate(self)

    _Run.test_errors = slow  # type: ignore[method-assign]


def _move_clock(step: int, seconds: float) -> None:
    from resnet_jax.data.feeds import ResidentFeed

    arguments, wall = ResidentFeed.arguments, time.time

    def moving(self: Any, at: int) -> Any:
        if at == step:
            time.time = lambda: wall() + seconds
        return arguments(self, at)

    ResidentFeed.arguments = moving  # type: ignore[method-assign]


def clock_forth(step: int) -> None:
    """After this step the process's wall clock is a day ahead."""
    _move_clock(step, 86_400)


def clock_back(step: int) -> None:
    """After this step the process's wall clock is a day behind."""
    _move_clock(step, -86_400)


def forgets_momentum(step: int) -> None:
    """A fault of the program, to see that it is found: what is restored has no momentum."""
    from resnet_jax.checkpoints import Checkpoints

    restore = Checkpoints.restore_latest

    def forgetting(self: Any, like: Any) -> Any:
        restored = restore(self, like)
        if restored is None:
            return None
        number, (state, progress) = restored
        return number, (state.replace(opt_state=jax.tree.map(jnp.zeros_like, state.opt_state)), progress)

    Checkpoints.restore_latest = forgetting  # type: ignore[method-assign]


HOOKS = {
    hook.__name__: hook
    for hook in (
        *(stuck, nan_in_batch, nan_from, nan_in_gradient, flipped_replica, slow_evaluation),
        *(clock_forth, clock_back, forgets_momentum),
    )
}


def main() -> None:
    name, _, step = sys.argv.pop(1).partition(":")
    HOOKS[name](int(step or 0))
    if sys.argv.pop(1) == "plain":
        import plain_orbax

        plain_orbax.main()
    else:
        from resnet_jax.cli import program

        program()


if __name__ == "__main__":
    main()
