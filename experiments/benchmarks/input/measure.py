"""One job of the benchmark in a process of its own: `python measure.py JOB`, JSON in and one line of JSON out."""

import importlib
import itertools
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
from pipelines import CROPS, PIPELINES, OpenBatches, Source

# Before measuring: until every worker has started and its queue is in its steady state.
WARM_UP_BATCHES_PER_WORKER = 2


def main() -> None:
    job = json.loads(sys.argv[1])
    source = Source(**job.pop("source"))
    print(json.dumps(JOBS[job.pop("job")](source, **job)))


def prepare_comparator(source: Source, *, module: str) -> dict[str, Any]:
    """Writes what a library reads; says why where the library cannot be imported."""
    try:
        comparator = importlib.import_module(module)
    except Exception as error:  # builds that do not fit each other raise more than ImportError
        return {"skipped": f"{type(error).__name__}: {error}"}
    return {"versions": comparator.prepare(source)}


def measure_throughput(
    source: Source, *, pipeline: str, workers: list[int], batch_size: int, epoch_batches: int, seconds: float
) -> list[dict[str, Any]]:
    """Wall and processor time of whole epochs, for each kind of crop with each number of workers in turn."""
    found = PIPELINES[pipeline]
    open_batches: OpenBatches = importlib.import_module(found.module).open_batches
    results = []
    for crop, count in itertools.product(CROPS, workers):
        with open_batches(source, crop=crop, workers=count, batch_size=batch_size, **found.options) as batches:
            for _ in range(WARM_UP_BATCHES_PER_WORKER * count):
                next(batches)
            results.append({"crop": crop, "workers": count, **_measure(batches, epoch_batches, seconds)})
    return results


def measure_memory(
    source: Source, *, workers: int, batch_size: int, epoch_batches: int, epochs: int, image_size: int
) -> list[float]:
    """MiB resident in parent and workers, pages that they share counted for each, after every epoch of one stream."""
    from ours import open_batches

    options = {"crop": "inception", "resize": "area", "image_size": image_size, "batch_size": batch_size}
    mebibytes = []
    with open_batches(source, workers=workers, **options) as batches:
        for _ in range(epochs):
            for _ in itertools.islice(batches, epoch_batches):
                pass
            mebibytes.append(round(sum(process.memory_info().rss for process in _process_tree()) / 2**20, 1))
    return mebibytes


def _measure(batches: Iterator[Any], epoch_batches: int, seconds: float) -> dict[str, float]:
    """Whole epochs, until they have taken `seconds` of processor time in this process and its workers."""
    images, wall_start, cpu_start, cpu = 0, time.perf_counter(), _cpu_seconds(), 0.0
    while cpu < seconds:
        images += sum(len(batch) for batch in itertools.islice(batches, epoch_batches))
        cpu = _cpu_seconds() - cpu_start
    return {"images": images, "wall_seconds": time.perf_counter() - wall_start, "cpu_seconds": cpu}


def _cpu_seconds() -> float:
    times = [process.cpu_times() for process in _process_tree()]
    return sum(time.user + time.system for time in times)


def _process_tree() -> list[psutil.Process]:
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


JOBS = {"prepare": prepare_comparator, "throughput": measure_throughput, "memory": measure_memory}

if __name__ == "__main__":
    main()
