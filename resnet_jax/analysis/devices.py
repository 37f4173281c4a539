"""Accelerators by name, and how they are joined: what a plan has to know of them, from the vendors' public pages."""

import dataclasses
import math
from typing import Any

from resnet_jax.config_rules import unknown

# Seconds; in no data sheet, assumed.
_LATENCIES = (10e-6, 20e-6, 100e-6)


@dataclasses.dataclass(frozen=True)
class Device:
    """One accelerator and its part of the networks.

    Attributes:
      devices_per_host: of the usual host.
      cores_per_host: physical processor cores of that host.
      peak: floating-point operations a second, dense, bfloat16.
      peak_fraction: of the peak that training in bfloat16 reaches; in float32, which moves twice the bytes, half of it.
      bandwidths: bytes a second that one device sends (and receives as many at once) inside its host, inside its
        slice, and between slices. A slice is what one network joins: a TPU slice, a cluster of GPUs.
      latencies: seconds that an all-reduce takes at least, in each of the three.
    """

    devices_per_host: int
    cores_per_host: int
    peak: float
    peak_fraction: float
    bandwidths: tuple[float, float, float]
    latencies: tuple[float, float, float] = _LATENCIES


DEVICES = {
    # NVIDIA's data sheets of H100 and H200 SXM: bfloat16 1,979 TFLOP/s with sparsity, half of that without; NVLink
    # 900 GB/s, both directions together. DGX H100, H200: an adapter of 400 Gbit/s a GPU, two processors of 56 cores.
    # Between clusters: assumed to be as inside. Fraction of the peak: ResNet-50 in MLPerf Training v4.0 on 8 GPUs, with
    # kernels that XLA does not have (7,163 and 7,950 images a second and GPU, 24.3 GFLOP an image).
    "h100": Device(8, 112, 989.4e12, 0.176, (450e9, 50e9, 50e9)),
    "h200": Device(8, 112, 989.4e12, 0.195, (450e9, 50e9, 50e9)),
    # Cloud TPU's page of each generation. Sent inside a slice: half of a chip's bidirectional inter-chip bandwidth;
    # v4: 1.1 PB/s all-reduce bandwidth of a pod by its 4,096 chips. Between slices: the data center bandwidth of a pod
    # by its 256 chips (6.4 and 25.6 Tbit/s); v5p: 50 Gbit/s a chip; v4: assumed as v5p. Cores: half of the vCPUs of a
    # whole host's machine type. Fraction of the peak: v4 of MLPerf Training v0.7 (3,381 images a second and chip); for
    # the others no run is published: memory bandwidth / 377 MB an image, as XLA's program for v5e moves, x 0.79 as on
    # v4.
    "tpu_v4": Device(4, 120, 275e12, 0.30, (268e9, 268e9, 6.25e9)),
    "tpu_v5e": Device(8, 112, 197e12, 0.21, (200e9, 200e9, 3.125e9)),
    "tpu_v5p": Device(4, 104, 459e12, 0.31, (600e9, 600e9, 6.25e9)),
    "tpu_v6e": Device(8, 90, 918e12, 0.09, (400e9, 400e9, 12.5e9)),
}


def device_named(name: str, **own: Any) -> Device:
    """A device of the table, some of its numbers replaced; None keeps one.

    Raises:
      ValueError: for an unknown name, or a number that is not above 0 (latencies may be 0).
    """
    if name not in DEVICES:
        raise ValueError(unknown("device", name, DEVICES))
    given = {key: value for key, value in own.items() if value is not None}
    for key, value in given.items():
        lowest = min(value) if isinstance(value, tuple) else value
        if not (lowest > 0 or (lowest == 0 and key == "latencies")):
            raise ValueError(f"{key}={value}: must be above 0" + ", or 0" * (key == "latencies"))
    return dataclasses.replace(DEVICES[name], **given)


@dataclasses.dataclass(frozen=True)
class Networks:
    """How the devices of a run are joined.

    Attributes:
      sizes: devices of a host, hosts of a slice, slices.
      bandwidths: see `Device`.
      latencies: see `Device`.
    """

    sizes: tuple[int, int, int]
    bandwidths: tuple[float, float, float]
    latencies: tuple[float, float, float]

    def rings(self, devices: int) -> list[tuple[int, float]]:
        """(members, bytes a second) of the rings that join so many consecutive devices, the innermost first."""
        sizes, bandwidths = self._merged()
        return [(n, bandwidth) for n, bandwidth in zip(_fill(sizes, devices), bandwidths, strict=True) if n > 1]

    def sent_bytes(self, count: int | float, devices: int) -> float:
        """Bytes that each device sends to add up arrays of `count` bytes.

        A ring of n moves 2 (n - 1) / n of the bytes through every device (Patarasuk and Yuan 2009); the next ring has
        the share of them, 1 / n, that one device has added up.
        """
        return sum((moved for moved, _ in self._moved(count, devices)), 0.0)

    def all_reduce_seconds(self, count: int | float, devices: int) -> float:
        """Seconds for that: one ring after the other."""
        return sum((moved / bandwidth for moved, bandwidth in self._moved(count, devices)), 0.0)

    def latency(self, devices: int) -> float:
        """Seconds that an all-reduce of nothing takes among so many consecutive devices: the widest network's."""
        crossed = [latency for n, latency in zip(_fill(self.sizes, devices), self.latencies, strict=True) if n > 1]
        return crossed[-1] if crossed else 0.0

    def slowest(self) -> float:
        """Bytes a second at which every device can send to the next one at once."""
        return min((bandwidth for _, bandwidth in self.rings(math.prod(self.sizes))), default=math.inf)

    def _moved(self, count: int | float, devices: int) -> list[tuple[float, float]]:
        moved, inner = [], 1
        for members, bandwidth in self.rings(devices):
            moved.append((2 * (members - 1) / members * count / inner, bandwidth))
            inner *= members
        return moved

    def _merged(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Sizes and bandwidths of the networks; a host is none where its devices are joined as those of a slice are."""
        host, slice_, slices = self.sizes
        if self.bandwidths[0] == self.bandwidths[1]:
            return (host * slice_, slices), self.bandwidths[1:]
        return self.sizes, self.bandwidths


def _fill(sizes: tuple[int, ...], devices: int) -> list[int]:
    """How many members of each network so many consecutive devices are, the innermost first."""
    members = []
    for size in sizes:
        members.append(min(size, devices))
        devices = -(-devices // members[-1])
    return members
