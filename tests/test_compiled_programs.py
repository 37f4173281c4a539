"""Programs kept from one start to the next: the same bits, whatever is in the folder and whoever else uses it."""

import contextlib
import errno
import logging
import os
import platform
import random
import subprocess
import sys
from collections.abc import Callable, Sequence

import jax
import numpy as np
import pytest
from hosts_helper import CHECKOUT, clean_environment
from jax._src import compilation_cache
from test_loop import SMALL, assert_same_run

from resnet_jax import compiled_programs
from resnet_jax.compiled_programs import keep_compiled_programs, programs_folder
from resnet_jax.data.prepare import prepare
from resnet_jax.records import read_record
from resnet_jax.workdir import Workdir

_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where programs would be kept, of a process that has no setting of its own for it."""
    monkeypatch.setenv("RESNET_JAX_CACHE", str(tmp_path / "cache"))
    before = {name: jax.config.values[name] for name in _SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "cache" / "compiled_programs"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def inodes(folder) -> dict[str, int]:
    """Of the entries: a file that is written anew has another."""
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def compile_anew() -> None:
    jax.clear_caches()
    np.testing.assert_array_equal(jax.jit(lambda x: 3 * x + 1)(np.arange(4)), [1, 4, 7, 10])


def compiled_once(folder) -> list:
    """The entries that a small program leaves; that they are not written again the next time is checked."""
    keep_compiled_programs()
    compile_anew()
    before = inodes(folder)
    compile_anew()
    assert inodes(folder) == before
    return sorted(folder.iterdir())


def test_programs_are_kept_in_a_private_folder(folder):
    entries = compiled_once(folder)
    assert len(entries) >= 1 and programs_folder() == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_the_user_has_set_stays(folder, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    keep_compiled_programs()
    assert programs_folder() == str(tmp_path / "mine")
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    keep_compiled_programs()
    assert programs_folder() is None and jax.config.values["jax_compilation_cache_dir"] is None
    assert not folder.exists()


@pytest.mark.parametrize("reason", ["a file in its place", "others may write", "read-only"])
def test_a_folder_that_cannot_be_used_costs_one_warning(folder, reason, caplog, monkeypatch):
    if reason == "a file in its place":
        folder.parent.write_text("")
    elif reason == "others may write":
        folder.mkdir(parents=True)
        folder.chmod(0o770)
    else:
        refusal = OSError(errno.EROFS, "Read-only file system")
        monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: (_ for _ in ()).throw(refusal))
    keep_compiled_programs()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "compiled programs are not kept" in caplog.text
    assert programs_folder() is None
    compile_anew()


def test_a_full_disk_costs_one_warning(folder, caplog, monkeypatch):
    keep_compiled_programs()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    compile_anew()
    compile_anew()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert list(folder.iterdir()) == []


def cut_short(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    place = random.Random(0).randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGES = [cut_short, flipped, lambda _: b"", lambda content: bytes(len(content)), lambda content: content + b"more"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_made_again(folder, damage):
    entries = compiled_once(folder)
    for path in entries:
        path.write_bytes(damage(path.read_bytes()))
    damaged = inodes(folder)
    compile_anew()  # JAX would warn, which fails the test, and leave it as it is
    replaced = inodes(folder)
    assert replaced.keys() == damaged.keys() and not set(replaced.values()) & set(damaged.values())
    assert compiled_once(folder) == entries


def test_a_jax_that_has_moved_its_private_parts_keeps_programs_in_its_own_way(folder, monkeypatch):
    monkeypatch.delattr(compilation_cache, "_cache_initialized")
    keep_compiled_programs()
    assert programs_folder() == str(folder)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "jax._src.compilation_cache", None)
    monkeypatch.delattr(jax._src, "compilation_cache", raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("RESNET_JAX_CACHE", str(folder.parent))
    keep_compiled_programs()
    assert programs_folder() == str(folder)


def test_a_program_for_other_threads_is_another(folder, monkeypatch):
    entries = compiled_once(folder)
    monkeypatch.setenv("NPROC", "1")
    jax.config.update("jax_compilation_cache_dir", None)
    assert len(compiled_once(folder)) == 2 * len(entries)


def test_the_least_recently_used_go_first(folder, monkeypatch):
    keep_compiled_programs()
    entries = compiled_programs._Entries(folder)
    for number, key in enumerate("abc"):
        entries.put(key, bytes(1000))
        os.utime(entries._file(key), (number, number))
    assert entries.get("a") == bytes(1000)
    monkeypatch.setattr(compiled_programs, "_MOST_BYTES", 2500)
    jax.config.update("jax_compilation_cache_dir", None)
    keep_compiled_programs()
    assert [key for key in "abc" if entries.get(key) is not None] == ["a", "c"]


FINGERPRINT = """
import jax
from jax._src.lib import xla_client
print(xla_client.get_topology_for_devices(jax.devices()).fingerprint())
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the option is x86's")
def test_jax_s_key_knows_the_processor_s_instructions():
    """It has this fingerprint in it; otherwise a folder that machines share would need more in an entry's name."""
    found = []
    for flags in ("", "", "--xla_cpu_max_isa=SSE4_2"):
        command = [sys.executable, "-c", FINGERPRINT]
        environment = clean_environment() | {"XLA_FLAGS": flags}
        found.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert found[0] == found[1] != found[2]


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Callable[..., subprocess.Popen]:
    """Starts `resnet-jax train` of a tiny net, (workdir, words) -> process; its `folder` has the programs of all."""
    data = prepare("digits", data_dir=tmp_path_factory.mktemp("data")).parent.parent
    overrides = {**SMALL, "data.data_dir": data, "train.duration": 4}
    words = [f"--config.{key}={value}" for key, value in overrides.items()]
    command = [sys.executable, "-m", "resnet_jax", "train", "--config=digits", *words]
    cache = tmp_path_factory.mktemp("cache")

    def start(workdir, *more: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*command, f"--workdir={workdir}", *more],
            cwd=CHECKOUT,
            env=clean_environment() | {"RESNET_JAX_CACHE": str(cache)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )

    start.folder = cache / "compiled_programs"
    return start


