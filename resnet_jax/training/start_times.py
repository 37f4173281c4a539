"""Where the time to a run's first step goes."""

import os
import time
from pathlib import Path

# In the order in which they happen.
START_PARTS = ("imports", "devices", "data", "initialization", "compilation", "first_steps")


class StartTimes:
    """A clock that is read at the end of each part of a start; the parts add up to the whole.

    `imports`: from the start of the process until the run is called, which is Python, its imports, the config and, of
    several hosts, until all have joined; 0 of a run that is called from Python, which may have done anything before.
    `devices`: until jax has them. `data`: what is read before step 1. `initialization`: parameters, optimizer, an
    earlier checkpoint, what processes agree on, and a diagnosis before step 1. `compilation`: of the first call of the
    devices, its tracing included. `first_steps`: of that call, until its results are there.
    """

    def __init__(self, begun: float | None = None):
        """Starts the clock.

        Args:
          begun: when the process did, see `process_begun`; None is now.
        """
        self._last = time.perf_counter()
        self.seconds = {"imports": 0.0 if begun is None else self._last - begun}

    @property
    def complete(self) -> bool:
        """Whether the first steps are done."""
        return START_PARTS[-1] in self.seconds

    def end(self, part: str) -> None:
        """Ends a part: all the time since the end of the one before is its own; the second time does nothing."""
        if part not in self.seconds:
            now = time.perf_counter()
            self.seconds[part], self._last = now - self._last, now

    def summary(self, steps: int, programs: str | None) -> str:
        """One line for people.

        Args:
          steps: that the first call made.
          programs: where compiled programs are kept, if they are.
        """
        first = "first step" if steps == 1 else f"first {steps} steps"
        parts = ", ".join(f"{part.replace('_', ' ')} {seconds:.1f}" for part, seconds in self.seconds.items())
        kept = "" if programs is None else f" (programs are kept in {programs})"
        return f"{first} after {sum(self.seconds.values()):.1f} s: {parts}{kept}"


def process_begun() -> float | None:
    """When this process began, on `time.perf_counter`'s clock, to a hundredth of a second; None where Linux is not.

    The whole life of the process: it says how long a start took only in one that does nothing else.
    """
    try:
        # The 22nd field, in ticks since the machine's start; the second, the name, may hold spaces and brackets.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return None
    return time.perf_counter() - age
