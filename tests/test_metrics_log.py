"""Metrics are written in order, one line late, with the time of their own steps; a bad step stops the run."""

import jax.numpy as jnp
import pytest

from resnet_jax.evaluation.metrics import Sums
from resnet_jax.training import metrics_log
from resnet_jax.training.metrics_log import MetricsLog
from resnet_jax.training.state import Progress


class Lines:
    def __init__(self):
        self.written = []

    def write_scalars(self, step, scalars):
        self.written.append((step, dict(scalars)))


def progress(*, skipped=0):
    sums = Sums(loss=jnp.float32(8), errors_top1=jnp.float32(2), errors_top5=jnp.float32(0), count=jnp.float32(4))
    bad = {
        "skipped": jnp.int32(skipped),
        "bad_step": jnp.int32(6),
        "bad_loss": jnp.float32(9),
        "bad_rate": jnp.float32(0.5),
    }
    bad |= {"skipped_in_a_row": jnp.int32(skipped), "row_end": jnp.int32(18)}
    return Progress.zero().replace(sums=sums, **bad)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless told otherwise."""
    now = [0.0]
    monkeypatch.setattr(metrics_log.time, "perf_counter", lambda: now[0])
    return now


def test_a_line_is_written_when_the_next_one_comes(clock):
    lines = Lines()
    log = MetricsLog(lines, batch_size=10, most_skipped=0, start_step=0)
    log.push(5, progress())
    assert lines.written == []
    log.push(10, progress())
    assert [step for step, _ in lines.written] == [5]
    log.drain()
    assert [step for step, _ in lines.written] == [5, 10]
    assert lines.written[0][1]["train/loss"] == 2.0 and lines.written[0][1]["train/error_top1"] == 0.5


def test_images_per_second_are_those_of_the_line_s_own_steps(clock):
    lines = Lines()
    log = MetricsLog(lines, batch_size=10, most_skipped=0, start_step=100)

    def push_at(seconds, step):
        clock[0] = seconds
        log.push(step, progress())
        log._pending[-1].ready.result()

    push_at(2.0, 105)
    push_at(3.0, 110)
    log.drain()
    clock[0] = 63.0
    log.leave_out(60.0)  # an evaluation
    push_at(68.0, 115)
    clock[0] = 99.0  # read late: what counts is when the steps were done
    log.drain()
    assert [scalars["train/images_per_second"] for _, scalars in lines.written] == [25.0, 50.0, 10.0]


def test_a_skipped_update_stops_with_step_and_loss_unless_told_to_go_on(clock):
    stopping = MetricsLog(Lines(), batch_size=10, most_skipped=0, start_step=0)
    stopping.push(10, progress(skipped=1))
    with pytest.raises(FloatingPointError, match=r"step 7: .* \(loss 9.0, learning rate 0.5\)"):
        stopping.drain()
    lines = Lines()
    going_on = MetricsLog(lines, batch_size=10, most_skipped=3, start_step=0)
    going_on.push(10, progress(skipped=1))
    going_on.drain()
    assert lines.written[0][1]["train/skipped"] == 1.0


def test_more_in_a_row_than_may_be_end_the_run(clock):
    log = MetricsLog(Lines(), batch_size=10, most_skipped=3, start_step=0)
    log.push(10, progress(skipped=3))
    log.push(20, progress(skipped=4))
    with pytest.raises(FloatingPointError, match=r"steps 16 to 19: .* in a row than train.most_skipped=3"):
        log.drain()