def finish(processes: Sequence[subprocess.Popen]) -> list[str]:
    """What each wrote on stderr."""
    try:
        written = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(written)
    return written


@pytest.mark.slow
def test_cold_warm_and_damaged_starts_end_with_the_same_bits(start, tmp_path):
    finish([start(tmp_path / "first"), start(tmp_path / "beside")])
    assert_same_run(tmp_path / "beside", tmp_path / "first")
    kept = inodes(start.folder)
    [written] = finish([start(tmp_path / "warm")])
    assert f"(programs are kept in {start.folder})" in written
    assert inodes(start.folder) == kept, "a warm start compiles nothing"
    assert_same_run(tmp_path / "warm", tmp_path / "first")
    paths = sorted(start.folder.iterdir())
    for number, path in enumerate(paths):
        if damage := [*DAMAGES, None][number % 6]:
            path.write_bytes(damage(path.read_bytes()))
    [written] = finish([start(tmp_path / "damaged")])
    assert "Error reading" not in written and "warning" not in written.lower()
    assert_same_run(tmp_path / "damaged", tmp_path / "first")
    again = inodes(start.folder)
    assert {name for name in kept if again[name] == kept[name]} == {path.name for path in paths[5::6]}
    seconds = read_record(Workdir(tmp_path / "warm").record)["start_seconds"]
    assert sum(seconds.values()) > seconds["imports"] > 0.2


@pytest.mark.slow
def test_two_hosts_end_with_the_same_bits(start, tmp_path):
    for name in ("cold", "warm"):
        finish([start(tmp_path / name, "--simulate_hosts=2")])
    assert_same_run(tmp_path / "warm", tmp_path / "cold")
