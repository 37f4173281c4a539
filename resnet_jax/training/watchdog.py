"""A process that makes no progress ends itself, and says where it was stuck.

In a run of many processes one that hangs makes all others wait, for ever: jax notices a dead process, not an idle one.
"""

import contextlib
import faulthandler
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping

from resnet_jax.exit_codes import STUCK
from resnet_jax.training.signal_actions import default_after_first

# A thread looks at the clock so many times within the shortest limit, and at least so often.
_LOOKS = 20
_LONGEST_INTERVAL = 1.0

# Beyond its limit, the seconds a process has to end itself before the system does so.
_GRACE = 10.0

_STDERR = 2
_Phase = tuple[str, float]


class Watchdog:
    """Ends the process when a phase of the run goes on for longer than its limit without a beat.

    Then stderr gets a line that names the phase, the limit, the process and what to do, and the traceback of every
    thread; the exit code is 70. No `finally` runs. It works wherever the main thread is stuck, a C call or a lock too.
    If that C call holds the interpreter's lock, no Python can run: the system's alarm clock then prints the tracebacks
    10 seconds after the limit, and 10 seconds later ends the process by SIGALRM (142 in a shell).

    Time in which the process did not run, stopped by SIGSTOP or a suspended machine, does not count. After a long stop
    the tracebacks may appear once, without harm. Phases begin and end in one thread, beats may come from any, and a
    process has one watchdog at a time, which SIGALRM and the timer that sends it belong to.
    """

    def __init__(self, limits: Mapping[str, float | int | None], *, process_index: int = 0):
        """Starts to watch.

        Args:
          limits: seconds that each phase may go on without a beat; 0 or None for ever.
          process_index: of this process in the run, `jax.process_index()`.

        Raises:
          ValueError: a limit is negative or not finite.
        """
        for name, limit in limits.items():
            if limit is not None and not (limit >= 0 and math.isfinite(limit)):
                raise ValueError(f"limit of phase {name!r}: {limit} seconds; at least 0, which is none")
        self._limits = {name: float(limit or 0) for name, limit in limits.items()}
        self._process_index = process_index
        set_limits = [limit for limit in self._limits.values() if limit]
        self._interval = min(_LONGEST_INTERVAL, min(set_limits, default=0.0) / _LOOKS)
        self._phase: _Phase | None = None
        self._beat = object()
        # Of phase, beat and alarm; `beat` alone does without.
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        if set_limits:
            # The first alarm prints tracebacks, the second ends the process; neither needs the interpreter. Two, as
            # one rings at the end of a long stop, too; then the thread is in time to forestall the second.
            faulthandler.register(signal.SIGALRM, _STDERR, all_threads=True)
            self._renew_handler = default_after_first(signal.SIGALRM)
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def beat(self) -> None:
        """Progress: the current phase may go on for its limit from now."""
        # Cheap enough for every step. The thread keeps the beat it saw last, so a new one is never at its address.
        self._beat = object()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Watches the block by the limit of this phase; one around it waits, and starts afresh at the end.

        Raises:
          ValueError: there is no such phase.
        """
        if name not in self._limits:
            raise ValueError(f"unknown phase {name!r} of the watchdog: one of {', '.join(self._limits)}")
        outer = self._phase
        self._enter((name, self._limits[name]))
        try:
            yield
        finally:
            self._enter(outer)

    def close(self) -> None:
        """Stops to watch; a second call does nothing."""
        if self._thread is None:
            return
        self._closed.set()
        self._thread.join()
        self._thread = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.unregister(signal.SIGALRM)

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _enter(self, phase: _Phase | None) -> None:
        with self._lock:
            self._phase, self._beat = phase, object()
            if self._thread is not None:
                self._set_alarm()

    def _watch(self) -> None:
        seen, idle, looked = self._beat, 0.0, time.monotonic()
        while not self._closed.wait(self._interval):
            now = time.monotonic()
            since, looked = now - looked, now
            with self._lock:
                phase = self._phase
                if self._beat is not seen:
                    seen, idle = self._beat, 0.0
                else:
                    # Not `since`: when this look is late, the process did not run in between, or had no chance to.
                    idle += min(since, 2 * self._interval)
                self._set_alarm()
            # After a long stop the alarm has rung, and used its handler up.
            self._renew_handler()
            if phase is not None and 0 < phase[1] <= idle:
                self._end(*phase)

    def _end(self, name: str, limit: float) -> None:
        line = (
            f"resnet-jax: the watchdog ends process {self._process_index}: no progress in phase {name!r} for {limit:g} "
            "seconds, its limit. The tracebacks show where it is stuck. Start the same command again to go on from "
            f"the last checkpoint; if {name} may take that long here, raise its limit.\n"
        )
        # Not through sys.stderr, whose lock a stuck thread may hold. If this blocks, the alarm ends the process.
        os.write(_STDERR, line.encode())
        faulthandler.dump_traceback(_STDERR, all_threads=True)
        os._exit(STUCK)

    def _set_alarm(self) -> None:
        limit = self._phase[1] if self._phase is not None else 0.0
        # The whole limit: a beat may have come since the last look, and none is lost, as each look sets it anew.
        seconds = limit + 2 * self._interval + _GRACE if limit else 0.0
        signal.setitimer(signal.ITIMER_REAL, seconds, _GRACE)
