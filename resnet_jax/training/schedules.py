"""Learning rates over time. A schedule is pure functions; what it must remember is part of the training state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax


class Schedule(NamedTuple):
    """Four pure functions.

    Attributes:
      init: () -> state, a pytree of arrays; saved and restored with the training state.
      learning_rate: (state, step) -> scalar for the update that turns step into step + 1.
      after_step: (state, step, errors, count) -> state, given the batch's number of wrong examples and its size.
      after_evaluation: (state, error) -> state, given a held-out error as a fraction.
    """

    init: Callable[[], Any]
    learning_rate: Callable[[Any, Any], Any]
    after_step: Callable[[Any, Any, Any, Any], Any]
    after_evaluation: Callable[[Any, Any], Any]


def _stateless(function: Callable) -> Schedule:
    return Schedule(
        init=dict,
        learning_rate=lambda state, step: jnp.asarray(function(step), jnp.float32),
        after_step=lambda state, step, errors, count: state,
        after_evaluation=lambda state, error: state,
    )


def constant(learning_rate: float) -> Schedule:
    """The same rate throughout."""
    return _stateless(optax.constant_schedule(learning_rate))


def piecewise(learning_rate: float, *, boundaries: tuple[int, ...], factor: float) -> Schedule:
    """Times `factor` after each of the boundaries, in steps (section 4.2: 0.1 after 32k and 48k).

    Example:
      >>> schedule = piecewise(0.1, boundaries=(32_000, 48_000), factor=0.1)
      >>> [round(float(schedule.learning_rate(schedule.init(), step)), 6) for step in (0, 32_000, 48_000)]
      [0.1, 0.01, 0.001]
    """
    return _stateless(optax.piecewise_constant_schedule(learning_rate, dict.fromkeys(boundaries, factor)))


def cosine(learning_rate: float, *, total: int, start: int = 0, final: float = 0.0) -> Schedule:
    """Half a cosine from `learning_rate` at step `start` to `final` at step `total` (Loshchilov and Hutter 2017)."""
    decay = optax.cosine_decay_schedule(learning_rate, total - start, alpha=final / learning_rate if final else 0.0)
    return _stateless(lambda step: decay(jnp.maximum(step - start, 0)))


def plateau(learning_rate: float, *, factor: float, patience: int, min_improvement: float) -> Schedule:
    """Times `factor` when the held-out error has not fallen for `patience` evaluations (section 3.4).

    Args:
      learning_rate: the first rate.
      factor: 0.1 in the paper.
      patience: evaluations without an improvement before the rate falls; the paper does not give it.
      min_improvement: an error must fall by more than this (a fraction) to count as improved.
    """
    # optax wants a tolerance above 0; this one is far below one image in a million.
    tolerance = max(min_improvement, 1e-9)
    stall = optax.contrib.reduce_on_plateau(factor=factor, patience=patience, rtol=0.0, atol=tolerance)
    return Schedule(
        init=lambda: stall.init({}),
        learning_rate=lambda state, step: jnp.float32(learning_rate) * state.scale,
        after_step=lambda state, step, errors, count: state,
        after_evaluation=lambda state, error: stall.update({}, state, value=jnp.float32(error))[1],
    )


def with_linear_warmup(schedule: Schedule, *, steps: int, start: float = 0.0) -> Schedule:
    """Rises from `start` to the schedule's rate in equal increments, one a step (Goyal et al. 2017, section 2.2).

    The first update already has one increment: with start 0 it takes 1/steps of the schedule's rate, and the update
    number `steps` takes all of it.

    Args:
      schedule: what follows; its steps count from the start of training.
      steps: of the warm-up.
      start: the rate before the first increment; there the rate of a batch of 256, the schedule's being that times
        the batch size over 256.
    """

    def learning_rate(state, step):
        rate, done = schedule.learning_rate(state, step), jnp.minimum(1.0, (step + 1) / steps)
        return jnp.where(done < 1, start + (rate - start) * done, rate)

    return schedule._replace(learning_rate=learning_rate)


def with_warmup_until_error(schedule: Schedule, *, learning_rate: float, error: float, window: int) -> Schedule:
    """A low rate until the training error is below a mark, then the schedule's (section 4.2, the 110-layer net).

    The paper: 0.01 until the training error is below 80 % (about 400 steps), then back to 0.1. The error is that of
    the last full `window` of steps; once left, the low rate does not come back.

    Args:
      schedule: what follows; its steps count from the start of training.
      learning_rate: the low rate, 0.01.
      error: the mark as a fraction, 0.8.
      window: steps over which the training error is taken.
    """

    def init():
        errors, count = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)
        return {"after": schedule.init(), "low": jnp.asarray(True), "errors": errors, "count": count}

    def rate(state, step):
        return jnp.where(state["low"], jnp.float32(learning_rate), schedule.learning_rate(state["after"], step))

    def after_step(state, step, batch_errors, batch_count):
        errors, count = state["errors"] + batch_errors, state["count"] + batch_count
        full = (step + 1) % window == 0
        return {
            "after": schedule.after_step(state["after"], step, batch_errors, batch_count),
            "low": state["low"] & ~(full & (errors < error * count)),
            "errors": jnp.where(full, 0.0, errors),
            "count": jnp.where(full, 0.0, count),
        }

    def after_evaluation(state, held_out_error):
        return {**state, "after": schedule.after_evaluation(state["after"], held_out_error)}

    return Schedule(init, rate, after_step, after_evaluation)
