"""SIGTERM as a request: the run stops after a step, saves, and can be started again."""

import itertools
import os
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

from resnet_jax.training.signal_actions import Action, get_action, set_action

# Not the step: jax stops at the highest number that any process has asked with, plus one, and at no other. Steps may
# come 50 at a time, and a resumed run begins far above the zero that jax starts from; both would pass that number by.
# And jax keeps its number from one run of a process to the next, so this one never goes back.
_questions = itertools.count(1)

# `timeout` sends SIGTERM twice, to its child and to the child's group; batch systems may, too.
_ONE_REQUEST_SECONDS = 1.0


class Preempted(Exception):
    """The run was asked to stop, and its state is saved.

    Attributes:
      step: optimizer steps done, which is the checkpoint's.
    """

    def __init__(self, step: int):
        super().__init__(f"stopped by SIGTERM and saved at step {step}; start the same command again to go on")
        self.step = step


class Preemption:
    """Within its block the first SIGTERM is noted, for `requested` to tell; a second one ends the process at once.

    The second comes a second later at least: what comes sooner is the first one's echo. It ends the process by the
    signal (143 in a shell, -15 in Python), even while the main thread compiles or waits. At the end of the block the
    handler from before is put back. Only the main thread may set one: in others SIGTERM keeps its action.

    After `jax.distributed.initialize`, SIGTERM to any process stops all of them after the same step: jax's service,
    which polls once a second, agrees on it. By itself it would swallow every SIGTERM after the first.
    """

    def __init__(self) -> None:
        self._shared = self._signalled = False
        self._ended = threading.Event()
        self._listener: threading.Thread | None = None

    def __enter__(self) -> "Preemption":
        self._shared = jax.distributed.is_initialized()
        if threading.current_thread() is threading.main_thread():
            self._action_before = get_action(signal.SIGTERM)
            self._before = signal.signal(signal.SIGTERM, self._note)
            # C code in the main thread is not to see its reads and writes fail.
            signal.siginterrupt(signal.SIGTERM, False)
            # The handler runs when the main thread is back in Python; the number in the pipe is there at once.
            self._reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._listener = threading.Thread(target=self._listen, name="preemption", daemon=True)
            self._listener.start()
        return self

    def requested(self) -> bool:
        """Whether the run is to stop here and save.

        With several processes: whether all are to stop here. All ask at the same places, after every call of the
        step, and until it is true once. It may wait for the others (at most for their current call), not for the
        device.

        Raises:
          RuntimeError: there are several processes, and jax's service is off (`jax_enable_preemption_service`).
        """
        if self._shared:
            return multihost_utils.reached_preemption_sync_point(next(_questions))
        return self._signalled

    def __exit__(self, *error: object) -> None:
        if self._listener is None:
            return
        signal.set_wakeup_fd(self._wakeup_before)
        self._ended.set()
        os.close(self._writer)
        self._listener.join()
        self._listener = None
        os.close(self._reader)
        # None is a handler of C code's, which Python does not know.
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        # jax's handler would swallow what is sent to a process that hangs on its way out.
        set_action(signal.SIGTERM, Action() if self._shared and self._signalled else self._action_before)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        self._signalled = True

    def _listen(self) -> None:
        while signal.SIGTERM not in (numbers := os.read(self._reader, 64)):
            if not numbers:  # the block has ended
                return
        self._signalled = True
        if self._shared:
            # On to jax's handler, which takes the echoes too.
            set_action(signal.SIGTERM, self._action_before)
            os.kill(os.getpid(), signal.SIGTERM)
        if not self._ended.wait(_ONE_REQUEST_SECONDS):
            set_action(signal.SIGTERM, Action())
