"""What a run's numbers depend on besides its config: versions, devices, processor, commit; and the memory it took."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from resnet_jax import __version__

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def environment() -> dict[str, Any]:
    """What a run's numbers depend on besides its config; initialises jax's devices.

    Returns:
      `versions` (of python and the packages; None where one is not installed), `devices` (platform, kind,
      count, processes), `cpu` (model, count available to this process), `commit` (hash and dirty flag of the
      checkout the package lies in; None when it lies in none). Nothing names the machine, its user or a path
      on it.
    """
    devices = jax.devices()
    return {
        "versions": {
            "resnet_jax": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        },
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
        "cpu": {"model": _cpu_model(), "count": available_cores()},
        "commit": source_commit(Path(__file__).resolve().parent),
    }


def source_digest() -> str:
    """SHA-256, in hex, of the package's source files: what runs here, committed or not."""
    package = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def source_commit(package: Path) -> dict[str, Any] | None:
    """The commit of the git checkout that tracks a package folder, and whether what it runs was changed
    since.

    Args:
      package: the package's folder; `configs` beside it counts too.

    Returns:
      `{"hash": str, "dirty": bool}`; None without git, outside a checkout, or where the checkout does not
      track the package (an installation inside another project's folder).
    """
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "status", "--porcelain", "--", ".", "../configs")
    if commit is None or changes is None:
        return None
    return {"hash": commit.strip(), "dirty": bool(changes.strip())}


def peak_memory() -> dict[str, Any]:
    """The most memory this process has used so far.

    Returns:
      `peak_bytes` and `peak_bytes_source`: "device" (the fullest local device's own count), or, where the
      backend keeps none (CPU), "process" (the largest resident set, Python and its libraries included).
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]
    if peaks:
        return {"peak_bytes": max(peaks), "peak_bytes_source": "device"}
    import resource  # here, because Windows has no such module

    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "peak_bytes_source": "process",
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command in a folder; None where git is missing or refuses."""
    # A git hook that runs the tests sets GIT_DIR, which would name another checkout.
    variables = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return done.stdout


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:  # only Linux has it
        return platform.processor() or None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
