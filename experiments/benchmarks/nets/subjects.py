"""What is timed, in a process of its own: `python subjects.py JSON`, see `serving`."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet_jax.benchmark import subjects as ours
from resnet_jax.benchmark.subjects import Subject

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from serving import serve  # noqa: E402


def _ours(make: Callable[..., Subject], config: str, overrides: dict[str, Any]) -> Subject:
    """A subject of this library on random images that lie on the device."""
    from resnet_jax.benchmark.synthetic import synthetic_parts
    from resnet_jax.config_files import load_config

    return make(synthetic_parts(load_config(config, overrides)))


def train(config: str, overrides: dict[str, Any]) -> Subject:
    """Training steps of this library, as many in a call as it makes by itself."""
    return _ours(ours.train, config, overrides)


def inference(config: str, overrides: dict[str, Any]) -> Subject:
    """This library's net on a batch of floats."""
    return _ours(ours.forward, config, overrides)


def compilation(config: str, overrides: dict[str, Any]) -> Subject:
    """This library's training step, compiled and never run."""
    return _ours(ours.compile_only, config, overrides)


def _flax(net: str, batch_size: int, image_size: int, dtype: str) -> tuple[Any, Any, tuple, dict[str, Any]]:
    """The state, the compiled step and its batch of the plain Flax trainer, and what is to be said of it."""
    import flax_trainer
    import jax
    import numpy as np

    random, schedule = np.random.default_rng(0), flax_trainer.learning_rate(batch_size)
    images = jax.numpy.asarray(random.standard_normal((batch_size, image_size, image_size, 3), np.float32), dtype)
    batch = images, jax.numpy.asarray(random.integers(0, 1000, batch_size), "int32")
    state = flax_trainer.initial_state(net, image_size=image_size, dtype=dtype, schedule=schedule)
    begun = time.perf_counter()
    lowered = flax_trainer.make_train_step(schedule).lower(state, *batch)
    traced = time.perf_counter()
    compiled = lowered.compile()
    said = {"trace_seconds": traced - begun, "compile_seconds": time.perf_counter() - traced}
    settings = {"settings": flax_trainer.SETTINGS, "batch": batch_size, "batches_per_call": 1}
    return state, compiled, batch, said | settings


def flax_train(**setting: Any) -> Subject:
    """Training steps of the plain Flax trainer."""
    import jax

    state, step, batch, said = _flax(**setting)

    def run(batches: int) -> int:
        nonlocal state
        for _ in range(batches):
            state, metrics = step(state, *batch)
        jax.block_until_ready((state, metrics))
        return batches * said["batch"]

    run(1)
    return Subject(said, run)


def flax_compilation(**setting: Any) -> Subject:
    """The plain Flax trainer's step, compiled and never run."""
    return Subject(_flax(**setting)[-1], lambda batches: 0)


def _pytorch(training: bool, batch_size: int, **setting: Any) -> Subject:
    """PyTorch's training steps, or its inference."""
    import torch
    import torch_nets

    job = torch_nets.Job(batch_size=batch_size, as_bytes=training, **setting)
    step = torch_nets.make_train_step(job) if training else torch_nets.make_inference(job)

    def run(batches: int) -> int:
        for _ in range(batches):
            step()
        job.wait()
        return batches * batch_size

    begun = time.perf_counter()
    run(1)
    said: dict[str, Any] = {"first_step_seconds": time.perf_counter() - begun}
    # CUDA graphs are recorded by later ones.
    run(2)
    settings = torch_nets.SETTINGS | {"threads": torch.get_num_threads()}
    return Subject(said | {"settings": settings, "batch": batch_size, "batches_per_call": 1}, run)


def pytorch_train(**setting: Any) -> Subject:
    """PyTorch's training steps."""
    return _pytorch(True, **setting)


def pytorch_inference(**setting: Any) -> Subject:
    """PyTorch's inference on a batch of floats."""
    return _pytorch(False, **setting)


SUBJECTS: dict[str, Callable[..., Subject]] = {
    **{"train": train, "inference": inference, "compilation": compilation},
    **{"flax_train": flax_train, "flax_compilation": flax_compilation},
    **{"pytorch_train": pytorch_train, "pytorch_inference": pytorch_inference},
}

if __name__ == "__main__":
    serve(SUBJECTS)
