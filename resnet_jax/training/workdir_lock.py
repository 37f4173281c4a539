"""One run in a workdir at a time: a second one is refused while the first lives."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

NAME = "run.lock"

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextlib.contextmanager
def lock_workdir(folder: str | os.PathLike) -> Iterator[None]:
    """Holds the folder for the block; makes it if need be. One process of a run holds it for all.

    The lock is an flock on `run.lock` in the folder, which goes with the process: one that was killed holds nothing.
    The file stays, and names its last holder. The lock binds the processes of one machine. Those of several machines
    it binds where the file system carries it: NFS does (Linux makes byte-range locks of it there), unless mounted with
    `nolock` or `local_lock`; Lustre needs the mount option `flock`. Where there are no locks at all, a warning says so
    and the block runs.

    Raises:
      ValueError: another run holds it; the message names its process, machine and start.
      OSError: the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Python's descriptors are closed in programs that it starts, so a worker that outlives its run holds nothing.
    # Open for writing, which NFS wants of an exclusive lock.
    file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _take(file, folder)
        yield
    finally:
        os.close(file)


def _take(file: int, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"another run is at work in {folder}: {_holder(file)}; wait for it to end, stop it (SIGTERM, and it saves "
            "first), or choose another workdir"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"the file system of {folder} has no locks ({error.strerror}): nothing keeps a second run out of it",
            stacklevel=4,
        )
        return
    started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    holder = json.dumps({"process": os.getpid(), "machine": socket.gethostname(), "started": started}) + "\n"
    os.ftruncate(file, 0)
    os.pwrite(file, holder.encode(), 0)


def _holder(file: int) -> str:
    try:
        holder = json.loads(os.pread(file, 4096, 0))
        return f"process {holder['process']} on {holder['machine']}, since {holder['started']}"
    except (ValueError, KeyError, TypeError):
        # It is between taking the lock and saying so, or somebody else wrote there.
        return f"{NAME} does not say which process"
