"""What a record tells of the software and the machine, and what it must not tell."""

import getpass
import os
import socket
import subprocess
from pathlib import Path

import numpy as np

from resnet_jax.environment import environment, peak_memory, source_commit


def test_the_environment_names_no_machine_user_or_path():
    found = environment()
    assert found["devices"]["platform"] == "cpu"
    assert found["devices"]["count"] == 8
    assert found["cpu"]["count"] >= 1
    names = {"python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "resnet_jax"}
    assert set(found["versions"]) == names
    assert found["versions"]["numpy"] == np.__version__
    texts = [str(text) for text in found["versions"].values()] + [str(found["cpu"]["model"])]
    for private in (socket.gethostname(), getpass.getuser(), str(Path.home()), os.getcwd()):
        assert private not in texts and "/" not in "".join(found["versions"]["jax"])


def test_the_peak_on_a_cpu_is_the_process_own_and_only_grows():
    before = peak_memory()
    assert before["peak_bytes_source"] == "process"
    assert 50_000_000 < before["peak_bytes"] < 1 << 40
    more = np.ones(before["peak_bytes"] // 8 + 10_000_000)
    assert peak_memory()["peak_bytes"] > before["peak_bytes"]
    del more


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_checkout_that_tracks_the_package(tmp_path, monkeypatch):
    package, configs = tmp_path / "package", tmp_path / "configs"
    for folder in (package, configs):
        folder.mkdir()
        (folder / "__init__.py").write_text("")
    assert source_commit(package) is None
    git(tmp_path, "init", "-q")
    assert source_commit(package) is None
    git(tmp_path, "add", "package", "configs")
    assert source_commit(package) is None  # no commit yet
    git(tmp_path, "commit", "-q", "-m", "first")
    clean = {"hash": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    assert source_commit(package) == clean
    (tmp_path / "notes.txt").write_text("nothing that runs")
    assert source_commit(package) == clean
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert source_commit(package) == clean
    monkeypatch.delenv("GIT_DIR")
    (configs / "new.py").write_text("")
    assert source_commit(package) == {**clean, "dirty": True}
    (configs / "new.py").unlink()
    (package / "__init__.py").write_text("changed = 1")
    assert source_commit(package) == {**clean, "dirty": True}
    installed = tmp_path / "venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert source_commit(installed) is None  # another project's checkout


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert source_commit(tmp_path) is None
