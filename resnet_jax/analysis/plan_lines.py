"""The lines of a plan: each a number, its formula, and where what goes into it is from."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from ml_collections import FrozenConfigDict

from resnet_jax.analysis.collectives import Collective
from resnet_jax.analysis.compiled_step import CompiledStep
from resnet_jax.analysis.devices import Device, Networks
from resnet_jax.analysis.lowered_step import Data

_KINDS = ("all-reduce", "collective-permute")


class Line(NamedTuple):
    """One number: its key in JSON, its label in the table, the value in its unit, formula or source in words."""

    key: str
    label: str
    value: int | float
    unit: str
    source: str

    @property
    def readable(self) -> str:
        """The value as text."""
        match self.unit:
            case "bytes" | "bytes/s":
                return f"{self.value / 1e6:,.3f} MB{self.unit[5:]}"
            case "seconds":
                if self.value < 1:
                    return f"{self.value * 1e3:,.3f} ms"
                return f"{self.value:,.1f} s" if self.value < 600 else f"{self.value / 3600:,.2f} h"
        return f"{self.value:,.0f}"


@dataclass(frozen=True)
class Run:
    """What the lines are made from.

    Attributes:
      config: resolved for all devices.
      data: what it trains on.
      encoded_bytes: of an image on the disk.
      step: compiled for a few devices.
      device: each of them.
      networks: that join them.
      hosts: how many.
      devices: of all hosts.
      group: how many of them share a group of batch norm.
    """

    config: FrozenConfigDict
    data: Data
    encoded_bytes: float
    step: CompiledStep
    device: Device
    networks: Networks
    hosts: int
    devices: int
    group: int

    @property
    def images(self) -> int:
        """Of one device and step."""
        return self.config.train.batch_size // self.devices

    @property
    def host_images(self) -> int:
        """Of one host and step."""
        return self.config.train.batch_size // self.hosts

    def check_kinds(self) -> None:
        """Raises ValueError if devices exchange arrays in a way that the plan has no formula for."""
        other = sorted({c.kind for c in self.step.collectives} - set(_KINDS))
        if other:
            raise ValueError(f"the step has {', '.join(other)}; a plan has formulas for {' and '.join(_KINDS)} only")

    def reduced(self, *, by_all: bool) -> list[Collective]:
        """The all-reduces that span all devices, or those inside batch-norm groups alone."""
        step = self.step
        inside = step.group_devices if step.group_devices < step.devices else None
        return [c for c in step.collectives if c.kind == "all-reduce" and (c.devices != inside) == by_all]

    @property
    def gradient_bytes(self) -> int:
        """Of all parameters, once for each part of a batch; those in bfloat16 are gradients all."""
        if self.devices == 1:
            return 0
        narrow = sum(c.size * c.times for c in self.reduced(by_all=True) if c.itemsize == 2)
        return 4 * self.step.parameters * self.config.train.accumulation_steps - 2 * narrow

    @property
    def statistics_bytes(self) -> int:
        """Of all else that all devices reduce."""
        return _bytes(self.reduced(by_all=True)) - self.gradient_bytes

    @property
    def neighbour_bytes(self) -> int:
        """That a device sends to the next one."""
        return _bytes([c for c in self.step.collectives if c.kind == "collective-permute"])


def net_lines(run: Run) -> list[Line]:
    """What is trained."""
    return [
        Line("parameters", "parameters", run.step.parameters, "", "the training state's arrays"),
        Line("multiply_adds", "multiply-adds of an image", run.step.multiply_adds, "", "as resnet-jax summarize"),
        Line("steps", "steps", run.config.steps.total, "", "the config"),
    ]


def traffic_lines(run: Run) -> list[Line]:
    """What devices send each other in a step."""
    narrow = any(c.itemsize == 2 for c in run.step.collectives)
    width = "convolutions' in bfloat16, others in float32" if narrow else "float32"
    again = f", for each of {parts} parts" if (parts := run.config.train.accumulation_steps) > 1 else ""
    seen = f"{width}{again}; from the step compiled for {run.step.devices} devices"
    groups = {run.devices: "statistics are those of all devices", 1: "each device has whole groups"}
    group = groups.get(
        run.group, f"model.bn_group_size={run.config.model.bn_group_size} / images of a device (and part)"
    )
    lines = [
        Line("gradient_bytes", "gradients, all-reduced", run.gradient_bytes, "bytes", seen),
        Line(
            "statistics_bytes",
            "statistics, losses, counts",
            run.statistics_bytes,
            "bytes",
            "likewise; as large on any number of devices",
        ),
        Line("all_reduces", "all-reduces", _calls(run.reduced(by_all=True)), "", "as XLA's CPU compiler joins them"),
        Line("group_devices", "devices of a batch-norm group", run.group, "", group),
    ]
    if inside := run.reduced(by_all=False):
        lines += [
            Line("group_bytes", "statistics inside groups", _bytes(inside), "bytes", "all-reduced in each group"),
            Line("group_all_reduces", "all-reduces inside groups", _calls(inside), "", "one after the other"),
        ]
    if run.neighbour_bytes:
        source = "an image, its label and weight to the next device, for mixing"
        lines.append(Line("neighbour_bytes", "to the next device", run.neighbour_bytes, "bytes", source))
    sent = run.networks.sent_bytes(_bytes(run.reduced(by_all=True)), run.devices)
    sent += run.networks.sent_bytes(_bytes(inside), run.group) + run.neighbour_bytes
    rings = run.networks.rings(run.devices)
    joined = ", then ".join(f"{n} at {bandwidth / 1e9:g} GB/s" for n, bandwidth in rings) or "none"
    source = f"2 (n - 1) / n of the bytes in a ring of n; 1 / n go on to the next ring: {joined}"
    return [*lines, Line("sent_bytes", "sent by each device", sent, "bytes", source)]


def time_lines(run: Run, overlap: int | float, images_per_core: int | float) -> list[Line]:
    """How long a step takes, by a stated model.

    Args:
      run: what is planned.
      overlap: part of the gradients' all-reduce that goes on during the backward pass.
      images_per_core: images a second that a core decodes.
    """
    lines = _device_time(run, overlap)
    seconds, limit = lines[-1].value, "devices"
    if run.config.data.pipeline == "streamed":
        cores = run.device.cores_per_host
        decoding = run.host_images / (cores * images_per_core)
        source = f"{run.host_images:,} images of a host / ({cores} cores x {images_per_core:g} images a second)"
        lines.append(Line("input_seconds", "input", decoding, "seconds", source))
        seconds, limit = max((seconds, limit), (decoding, "input"))
    rate, total = run.config.train.batch_size / seconds, seconds * run.config.steps.total
    return [
        *lines,
        Line("step_seconds", "a step", seconds, "seconds", f"the longer of the two: {limit}"),
        Line("images_per_second", "images a second", rate, "images/s", "batch / a step"),
        Line("images_per_second_device", "  and device", rate / run.devices, "images/s", "by the devices"),
        Line(
            "training_seconds", "the training", total, "seconds", "steps x a step; tests, checkpoints, start left out"
        ),
    ]


def _device_time(run: Run, overlap: int | float) -> list[Line]:
    model, device, networks = run.config.model, run.device, run.networks
    passes = 4 if model.remat else 3
    fraction = device.peak_fraction / (2 if model.dtype == "float32" else 1)
    compute = 2 * passes * run.step.multiply_adds * run.images / (device.peak * fraction)
    reached = f"({fraction:g} of {device.peak / 1e12:g} TFLOP/s, too much for few images a device)"
    source = f"2 x multiply-adds x {passes} passes x {run.images} images / {reached}"
    gradients = networks.all_reduce_seconds(run.gradient_bytes, run.devices)
    others = networks.all_reduce_seconds(run.statistics_bytes, run.devices)
    inside = run.reduced(by_all=False)
    others += networks.all_reduce_seconds(_bytes(inside), run.group) + run.neighbour_bytes / networks.slowest()
    latency = _calls(run.reduced(by_all=True)) * networks.latency(run.devices)
    latency += _calls(inside) * networks.latency(run.group)
    assumed = ", ".join(f"{seconds * 1e6:g}" for seconds in networks.latencies)
    hidden = min(overlap * gradients, compute * (passes - 1) / passes)
    total = compute + gradients + others + latency - hidden
    return [
        Line("compute_seconds", "compute", compute, "seconds", source),
        Line(
            "gradient_seconds", "gradients", gradients, "seconds", "bytes sent in each ring / its bandwidth, added up"
        ),
        Line("statistics_seconds", "statistics and the rest", others, "seconds", "likewise"),
        Line(
            "latency_seconds",
            "latency",
            latency,
            "seconds",
            f"all-reduces x {assumed} us in a host, in a slice, between slices",
        ),
        Line(
            "hidden_seconds",
            "hidden",
            0.0 - hidden,
            "seconds",
            f"{overlap:g} of the gradients, at most the backward pass",
        ),
        Line("device_seconds", "devices", total, "seconds", "the sum"),
    ]


def input_lines(run: Run, step_seconds: float) -> list[Line]:
    """What hosts read and hand to their devices."""
    height, width, channels = run.data.image_shape
    shape = f"{height}x{width}x{channels}"
    if run.config.data.pipeline == "resident":
        count = run.data.examples * (height * width * channels + 4)
        source = f"{run.data.examples:,} images of {shape} bytes with labels, copied once"
        return [Line("resident_bytes", "in each device's memory", count, "bytes", source)]
    count = run.host_images * (height * width * channels + 8)
    read = run.host_images * run.encoded_bytes / step_seconds
    source = f"{run.host_images:,} images of {shape} bytes with label and weight"
    encoded = f"{run.encoded_bytes / 1e3:.0f} kB an image on the disk, the mean of the data set"
    return [
        Line("host_step_bytes", "to a host's devices in a step", count, "bytes", source),
        Line("host_bytes_per_second", "  in a second", count / step_seconds, "bytes/s", "by the time of a step"),
        Line("host_read_per_second", "read by a host in a second", read, "bytes/s", encoded),
        Line("read_per_second", "  by all hosts", read * run.hosts, "bytes/s", "x hosts"),
    ]


def checkpoint_lines(run: Run) -> list[Line]:
    """What hosts write."""
    total = sum(math.prod(shape) * itemsize for shape, itemsize in run.step.state)
    first, other = checkpoint_shares(run.step.state, hosts=run.hosts, devices=run.devices)
    kept = run.config.checkpoint.keep_latest + run.config.checkpoint.keep_best
    why_first = f"its share, and every array without an axis that {run.devices:,} devices divide"
    lines = [
        Line("checkpoint_bytes", "a checkpoint", total, "bytes", "the training state, before compression"),
        Line("first_host_bytes", "written by the first host", first, "bytes", why_first),
    ]
    if run.hosts > 1:
        why = "the other arrays / hosts"
        lines.append(Line("other_host_bytes", "written by each other host", other, "bytes", why))
    source = f"{kept} kept (checkpoint.keep_latest, keep_best), one being written"
    return [*lines, Line("checkpoint_disk_bytes", "on the disk at most", total * (kept + 1), "bytes", source)]


def checkpoint_shares(state: Any, *, hosts: int, devices: int) -> tuple[float, float]:
    """Bytes of a checkpoint that the first host writes, and each of the others.

    Orbax cuts an array that every device has along its first axis that the number of devices divides, a piece for each;
    where there is none, the first host writes all of it.

    Args:
      state: (shape, bytes a number) of each array.
      hosts: how many.
      devices: of all hosts.
    """
    shared = whole = 0
    for shape, itemsize in state:
        count = math.prod(shape) * itemsize
        if any(length % devices == 0 for length in shape):
            shared += count
        else:
            whole += count
    return shared / hosts + whole, shared / hosts


def _bytes(collectives: list[Collective]) -> int:
    return sum(c.size * c.itemsize * c.times for c in collectives)


def _calls(collectives: list[Collective]) -> int:
    """How many operations they are, several arrays in one."""
    return sum({c.call: c.times for c in collectives}.values())
