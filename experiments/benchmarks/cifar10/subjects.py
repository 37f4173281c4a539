"""What is timed, in a process of its own: `python subjects.py JSON`, see `serving`."""

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet_jax.benchmark.subjects import Subject

HERE = Path(__file__).resolve().parent
REFERENCE = HERE.parents[1] / "cifar10"
sys.path.append(str(HERE.parent))
from serving import serve  # noqa: E402

CONFIG, BATCH, TEST_BATCH, DATASET = "cifar10:resnet20", 128, 500, "noise"


def _parts(net: str, data_dir: str, overrides: dict[str, Any]) -> Any:
    """The parts of a run of `resnet-jax train`, on noise in place of CIFAR-10."""
    from resnet_jax.build import build
    from resnet_jax.config_files import load_config

    own = {"model.name": net, "data.name": DATASET, "data.data_dir": data_dir}
    return build(load_config(CONFIG, own | overrides))


def _compile(parts: Any, state: Any, progress: Any) -> tuple[Any, dict[str, float]]:
    """The call as the training loop compiles it, with its seconds and the memory that it plans."""
    from resnet_jax.analysis.program import planned_bytes
    from resnet_jax.training.determinism import compiler_options

    begun = time.perf_counter()
    lowered = parts.make_call(parts.steps_per_call).lower(state, progress, *parts.feed.arguments(0))
    traced = time.perf_counter()
    compiled = lowered.compile(compiler_options(parts.config.train.determinism))
    seconds = {"trace_seconds": traced - begun, "compile_seconds": time.perf_counter() - traced}
    return compiled, seconds | {"planned_bytes": planned_bytes(compiled)}


def train(net: str, data_dir: str, overrides: dict[str, Any]) -> Subject:
    """Training steps of this library, as many in a call as the config says."""
    import jax

    parts = _parts(net, data_dir, overrides)
    per_call, step = parts.steps_per_call, 0
    state, progress = parts.initial_state(), parts.initial_progress()
    compiled, said = _compile(parts, state, progress)

    def run(batches: int) -> int:
        nonlocal state, progress, step
        calls = max(1, round(batches / per_call))
        for _ in range(calls):
            state, progress = compiled(state, progress, *parts.feed.arguments(step))
            step += per_call
        jax.block_until_ready((state, progress))
        return calls * per_call * BATCH

    images = run(per_call)
    if int(progress.sums.count) != images:
        raise RuntimeError(f"a call trained on {int(progress.sums.count)} images, not {images}")
    return Subject(said | {"batch": BATCH, "batches_per_call": per_call}, run)


def plans(variants: list[dict[str, Any]], data_dir: str) -> Subject:
    """Compiles training steps, each {"net", "overrides"}, and runs none."""
    found = []
    for variant in variants:
        parts = _parts(data_dir=data_dir, **variant)
        _, said = _compile(parts, parts.initial_state(), parts.initial_progress())
        found.append(variant | said)
    return Subject({"plans": found}, lambda batches: 0)


def evaluation(net: str, data_dir: str, overrides: dict[str, Any]) -> Subject:
    """This library's test of the whole test split."""
    from resnet_jax.evaluation.evaluator import make_evaluator

    parts = _parts(net, data_dir, overrides | {"evaluate.batch_size": TEST_BATCH})
    options = {"protocol": "center", "batch_size": TEST_BATCH, "input": parts.input}
    evaluate = make_evaluator(parts.model, parts.mesh, **options)
    variables, split = parts.initial_state().evaluated_variables, parts.splits["test"]
    per_call = len(split) // TEST_BATCH

    def run(batches: int) -> int:
        calls = max(1, round(batches / per_call))
        return sum(evaluate(variables, split)["count"] for _ in range(calls))

    run(per_call)
    return Subject({"batch": TEST_BATCH, "batches_per_call": per_call}, run)


def forward(net: str, data_dir: str, overrides: dict[str, Any]) -> Subject:
    """Nothing but the net, on one batch of floats that lies on the device."""
    import jax

    from resnet_jax.data.device_augment import normalize
    from resnet_jax.data.resident import take_rows
    from resnet_jax.xla_options import backend_options

    parts = _parts(net, data_dir, overrides)
    variables = parts.initial_state().evaluated_variables
    pixels, _ = take_rows(parts.splits["test"], jax.numpy.arange(TEST_BATCH))
    images = normalize(pixels, parts.input.mean, parts.input.std)
    score = jax.jit(functools.partial(parts.model.apply, train=False), compiler_options=backend_options())

    def run(batches: int) -> int:
        jax.block_until_ready([score(variables, images) for _ in range(batches)])
        return batches * TEST_BATCH

    run(1)
    return Subject({"batch": TEST_BATCH, "batches_per_call": 1}, run)


def pytorch(
    net: str, data_dir: str, split: str, device: str, bf16: bool, mode: str | None, group: int | None
) -> Subject:
    """Training steps of `experiments/cifar10/pytorch_reference.py`, of the same size."""
    sys.path.append(str(REFERENCE))
    import pytorch_reference as reference
    import torch

    from resnet_jax.data.arrays import load_arrays
    from resnet_jax.data.datasets import dataset_info

    place = torch.device(device)
    config = {"net": net, "seed": 0, "steps": reference.STEPS, "bf16": bf16, "compile": mode}
    arrays = load_arrays(dataset_info(DATASET, data_dir=data_dir), split)
    training = reference.make_training(config, arrays, classes=10, device=place, group=group)

    def run(batches: int) -> int:
        for _ in range(batches):
            training.step()
        reference.synchronize(place)
        return batches * reference.BATCH

    begun = time.perf_counter()
    run(1)
    said = {"first_step_seconds": time.perf_counter() - begun, "threads": torch.get_num_threads()}
    return Subject(said | {"batch": reference.BATCH, "batches_per_call": 1}, run)


SUBJECTS: dict[str, Callable[..., Subject]] = {
    **{"train": train, "evaluation": evaluation, "forward": forward, "pytorch": pytorch, "plans": plans},
}

if __name__ == "__main__":
    serve(SUBJECTS)
