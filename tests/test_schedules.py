"""Learning rates at the steps where they must change, and what a schedule has to remember."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.training import schedules


def rates(schedule, steps):
    return [float(schedule.learning_rate(schedule.init(), step)) for step in steps]


def test_piecewise_drops_at_the_paper_s_steps():
    # Section 4.2: 0.1, divided by 10 at 32k and 48k: update 32,001 is the first at 0.01.
    schedule = schedules.piecewise(0.1, boundaries=(32_000, 48_000), factor=0.1)
    np.testing.assert_allclose(
        rates(schedule, [0, 31_999, 32_000, 47_999, 48_000, 63_999]),
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001],
        rtol=1e-6,
    )


def test_cosine_starts_at_the_rate_and_ends_at_zero():
    schedule = schedules.cosine(0.4, total=110, start=10)
    np.testing.assert_allclose(rates(schedule, [0, 10, 60, 110]), [0.4, 0.4, 0.2, 0.0], atol=1e-7)


def test_linear_warmup_rises_to_the_schedule():
    schedule = schedules.with_linear_warmup(schedules.constant(0.8), steps=4)
    np.testing.assert_allclose(rates(schedule, range(6)), [0.2, 0.4, 0.6, 0.8, 0.8, 0.8], rtol=1e-6)


def test_warmup_until_error_follows_the_110_layer_rule():
    # Section 4.2: 0.01 until the training error is below 80 %, then 0.1; here over windows of 3 steps of 10 examples.
    schedule = schedules.with_warmup_until_error(
        schedules.piecewise(0.1, boundaries=(9,), factor=0.1), learning_rate=0.01, error=0.8, window=3
    )
    errors = [9, 9, 9, 8, 8, 8, 2, 2, 10, 9, 9, 9]  # windows of 90 %, 80 % (not below), 47 %, 90 %
    state, seen = schedule.init(), []
    after_step = jax.jit(schedule.after_step)
    for step, wrong in enumerate(errors):
        seen.append(float(schedule.learning_rate(state, step)))
        state = after_step(state, step, jnp.float32(wrong), jnp.float32(10))
    # The low rate does not come back with the 90 % of the last window, and the drop at step 9 counts from step 0.
    np.testing.assert_allclose(seen, [0.01] * 9 + [0.01] * 3, rtol=1e-6)
    assert not bool(state["low"])
    np.testing.assert_allclose(float(schedule.learning_rate(state, 8)), 0.1, rtol=1e-6)


def test_plateau_waits_for_patience_and_counts_small_gains_as_none():
    schedule = schedules.plateau(1.0, factor=0.1, patience=2, min_improvement=0.01)
    state, seen = schedule.init(), []
    for error in (0.5, 0.4, 0.395, 0.394, 0.3, 0.3, 0.3):
        state = jax.jit(schedule.after_evaluation)(state, error)
        seen.append(float(schedule.learning_rate(state, 0)))
    np.testing.assert_allclose(seen, [1, 1, 1, 0.1, 0.1, 0.1, 0.01], rtol=1e-5)


def test_warmup_until_error_hands_evaluations_on_to_a_plateau():
    inner = schedules.plateau(1.0, factor=0.5, patience=1, min_improvement=0.0)
    schedule = schedules.with_warmup_until_error(inner, learning_rate=0.1, error=0.8, window=1)
    state = schedule.after_step(schedule.init(), 0, jnp.float32(0), jnp.float32(4))
    for error in (0.5, 0.6):
        state = schedule.after_evaluation(state, error)
    assert float(schedule.learning_rate(state, 1)) == pytest.approx(0.5)


def test_linear_warmup_from_a_rate_rises_in_equal_steps_to_exactly_the_schedule():
    # Goyal et al. 2017: from the rate of a batch of 256, there 0.1, to that of the batch at hand.
    schedule = schedules.with_linear_warmup(schedules.constant(1.6), steps=4, start=0.3)
    found = rates(schedule, range(6))
    np.testing.assert_allclose(found, [0.625, 0.95, 1.275, 1.6, 1.6, 1.6], rtol=1e-6)
    assert found[3:] == [float(np.float32(1.6))] * 3


def test_linear_warmup_from_zero_is_the_plain_product_to_the_bit():
    inner = schedules.cosine(0.37, total=50)
    schedule = schedules.with_linear_warmup(inner, steps=7)
    expected = [float(inner.learning_rate({}, step) * jnp.minimum(1.0, (step + 1) / 7)) for step in range(10)]
    assert rates(schedule, range(10)) == expected


def test_cosine_can_end_above_zero():
    schedule = schedules.cosine(0.4, total=110, start=10, final=0.1)
    np.testing.assert_allclose(rates(schedule, [0, 10, 60, 110, 200]), [0.4, 0.4, 0.25, 0.1, 0.1], rtol=1e-6)
