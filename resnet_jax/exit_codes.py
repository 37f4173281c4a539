"""The exit codes of `resnet-jax`, for schedulers and scripts: a code keeps its meaning.

Other ends are signals: 143 in a shell (-15 in Python) is a second SIGTERM, which does not wait for a checkpoint; 142
(-14) is the watchdog's last resort, see `training/watchdog.py`; 134 (-6) is jax's own end of a process that lost
another one, with a C++ stack dump. 1 is a fault of the program, with its traceback.
"""

DONE = 0  # the command has done all that was asked
BAD_INPUT = 2  # what was asked for, a file, disk or network: one line on stderr says what to mend
DIVERGED = 3  # the loss was not finite; the same command again would end the same way
STUCK = 70  # the watchdog ended a process that made no progress; start the same command again
PEER_LOST = 71  # another process of the run did not come or is gone; start the same command again on all hosts
ASTRAY = 72  # a device's copy of the parameters was not that of the others; nothing of it was saved
WORKER_LOST = 73  # a process that decodes images has ended; start the same command again
UNSAVED = 74  # finished or stopped, but the last checkpoint could not be saved; mend the disk, start again
PREEMPTED = 75  # SIGTERM: the run is saved; start the same command again, and it goes on
INTERRUPTED = 130  # Ctrl-C; nothing was saved beyond the last checkpoint
