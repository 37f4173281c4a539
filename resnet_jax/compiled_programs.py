"""Compiled programs, kept on disk from one start of the command line to the next: JAX's cache, switched on.

JAX's key of a program has what it computes, its options, the versions, the devices and the processor's instructions,
so that machines of several kinds may share the folder. It lacks how many threads XLA has on a CPU, by which it divides
loops and so rounds: these are part of an entry's name here, so that a program is bit for bit the one that would be
compiled. JAX's own files are not written at once, never replaced, and hold no checksum where zstandard is installed;
these are whole or not there, and one that is damaged counts as absent and is compiled and written again.
"""

import contextlib
import hashlib
import logging
import os
import tempfile
from pathlib import Path

import jax

from resnet_jax.atomic_files import unfinished_path
from resnet_jax.cache_folder import cache_folder
from resnet_jax.environment import available_cores

_log = logging.getLogger(__name__)

_FOLDER = "compiled_programs"
# A training step of a ResNet-20 takes 1 MB, all else of its run half of that.
_MOST_BYTES = 2**30
_DIGEST_BYTES = hashlib.sha256().digest_size


def keep_compiled_programs() -> None:
    """Keeps the programs that this process compiles in `cache_folder() / "compiled_programs"`, and uses those there.

    For processes that are the library's own: it changes JAX's configuration, unless the user did so by
    JAX_COMPILATION_CACHE_DIR or JAX_ENABLE_COMPILATION_CACHE. What is in the folder is executed, so it must belong to
    this user, and nobody else may write there. Where it cannot be used a warning says so, and nothing is kept.
    """
    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] is not None or not settings["jax_enable_compilation_cache"]:
        return
    try:
        folder = cache_folder() / _FOLDER
        _open(folder)
    except (OSError, RuntimeError) as error:  # the latter of a home that is not known
        _log.warning("compiled programs are not kept, so that each start compiles them: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # Small ones, too: a run begins with some seventy that take less than JAX's limit of 1 s each, and 5 s together.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    _replace_store(folder)


def programs_folder() -> str | None:
    """Where this process keeps compiled programs, by whoever's choice; None where it does not."""
    settings = jax.config.values
    return settings["jax_compilation_cache_dir"] or None if settings["jax_enable_compilation_cache"] else None


def _replace_store(folder: Path) -> None:
    """Entries of this module's kind in place of JAX's, which stay where a later JAX has moved what is private there."""
    try:
        # Another store of entries cannot be chosen anywhere public.
        from jax._src import compilation_cache
    except ImportError:
        return
    if hasattr(compilation_cache, "_cache") and hasattr(compilation_cache, "_cache_initialized"):
        compilation_cache._cache, compilation_cache._cache_initialized = _Entries(folder), True  # type: ignore


def _open(folder: Path) -> None:
    """Makes the folder, and room in it; raises an OSError if it cannot be used."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} is another user's, or others may write there (chmod 700 makes it private)")
    with tempfile.TemporaryFile(dir=folder):
        pass
    # Other processes may be at it, too.
    with contextlib.suppress(FileNotFoundError):
        found = [(path.stat(), path) for path in folder.iterdir() if path.is_file()]
        total = sum(status.st_size for status, _ in found)
        for status, path in sorted(found, key=lambda item: item[0].st_mtime):
            if total <= _MOST_BYTES:
                break
            path.unlink()
            total -= status.st_size


class _Entries:
    """Files by JAX's key and the threads: the SHA-256 of the rest, and what JAX keeps."""

    def __init__(self, folder: Path):
        self._path = folder
        self._threads = f"{os.environ.get('NPROC') or 'all'}_of_{available_cores()}_threads"
        self._writes = True

    def get(self, key: str) -> bytes | None:
        """What `put` was given, if it is there as it was."""
        path = self._file(key)
        try:
            content = path.read_bytes()
            os.utime(path)  # the least recently used go first
        except OSError:
            return None
        digest, value = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        return value if hashlib.sha256(value).digest() == digest else None

    def put(self, key: str, value: bytes) -> None:
        """Keeps it; a full disk costs a warning."""
        if not self._writes:
            return
        unfinished = unfinished_path(self._file(key))
        try:
            # Not flushed to the disk: the digest tells what a power cut leaves.
            unfinished.write_bytes(hashlib.sha256(value).digest() + value)
            os.replace(unfinished, self._file(key))
        except OSError as error:
            self._writes = False
            _log.warning("compiled programs are not kept any more: %s", error)
            unfinished.unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        return self._path / f"{key}-{self._threads}"
