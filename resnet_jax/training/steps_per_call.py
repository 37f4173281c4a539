"""How many training steps one call of the devices makes, where the config leaves it open."""

import math
from typing import Any

_ELSEWHERE = 50
# A call on a CPU begins with memory that the system has to clear page by page, a fifth of the time of a ResNet-20 step
# with 128 images, and a loop of steps does so once. Small steps have little of it, and a run stops between calls only,
# so that a call is not to take more than some seconds.
_ON_CPU, _SMALL_STEP, _LARGEST_CALL = 10, 3e9, 3.5e11


def steps_per_call(config: Any, *, multiply_adds: int, backend: str) -> int:
    """The most steps that one call is to make.

    On a CPU they divide the intervals of all that happens between calls, so that no second program, for what would be
    left over, is compiled.

    Args:
      config: resolved; `train.steps_per_dispatch` counts if it is given.
      multiply_adds: of one image's forward pass.
      backend: of jax.
    """
    if config.train.steps_per_dispatch is not None:
        return config.train.steps_per_dispatch
    if backend != "cpu":
        return _ELSEWHERE
    operations = 6 * multiply_adds * config.train.batch_size * config.num_seeds
    most = min(_ON_CPU, int(_LARGEST_CALL // operations)) if operations >= _SMALL_STEP else 1
    steps = config.steps
    every = math.gcd(config.train.log_every, steps.evaluate_every, steps.checkpoint_every, steps.total)
    return max((count for count in range(2, most + 1) if every % count == 0), default=1)


def end_of_call(step: int, due: int, *, stop: int, per_call: int) -> int:
    """Where the call ends that first reaches `due`, of the calls from `step` to `stop`; at most `stop`.

    They are of `per_call` steps as long as those fit, then of one. So what waits for this end changes no call, and with
    it no rounding.

    Args:
      step: steps done.
      due: a later step.
      stop: where the calls end in any case, later than `step`.
      per_call: the most steps of a call.
    """
    calls = -(-(due - step) // per_call)
    end = step + calls * per_call
    return min(stop, end if end <= stop else due)
