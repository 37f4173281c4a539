"""The plan of a run on many devices, made without any: what they send each other and read, and how long it takes.

Sizes are those of the compiled training step. Times are a model, which each line states, until they are measured.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_jax import config as configs
from resnet_jax.analysis.compiled_step import devices_of_a_group, examine
from resnet_jax.analysis.devices import Device, Networks
from resnet_jax.analysis.lowered_step import Data
from resnet_jax.analysis.plan_lines import (
    Line,
    Run,
    checkpoint_lines,
    input_lines,
    net_lines,
    time_lines,
    traffic_lines,
)
from resnet_jax.build import check_classes
from resnet_jax.data.datasets import builder_of, dataset_info, split_size

# ImageNet's training images, where the set is not there: classes, images, and bytes of the original archive.
_IMAGENET = (1000, 1_281_167, 147_897_477_120)
# Images a second that one core decodes, crops and resizes ("area", worker processes): experiments/benchmarks/input.
_DECODED = {"scale": 780.0, "inception": 700.0}


@dataclass(frozen=True)
class Plan:
    """Lines by section; `str()` is a table."""

    title: str
    sections: dict[str, list[Line]]

    def numbers(self) -> dict[str, int | float]:
        """Every value by its key, in bytes, seconds and images."""
        return {line.key: line.value for lines in self.sections.values() for line in lines}

    def to_json(self) -> dict[str, Any]:
        """The title, and value, unit and source of each line by its key."""
        lines = [line for lines in self.sections.values() for line in lines]
        return {"title": self.title} | {
            line.key: {"value": line.value, "unit": line.unit, "source": line.source} for line in lines
        }

    def __str__(self) -> str:
        lines = [line for lines in self.sections.values() for line in lines]
        label, value = (max(len(cell(line)) for line in lines) for cell in (lambda x: x.label, lambda x: x.readable))
        text = [self.title]
        for name, section in self.sections.items():
            text += ["", name]
            text += [f"  {line.label:{label}}  {line.readable:>{value}}  {line.source}" for line in section]
        return "\n".join(text)


def plan(
    config: Any,
    device: Device,
    *,
    hosts: int,
    devices_per_host: int | None = None,
    slices: int = 1,
    overlap: int | float = 0.0,
    images_per_core: int | float | None = None,
) -> Plan:
    """Plans a run of a config on many devices; within a minute, without them and, for ImageNet, without the data.

    Args:
      config: from `load_config`.
      device: of `DEVICES`, or one's own.
      hosts: processes of the run.
      devices_per_host: None takes the device's usual number.
      slices: into which the hosts are divided evenly; between them the network is slower.
      overlap: part of the gradients' all-reduce that goes on during the backward pass, 0 to 1.
      images_per_core: images a second that a core decodes; None takes what was measured for the config's crops.

    Raises:
      ValueError: what the config's own checks refuse for so many devices, such as a batch that they cannot share;
        numbers that cannot be; batch-norm groups that do not lie on whole devices.
      FileNotFoundError: the data set is not there and is not ImageNet's whole training split, whose numbers are known.
    """
    per_host = device.devices_per_host if devices_per_host is None else devices_per_host
    _check(hosts, per_host, slices, overlap, images_per_core)
    for key, other in {
        "sharding": config.train.sharding != "none",
        "determinism": config.train.determinism == "topology",
    }.items():
        if other:
            raise ValueError(f"train.{key}={config.train[key]}: a plan has formulas for copies and all-reduces only")
    if config.num_seeds > 1:
        raise ValueError(f"num_seeds={config.num_seeds}: a plan is of one seed; set num_seeds=1")
    data, encoded_bytes = _data_of(config)
    devices = hosts * per_host
    config = configs.resolve(config, train_examples=data.examples, device_count=devices)
    run = Run(
        config=config,
        data=data,
        encoded_bytes=encoded_bytes,
        step=examine(config, data, devices),
        device=device,
        networks=Networks((per_host, hosts // slices, slices), device.bandwidths, device.latencies),
        hosts=hosts,
        devices=devices,
        group=devices_of_a_group(config, devices),
    )
    run.check_kinds()
    times = time_lines(run, overlap, _DECODED[config.data.crop] if images_per_core is None else images_per_core)
    step = next(line.value for line in times if line.key == "step_seconds")
    title = (
        f"{config.model.name} in {config.model.dtype} on {devices:,} devices: {hosts:,} hosts of {per_host} "
        f"in {slices} slice{'s' * (slices > 1)}; batch {config.train.batch_size:,}, {run.images} a device"
    )
    return Plan(
        title,
        {
            "the net": net_lines(run),
            "sent in a step": traffic_lines(run),
            "time of a step: a model, not measured": times,
            "input": input_lines(run, step),
            "checkpoints": checkpoint_lines(run),
        },
    )


def _check(
    hosts: int, devices_per_host: int, slices: int, overlap: int | float, images_per_core: int | float | None
) -> None:
    for name, number in {"hosts": hosts, "devices_per_host": devices_per_host, "slices": slices}.items():
        if number < 1:
            raise ValueError(f"{name}={number}: must be at least 1")
    if hosts % slices:
        raise ValueError(f"slices={slices}: must divide hosts={hosts}")
    if not 0 <= overlap <= 1:
        raise ValueError(f"overlap={overlap}: must be from 0, none, to 1, all that the backward pass has time for")
    if images_per_core is not None and not images_per_core > 0:
        raise ValueError(f"images_per_core={images_per_core}: must be above 0")


def _data_of(config: Any) -> tuple[Data, float]:
    """The data set, and bytes of one encoded image."""
    side, split = config.data.image_size, config.data.train_split
    try:
        info = dataset_info(config.data.name, data_dir=config.data.data_dir)
    except FileNotFoundError:
        if (config.data.name, split) != ("imagenet2012", "train"):
            raise
        classes, examples, archive = _IMAGENET
        return Data((side, side, 3), classes, examples), archive / examples
    check_classes(config, info)
    height, width, channels = info.image_shape
    streamed = config.data.pipeline == "streamed"
    shape = (side, side, channels) if streamed else (height or side, width or side, channels)
    whole = {name: builder_of(info.directory).info.splits[name].filepaths for name in info.split_sizes}
    count = sum(Path(path).stat().st_size for paths in whole.values() for path in paths)
    return Data(shape, info.num_classes, split_size(info, split)), count / sum(info.split_sizes.values())
