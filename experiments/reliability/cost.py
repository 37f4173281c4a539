"""Measures what the guards against faults cost of a training step at ImageNet sizes, and writes one record.

    python experiments/reliability/cost.py --output=experiments/reliability/records/cost.json

ResNet-50, batches of 256 images of 224 x 224, a checkpoint every 1,000 steps or every epoch. What the device or the
main thread waits for is apart from what threads and workers do meanwhile. Without an accelerator the host's parts are
measured, and the device's are the bytes that they move by an accelerator's memory bandwidth.
"""

import argparse
import json
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from cost_parts import (
    BATCH,
    BESIDE,
    COPIES,
    EXAMPLES,
    IMAGE_SIZE,
    NET,
    WAITED,
    Part,
    measure,
    poll_as_one_of_several,
)
from marked import publish

from resnet_jax.atomic_files import write_text_atomically
from resnet_jax.environment import environment

STEPS_AN_EPOCH = EXAMPLES // BATCH
# Steps from one checkpoint to the next, and seconds from one start of a run to the next.
START_SECONDS = 3600.0
INTERVALS = {"every 1,000 steps": 1000, "every epoch": STEPS_AN_EPOCH}
BOUND_PERCENT = 1.0
# Of the data sheet's memory bandwidth, that long copies reach; bytes a second from a device to its host: both assumed
# low, since PCIe 3.0 x16 carries 16e9.
BANDWIDTH_PART, LINK_BANDWIDTH = 0.8, 5e9
HERE = "here"


class Accelerator(NamedTuple):
    """Images a second that it trains, with the source, and its data sheet's memory bandwidth in bytes a second."""

    images_per_second: float
    bandwidth: float
    source: str


ACCELERATORS = {
    "TPU v3 chip": Accelerator(2002, 0.9e12, "MLPerf Training v0.7, Google tpu-v3-32-TF2.0, 256 images a chip"),
    "A100": Accelerator(2470, 2.039e12, "NVIDIA DeepLearningExamples, PyTorch, A100 80 GB, AMP, batch 256, one GPU"),
    "H200": Accelerator(7950, 4.8e12, "MLPerf Training v4.0, NVIDIA h200_ngc24.04_mxnet, 400 images a GPU"),
}


def seconds_on(part: Part, accelerator: Accelerator) -> float:
    """Of a part, each time, beside that accelerator: of a device by bytes, of the host as measured here."""
    if part.memory_bytes is None:
        return part.seconds + part.link_bytes / LINK_BANDWIDTH
    return part.memory_bytes / (BANDWIDTH_PART * accelerator.bandwidth)


def percent(part: Part, seconds: float, *, step_seconds: float, checkpoint_steps: int) -> float:
    """Of the time that it comes once in."""
    between = {"step": step_seconds, "checkpoint": checkpoint_steps * step_seconds, "start": START_SECONDS}
    return 100 * seconds / between[part.every]


def percentages(parts: Sequence[Part], step_seconds_here: float) -> dict[str, Any]:
    """By where the steps are made and how often there is a checkpoint: of each part, and the sums by `where`."""
    found: dict[str, Any] = {}
    for place in (HERE, *ACCELERATORS):
        other = ACCELERATORS.get(place)
        step = BATCH / other.images_per_second if other else step_seconds_here
        found[place] = {"step_seconds": step}
        for name, steps in INTERVALS.items():
            shares = {
                part.name: percent(
                    part,
                    seconds_on(part, other) if other else part.seconds,
                    step_seconds=step,
                    checkpoint_steps=steps,
                )
                for part in parts
            }
            sums = {
                where: math.fsum(shares[part.name] for part in parts if part.where == where)
                for where in (WAITED, BESIDE)
            }
            found[place][name] = {"parts": shares, **sums}
    return found


NOT_COUNTED = [
    "writing a checkpoint, and the test on the validation split that comes with each: a run without guards has both; "
    "only the time that a save blocks the main thread is counted, and whole",
    "reading 257 examples at the start, and waiting there for the slowest process",
    "the watchdog's thread, which looks at a clock once a second",
    "fewer images a device: with 32 in place of 256 what comes with every step is up to eight times the share",
]


