"""A workdir has one run at a time, and a dead one does not hold it."""

import errno
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_jax.training.workdir_lock import NAME, lock_workdir

CHECKOUT = Path(__file__).resolve().parent.parent

HOLD = """
import subprocess, sys
from resnet_jax.training.workdir_lock import lock_workdir
with lock_workdir(sys.argv[1]):
    worker = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, close_fds=False)
    print(worker.pid, flush=True)
    sys.stdin.read(1)
"""


def hold(folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_second_run_is_refused_until_the_first_is_dead(tmp_path):
    folder = tmp_path / "runs" / "one"
    with hold(folder) as process:
        worker = int(process.stdout.readline())
        try:
            said = f"another run is at work in {folder}: process {process.pid} on {socket.gethostname()}, since 20"
            for _ in range(2):
                with pytest.raises(ValueError, match=re.escape(said)), lock_workdir(folder):
                    pass
            with lock_workdir(tmp_path / "runs" / "other"):
                pass
            process.kill()
            process.wait(20)
            # Its worker, which lives on, holds nothing.
            with lock_workdir(folder):
                assert json.loads((folder / NAME).read_text())["process"] == os.getpid()
        finally:
            process.kill()
            os.kill(worker, 9)


def test_a_run_in_the_same_process_is_refused_and_the_end_of_the_block_lets_go(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), lock_workdir(tmp_path):
            with pytest.raises(ValueError, match=f"process {os.getpid()} "), lock_workdir(tmp_path):
                pass
            raise KeyError


def test_a_holder_that_has_not_said_who_it_is_is_refused_too(tmp_path):
    for text in ("", "[]", "{", "{}"):
        with lock_workdir(tmp_path):
            (tmp_path / NAME).write_text(text)
            with pytest.raises(ValueError, match=f"{NAME} does not say which"), lock_workdir(tmp_path):
                pass


def without_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(file: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_warns(tmp_path, monkeypatch, number):
    without_locks(monkeypatch, number)
    ran = False
    with pytest.warns(UserWarning, match=f"the file system of {tmp_path} has no locks"), lock_workdir(tmp_path):
        ran = True
    assert ran


def test_a_broken_file_system_is_an_error(tmp_path, monkeypatch):
    without_locks(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output"), lock_workdir(tmp_path):
        pass


def test_a_folder_that_cannot_be_one_is_an_error_of_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), lock_workdir(tmp_path / "file"):
        pass
