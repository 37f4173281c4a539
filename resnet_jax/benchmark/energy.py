"""The energy that the devices have used so far, where the machine tells: NVIDIA GPUs, and processors by RAPL."""

import ctypes
from pathlib import Path

import jax

# Linux's powercap counters of whole processors, in microjoules: intel-rapl:0, intel-rapl:1 (AMD's are called so, too).
_RAPL = Path("/sys/class/powercap")


def joules() -> float | None:
    """Joules since some fixed moment, of all devices or processors of this host together; None where nothing tells.

    A processor's counter begins anew when it is full, so that a difference can be negative: then it is worth nothing.
    """
    return _of_gpus() if jax.default_backend() == "gpu" else _of_processors(_RAPL)


def _of_processors(folder: Path) -> float | None:
    try:
        counters = [path / "energy_uj" for path in folder.glob("intel-rapl:*") if path.name.count(":") == 1]
        microjoules = [int(counter.read_text()) for counter in counters]
    except OSError:  # only root may read them
        return None
    return sum(microjoules) / 1e6 if microjoules else None


def _of_gpus() -> float | None:
    """By NVIDIA's management library, which comes with the driver and counts millijoules."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    if library.nvmlInit_v2() != 0:
        return None
    try:
        count = ctypes.c_uint()
        if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return None
        total = 0
        for index in range(count.value):
            device, used = ctypes.c_void_p(), ctypes.c_ulonglong()
            if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) != 0:
                return None
            if library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(used)) != 0:
                return None
            total += used.value
        return total / 1e3
    finally:
        library.nvmlShutdown()