def make_record(measured: Mapping[str, Any], parts: Sequence[Part], surroundings: Mapping[str, Any]) -> dict[str, Any]:
    """The record, of what `cost_parts.measure` found."""
    step_seconds = measured["step"]["seconds"] * BATCH / measured["step"]["images"]
    return {
        "config": {
            **{"net": NET, "batch_size": BATCH, "image_size": IMAGE_SIZE, "examples": EXAMPLES},
            **{"checkpoint_steps": INTERVALS, "seconds_between_starts": START_SECONDS},
            **{"bandwidth_part": BANDWIDTH_PART, "link_bandwidth": LINK_BANDWIDTH},
            "accelerators": {name: entry._asdict() for name, entry in ACCELERATORS.items()},
        },
        **surroundings,
        "measured": measured,
        "parts": [part._asdict() for part in parts],
        "bound_percent": BOUND_PERCENT,
        "percent": percentages(parts, step_seconds),
        "not_counted": NOT_COUNTED,
    }


def table(record: Mapping[str, Any]) -> str:
    """In Markdown: percent of the steps' time, by part and by accelerator."""
    percents, rare, often = record["percent"], *reversed(INTERVALS)
    places = list(percents)
    lines = [
        f"| part | each | seconds, measured here | {' | '.join(f'{_title(place)}, %' for place in places)} |",
        f"| --- | --- | ---: |{' ---: |' * len(places)}",
    ]
    for where in (WAITED, BESIDE):
        for part in (part for part in record["parts"] if part["where"] == where):
            shares = " | ".join(f"{percents[place][often]['parts'][part['name']]:.4f}" for place in places)
            lines.append(f"| {part['name']} | {part['every']} | {part['seconds']:.2g} | {shares} |")
        for interval in (often, rare):
            sums = " | ".join(f"{percents[place][interval][where]:.3f}" for place in places)
            lines.append(f"| **{where}, together**, a checkpoint {interval} | | | {sums} |")
    steps = "; ".join(f"{_title(place)} {_milliseconds(percents[place]['step_seconds'])}" for place in places)
    sources = "; ".join(f"{name}: {entry['source']}" for name, entry in record["config"]["accelerators"].items())
    cpu = record["cpu"]
    notes = [
        f"A step of {BATCH} images: {steps}. A run starts once an hour. The accelerators' are published: {sources}.",
        f"Here: {record['devices']['platform']}, {cpu['model']}, {cpu['count']} cores; the step of "
        f"{record['measured']['step']['images']} images, times {BATCH / record['measured']['step']['images']:g}.",
    ]
    return "\n".join(lines) + "\n\n" + "\n".join(notes)


def _title(place: str) -> str:
    return "this machine" if place == HERE else place


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--images", type=int, help="of the measured step (256 on an accelerator, 4 on a CPU)")
    parser.add_argument("--output", type=Path, help="the record's file")
    parser.add_argument("--readme", type=Path, help="whose table is made anew")
    parser.add_argument("--polls", type=int, help=argparse.SUPPRESS)  # one process of several, to count polls
    flags = parser.parse_args(argv)
    if flags.polls:
        with tempfile.TemporaryDirectory(prefix="cost_") as folder:
            print(json.dumps(poll_as_one_of_several(flags.polls, Path(folder))))
        return 0
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # As many copies of the state as a usual host has devices; of the CPU alone, which else has one.
    jax.config.update("jax_num_cpu_devices", COPIES)
    images = flags.images or (4 if jax.default_backend() == "cpu" else BATCH)
    with tempfile.TemporaryDirectory(prefix="cost_") as folder:
        measured, parts = measure(Path(folder), images=images)
    record = make_record(measured, parts, environment())
    if flags.output:
        flags.output.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(flags.output, json.dumps(record, indent=1, allow_nan=False) + "\n")
    print(table(record))
    if flags.readme:
        publish(flags.readme, "cost.py", table(record))
    worst = max(record["percent"][name][interval][WAITED] for name in ACCELERATORS for interval in INTERVALS)
    return int(worst >= BOUND_PERCENT)


if __name__ == "__main__":
    raise SystemExit(main())
