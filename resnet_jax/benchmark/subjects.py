"""What is timed: functions that do so many batches and wait for the last of them."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from resnet_jax.analysis.program import planned_bytes, step_bytes
from resnet_jax.build import multiply_adds
from resnet_jax.data.device_augment import normalize
from resnet_jax.data.feeds import StreamedFeed
from resnet_jax.distributed import split_batch
from resnet_jax.evaluation.evaluator import make_evaluator
from resnet_jax.evaluation.protocols import Protocol, make_protocol
from resnet_jax.evaluation.streamed_scores import divisible
from resnet_jax.parts import Parts
from resnet_jax.training.determinism import compiler_options
from resnet_jax.xla_options import backend_options


class Subject(NamedTuple):
    """Something that can be timed.

    Attributes:
      said: what is known before: "batch" (images), "batches_per_call", and whatever else belongs into a record.
      run: (batches) -> images, does so many batches, or the calls that come nearest, and waits for the last.
    """

    said: dict[str, Any]
    run: Callable[[int], int]


def train(parts: Parts) -> Subject:
    """Training steps, as many in a call as the training loop makes; real images come through the input pipeline.

    Raises:
      RuntimeError: a call did not train on as many images as it should have.
    """
    state, progress = parts.initial_state(), parts.initial_progress()
    step: int = 0
    per_call, total = parts.steps_per_call, int(parts.config.steps.total)
    compiled, said = compile_call(parts, (state, progress, *parts.feed.arguments(0)))
    images_per_call = per_call * parts.config.train.batch_size * len(parts.seeds.numbers)

    def run(batches: int) -> int:
        nonlocal state, progress, step
        calls = max(1, round(batches / per_call))
        for _ in range(calls):
            if step + per_call > total:
                step = 0
            state, progress = compiled(state, progress, *parts.feed.arguments(step))
            step += per_call
        jax.block_until_ready((state, progress))
        return calls * images_per_call

    begun = time.perf_counter()
    run(1)
    said["first_call_seconds"] = time.perf_counter() - begun
    trained = int(np.sum(progress.sums.count + 0))
    if trained != images_per_call:
        raise RuntimeError(f"a call trained on {trained} images, not {images_per_call}")
    return Subject(said | {"batch": images_per_call // per_call, "batches_per_call": per_call}, run)


def compile_only(parts: Parts) -> Subject:
    """Compiles the training step, and runs nothing."""
    _, said = compile_call(parts, (parts.initial_state(), parts.initial_progress(), *parts.feed.arguments(0)))
    return Subject(said | {"batch": parts.config.train.batch_size, "batches_per_call": 1}, lambda batches: 0)


def compile_call(parts: Parts, arguments: tuple) -> tuple[Any, dict[str, Any]]:
    """The call as the training loop compiles it, with its seconds, planned memory, arithmetic and traffic."""
    begun = time.perf_counter()
    lowered = parts.make_call(parts.steps_per_call).lower(*arguments)
    traced = time.perf_counter()
    compiled = lowered.compile(compiler_options(parts.config.train.determinism))
    seconds = {"trace_seconds": traced - begun, "compile_seconds": time.perf_counter() - traced}
    images = parts.config.train.batch_size * len(parts.seeds.numbers)
    return compiled, {
        **seconds,
        "planned_bytes": planned_bytes(compiled),
        # Forward, and backward to inputs and weights; what is computed anew does not count.
        "flop_per_image": 3 * _forward_flop(parts),
        # Of a loop of blocks only one turn would be counted.
        "bytes_per_image": None if parts.config.model.scan else step_bytes(compiled) / images,
    }


def evaluate(parts: Parts) -> Subject:
    """The test of the whole test split, as after training: centre crops."""
    size = parts.config.evaluate.batch_size
    options = {"protocol": "center", "batch_size": size, "input": parts.input}
    test = make_evaluator(parts.model, parts.mesh, workers=parts.config.data.workers, **options)
    variables, split = parts.initial_state().evaluated_variables, parts.splits["test"]
    per_call = max(1, len(split) // size)

    def run(batches: int) -> int:
        return sum(int(test(variables, split)["count"]) for _ in range(max(1, round(batches / per_call))))

    run(1)
    said = {"batch": size, "batches_per_call": per_call, "flop_per_image": _forward_flop(parts)}
    return Subject(said, run)


def forward(parts: Parts) -> Subject:
    """Nothing but the net, on one batch of floats that lies on the devices: what a test is held against."""
    return _forward(parts, parts.input.image_shape)


def dense(parts: Parts) -> Subject:
    """Fully convolutional testing (section 3.4) of images in the ratio 3:2 and of their mirror images, at one scale."""
    protocol, shape, size = _dense(parts)
    variables = parts.initial_state().evaluated_variables
    sizes = np.tile(np.asarray(shape[:2], np.int32), (size, 1))
    arguments = jax.device_put((_pixels(size, shape), sizes), split_batch(parts.mesh))
    score = jax.jit(partial(protocol.scores, parts.model), compiler_options=backend_options())

    def run(batches: int) -> int:
        jax.block_until_ready([score(variables, *arguments) for _ in range(batches)])
        return batches * size

    run(1)
    return Subject({"batch": size, "batches_per_call": 1, "dense_shape": list(shape)}, run)


def dense_forward(parts: Parts) -> Subject:
    """What `dense` is held against: the net on as many images of that size and their mirror images, as one image."""
    _, shape, _ = _dense(parts)
    return _forward(parts, shape, views=2)


def _dense(parts: Parts) -> tuple[Protocol, tuple[int, int, int], int]:
    side = parts.input.image_shape[0]
    protocol = make_protocol("multi_scale", parts.input, scales=(side,))
    shape = protocol.batch_shape((side, side * 3 // 2, 3))
    return protocol, (shape[0], shape[1], 3), divisible(max(1, parts.config.evaluate.batch_size // 2), parts.mesh)


def _forward(parts: Parts, shape: tuple[int, ...], *, views: int = 1) -> Subject:
    size = views * divisible(max(1, parts.config.evaluate.batch_size // views), parts.mesh)
    variables = parts.initial_state().evaluated_variables
    on_devices = jax.device_put(_pixels(size, shape), split_batch(parts.mesh))
    images = jax.jit(normalize)(on_devices, parts.input.channel_mean, parts.input.std)
    score = jax.jit(partial(parts.model.apply, train=False))
    begun = time.perf_counter()
    compiled = score.lower(variables, images).compile(backend_options())
    said: dict[str, Any] = {"compile_seconds": time.perf_counter() - begun, "planned_bytes": planned_bytes(compiled)}

    def run(batches: int) -> int:
        jax.block_until_ready([compiled(variables, images) for _ in range(batches)])
        return batches * size // views

    run(1)
    if views == 1:
        moved = None if parts.config.model.scan else step_bytes(compiled) / size
        said |= {"flop_per_image": _forward_flop(parts), "bytes_per_image": moved}
    return Subject(said | {"batch": size // views, "batches_per_call": 1}, run)


def _pixels(count: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)


def read(parts: Parts) -> Subject:
    """The input pipeline alone: decoded, cropped, on the devices.

    Raises:
      ValueError: the data set lies in device memory, so that no step reads any.
    """
    feed, total = parts.feed, int(parts.config.steps.total)
    if not isinstance(feed, StreamedFeed):
        raise ValueError(
            "data.pipeline=resident: such a data set is read once, and no step waits for it; choose one with "
            "data.pipeline=streamed"
        )
    size: int = parts.config.train.batch_size
    step: int = 0

    def run(batches: int) -> int:
        nonlocal step
        for _ in range(batches):
            jax.block_until_ready(feed.arguments(step))
            step = (step + 1) % total
        return batches * size

    run(1)
    return Subject({"batch": size, "batches_per_call": 1}, run)


def _forward_flop(parts: Parts) -> int:
    """Floating-point operations of an image's forward pass, an addition and a multiplication each for itself."""
    side, classes = parts.input.image_shape[0], len(parts.input.class_names)
    return 2 * multiply_adds(parts.config, image_size=side, num_classes=classes)
