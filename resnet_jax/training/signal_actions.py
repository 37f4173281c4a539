"""What the system does at a signal, where Python's own `signal` module cannot say it."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_MACOS = sys.platform == "darwin"
_SA_RESETHAND = 0x4 if _MACOS else 0x80000000


class Action(ctypes.Structure):
    """The system's `struct sigaction`, of Linux (glibc and musl) and macOS; made anew it is a signal's default."""

    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * (4 if _MACOS else 128)),
        ("flags", ctypes.c_uint32),
        *([] if _MACOS else [("restorer", ctypes.c_void_p)]),
    ]


def _sigaction(signum: signal.Signals, new: Action | None, old: Action | None) -> None:
    # PyDLL keeps the interpreter's lock: code that takes it for good must not come in between.
    call = ctypes.PyDLL(None, use_errno=True).sigaction
    if call(ctypes.c_int(signum), new and ctypes.byref(new), old and ctypes.byref(old)) != 0:
        raise OSError(ctypes.get_errno(), f"sigaction({signum.name}): {os.strerror(ctypes.get_errno())}")


def get_action(signum: signal.Signals) -> Action:
    """What happens at the signal now, though C code has set it."""
    action = Action()
    _sigaction(signum, None, action)
    return action


def set_action(signum: signal.Signals, action: Action) -> None:
    """Sets what happens at the signal, from any thread; `signal.getsignal` does not see it."""
    _sigaction(signum, action, None)


def default_after_first(signum: signal.Signals) -> Callable[[], None]:
    """Lets the handler that is there now, Python's or C code's, run once: the next signal has its default action.

    The kernel sees to it as it delivers the first one, whatever the process is stuck in.

    Returns:
      What does it once more, at once: puts the same handler back, for one signal.
    """
    action = get_action(signum)
    action.flags |= _SA_RESETHAND
    set_action(signum, action)
    return lambda: set_action(signum, action)
