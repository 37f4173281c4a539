"""Measures all pipelines in one run, interleaved and repeated, and stores one JSON record of it."""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipelines import IMAGE_SIZE, PIPELINES, Source
from summary import MEMORY_SKIPPED_EPOCHS, summarize

from resnet_jax.atomic_files import write_text_atomically
from resnet_jax.data.datasets import dataset_info
from resnet_jax.data.examples import Examples
from resnet_jax.data.prepare import prepare
from resnet_jax.environment import available_cores

HERE = Path(__file__).resolve().parent
COMPARATORS = ("tf_data", "torch_loader")
COPIES = ("jpeg", "bmp")
COPY_SHORT_SIDE = 256
PACKAGES = ("grain", "array-record", "tensorflow-datasets", "simplejpeg", "opencv-python-headless", "psutil")
JOB_TIMEOUT_SECONDS = 900


def main() -> None:
    flags = parse_flags()
    with tempfile.TemporaryDirectory(prefix="input_benchmark_") as scratch:
        source, images = prepare_copies(flags, scratch)
        versions, skipped = prepare_comparators(source)
        # Rounded up: a split that the batch size does not divide is measured in a little more than an epoch.
        epoch_batches = -(-images["original"]["count"] // flags.batch_size)
        shape = {"batch_size": flags.batch_size, "epoch_batches": epoch_batches}
        measurements = measure_throughput(flags, source, skipped, shape)
        memory = {"workers": 2, "epochs": flags.memory_epochs, "image_size": 64}
        memory["mebibytes_by_epoch"] = run_job("memory", source, **shape, **memory)
    record = {
        "config": {name: value for name, value in vars(flags).items() if name not in ("data_dir", "output")},
        "image_size": IMAGE_SIZE,
        "images": images,
        **surroundings(versions),
        "skipped": skipped,
        **summarize(measurements, memory),
        "memory": memory,
        "measurements": measurements,
    }
    for target in record["targets"]:
        met = "met" if target["met"] else "NOT MET"
        print(f"{target['name']}: {target['value']:.2f}, wanted {target['wanted']}: {met}")
    print("stored:", write_text_atomically(flags.output, json.dumps(record, indent=1, allow_nan=False) + "\n"))


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True, help="folder of TFDS data sets")
    parser.add_argument("--dataset", default="imagenet2012")
    parser.add_argument("--split", default="train", help="a whole split (%(default)s); smaller copies are made of it")
    parser.add_argument("--workers", type=_counts, default="1,2,4", help="(%(default)s); 1 is needed for the targets")
    parser.add_argument("--batch_size", type=int, default=80, help="should divide the split (%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="processor time of a measurement (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory_epochs", type=int, default=20)
    parser.add_argument("--pipelines", default=",".join(PIPELINES), help="those to measure (all)")
    parser.add_argument("--output", type=Path, default=HERE / "record.json")
    flags = parser.parse_args()
    flags.pipelines = flags.pipelines.split(",")
    if unknown := set(flags.pipelines) - set(PIPELINES):
        parser.error(f"--pipelines: {', '.join(sorted(unknown))}; there are {', '.join(PIPELINES)}")
    if flags.memory_epochs <= 2 * MEMORY_SKIPPED_EPOCHS:
        parser.error(f"--memory_epochs={flags.memory_epochs}: allowed is more than {2 * MEMORY_SKIPPED_EPOCHS}")
    return flags


def prepare_copies(flags: argparse.Namespace, scratch: str) -> tuple[Source, dict[str, Any]]:
    """Makes the smaller copies; everything is read by that, so that all later reading is from memory."""
    info = dataset_info(flags.dataset, data_dir=flags.data_dir)
    examples = Examples(info, flags.split)
    images = {"original": {"count": len(examples), "megabytes": _megabytes(examples)}}
    source = Source(flags.data_dir, flags.dataset, flags.split, scratch, {})
    for encoding in COPIES:
        options = {"splits": [flags.split], "short_side": COPY_SHORT_SIDE, "encoding": encoding}
        folder = prepare("tfds_folder", data_dir=scratch, source=info.directory, **options)
        source.copies[encoding] = str(folder.parent.relative_to(scratch))
        copied = Examples(dataset_info(source.copies[encoding], data_dir=scratch), flags.split)
        images[source.copies[encoding]] = {"count": len(copied), "megabytes": _megabytes(copied)}
    return source, images


def prepare_comparators(source: Source) -> tuple[dict[str, str], dict[str, str]]:
    """Versions of what can be measured, and reasons for what cannot, by module."""
    versions: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for module in COMPARATORS:
        result = run_job("prepare", source, module=module)
        versions |= result.get("versions", {})
        if "skipped" in result:
            skipped[module] = result["skipped"]
            print(f"{module} is skipped: {result['skipped']}", flush=True)
    return versions, skipped


def measure_throughput(
    flags: argparse.Namespace, source: Source, skipped: dict[str, str], shape: dict[str, int]
) -> list[dict[str, Any]]:
    """One entry for each repeat, pipeline, crop and number of workers, in the order measured."""
    names = [name for name in flags.pipelines if PIPELINES[name].module not in skipped]
    measurements = []
    for repeat in range(flags.repeats):
        # There and back, so that a machine that drifts favours nobody.
        for name in names if repeat % 2 == 0 else reversed(names):
            workers = flags.workers if PIPELINES[name].scales else [1]
            if PIPELINES[name].threads:
                workers = [count for count in workers if count <= available_cores()]
            for result in run_job("throughput", source, pipeline=name, workers=workers, seconds=flags.seconds, **shape):
                measurements.append({"repeat": repeat, "pipeline": name, **result})
                _print_rates(measurements[-1])
    return measurements


def run_job(job: str, source: Source, **arguments: Any) -> Any:
    """Runs `measure.py` in a new process."""
    text = json.dumps({"job": job, "source": source._asdict(), **arguments})
    command = [sys.executable, str(HERE / "measure.py"), text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=JOB_TIMEOUT_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{job} {arguments} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def surroundings(comparators: dict[str, str]) -> dict[str, Any]:
    """Commit, versions, processor; last, because it starts jax, which no pipeline needs."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    from resnet_jax.environment import environment

    found = environment()
    ours = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"commit": found["commit"], "cpu": found["cpu"], "versions": {**found["versions"], **ours, **comparators}}


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _megabytes(examples: Examples) -> float:
    return round(sum(len(examples[index].image) for index in range(len(examples))) / 1e6, 1)


def _print_rates(result: dict[str, Any]) -> None:
    wall, cpu = (result["images"] / result[key] for key in ("wall_seconds", "cpu_seconds"))
    which = f"repeat {result['repeat']}  {result['crop']:9}  {result['pipeline']:14}  workers {result['workers']}"
    print(f"{which}  {wall:6.0f} images/s  {cpu:6.0f} images per second of processor time", flush=True)


if __name__ == "__main__":
    main()
