"""The guards against faults, each timed by itself at ImageNet sizes; what `cost.py` makes its record of."""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from processes import Run

from resnet_jax import build, checkpoint_files
from resnet_jax.checkpoints import Checkpoints
from resnet_jax.config import resolve
from resnet_jax.config_files import load_config
from resnet_jax.data.check_batch import check_image, check_labels
from resnet_jax.data.device_augment import make_prepare
from resnet_jax.distributed import data_mesh, replicate
from resnet_jax.hosts.fingerprint import fingerprint, make_replica_check
from resnet_jax.hosts.launch import join
from resnet_jax.models.registry import initialize
from resnet_jax.parts import build_optimizer, build_schedule
from resnet_jax.training import steps
from resnet_jax.training.objective import classification
from resnet_jax.training.preemption import Preemption
from resnet_jax.training.saving import Saver
from resnet_jax.training.state import Progress
from resnet_jax.training.watchdog import Watchdog

NET, BATCH, IMAGE_SIZE, CLASSES, EXAMPLES = "resnet50", 256, 224, 1000, 1_281_167
WAITED, BESIDE = "waited for", "beside"
# Simulated devices, on a CPU, as many as a usual host has.
COPIES = 8
_CALLS, _REPEATS = 20_000, 5
_PEER_CALLS, _PEER_SECONDS = 5000, 120.0
_BANDWIDTH_BYTES = 256 * 2**20


class Part(NamedTuple):
    """One guard's cost.

    Attributes:
      name: what it does.
      every: "step", "checkpoint" or "start" of a run.
      where: "waited for" by the device or the main thread, or "beside" them in a thread or worker.
      seconds: each time, measured here.
      how: what was measured.
      memory_bytes: that it moves in a device's memory; None for a part of the host.
      link_bytes: that it moves from a device to its host, besides; on a CPU they are the same.
    """

    name: str
    every: str
    where: str
    seconds: float
    how: str
    memory_bytes: float | None = None
    link_bytes: float = 0.0


def measure(folder: Path, *, images: int) -> tuple[dict[str, Any], list[Part]]:
    """All parts, and what they are compared with.

    Args:
      folder: for checkpoints; its disk is the one that is measured.
      images: of the step that is made here.
    """
    batch = _Batch(images)
    step, guard = measure_step(batch)
    state = batch.carried
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    alone, several = measure_calls(folder / "calls"), measure_peers(folder / "peers")
    parts = [guard, *calls_parts(alone, several), *checkpoint_parts(folder / "checkpoints", state, batch.mesh)]
    parts += [replicas_part(state, size), start_part(state[0].variables), *batch_parts()]
    return {"step": step, "state_bytes": size, "calls": {"alone": alone, "of two processes": several}}, parts


class _Batch:
    """The training of a net on one device: state, a batch of random images, and how a step is compiled."""

    def __init__(self, images: int):
        on_cpu = jax.default_backend() == "cpu"
        changes = {"model.bn_group_size": min(32, images), "model.dtype": "float32" if on_cpu else "bfloat16"}
        self.config = resolve(load_config(f"imagenet:goyal90,{NET}", changes), train_examples=EXAMPLES, device_count=1)
        self.mesh = data_mesh(jax.devices()[:1])
        self.model = build.build_model(self.config, num_classes=CLASSES)
        variables = initialize(self.model, jax.random.key(0), (IMAGE_SIZE, IMAGE_SIZE, 3))
        self.carried = replicate((build.build_state(self.config, variables), Progress.zero()), self.mesh)
        chance = np.random.default_rng(0)
        pixels = chance.integers(0, 256, (images, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        labels = chance.integers(0, CLASSES, images, np.int32)
        self.arrays = jax.device_put((pixels, labels, np.ones(images, np.float32)), self.mesh.devices.item())

    def compiled(self, **options: Any) -> Any:
        ones = np.ones(3, np.float32)
        prepare = make_prepare(
            self.mesh,
            seed=0,
            mean=128 * ones,
            std=64 * ones,
            pca_std=0.0,
            eigenvalues=None,
            eigenvectors=None,
            mixup_alpha=0.0,
            cutmix_alpha=0.0,
            batch_size=len(self.arrays[0]),
        )
        optimizer, schedule = build_optimizer(self.config), build_schedule(self.config)
        train_step = steps.make_train_step(classification(self.model), optimizer, schedule, seed=0, mesh=self.mesh)
        call = steps.make_streamed_step(train_step, prepare, self.mesh)
        return call.lower(*self.carried, *self.arrays).compile(options or None)

    def step_seconds(self, call: Any, count: int) -> float:
        """Of one update, in a row of so many; their state is kept."""
        begun = time.perf_counter()
        for _ in range(count):
            self.carried = call(*self.carried, *self.arrays)
        jax.block_until_ready(self.carried)
        return (time.perf_counter() - begun) / count


class _AllFinite:
    """jax.numpy, but that everything is finite, as a compiler can see: what only guards is then left out."""

    isfinite = staticmethod(lambda values: jnp.ones_like(values, bool))

    def __getattr__(self, name: str) -> Any:
        return getattr(jnp, name)


def measure_step(batch: _Batch) -> tuple[dict[str, Any], Part]:
    """A step's seconds; and what it takes to leave an update that is not finite out.

    That part is the bytes that the compiled step moves more than one whose values are known to be finite, by the
    bandwidth of the device's memory. It does not depend on the batch. The difference in time is measured where there
    is an accelerator; a CPU's steps vary by more.
    """
    guarded = batch.compiled()
    on_cpu = jax.default_backend() == "cpu"
    # What is not run may be translated quickly: the bytes are those of the program before.
    options = {"xla_backend_optimization_level": 0} if on_cpu else {}
    with mock.patch.object(steps, "jnp", _AllFinite()):
        bare = batch.compiled(**options)
    moved = [call.cost_analysis()["bytes accessed"] for call in (guarded, bare)]
    batch.step_seconds(guarded, 1)
    found: dict[str, Any] = {"images": len(batch.arrays[0]), "bytes": moved[0], "bytes_without_guard": moved[1]}
    if on_cpu:
        found["seconds"] = statistics.median(batch.step_seconds(guarded, 1) for _ in range(2))
    else:
        batch.step_seconds(bare, 20)
        pairs = [(batch.step_seconds(guarded, 50), batch.step_seconds(bare, 50)) for _ in range(_REPEATS)]
        found["seconds"], found["seconds_without_guard"] = (
            statistics.median(side) for side in zip(*pairs, strict=True)
        )
    found["memory_bandwidth"] = bandwidth = memory_bandwidth()
    extra = moved[0] - moved[1]
    how = "bytes that the compiled step moves more than one without the guard, by this device's measured bandwidth"
    return found, Part("an update that is not finite is left out", "step", WAITED, extra / bandwidth, how, extra)


def memory_bandwidth() -> float:
    """Bytes a second that one device reads and writes, adding 1 to a long array."""
    values = jax.device_put(jnp.zeros(_BANDWIDTH_BYTES // 4, jnp.float32), jax.devices()[0])
    add = jax.jit(lambda values: values + 1, donate_argnums=0)
    seconds = []
    for _ in range(_REPEATS + 1):
        begun = time.perf_counter()
        values = jax.block_until_ready(add(values))
        seconds.append(time.perf_counter() - begun)
    return 2 * _BANDWIDTH_BYTES / statistics.median(seconds[1:])


def measure_calls(folder: Path, calls: int = _CALLS) -> dict[str, float]:
    """Seconds of each of the three calls that the loop makes after every step."""
    limits = {"step": 1800.0, "save": 3600.0}
    with Watchdog(limits) as watchdog, Checkpoints(folder) as checkpoints, Preemption() as preemption:
        saver = Saver(checkpoints, watchdog, data_mesh(jax.local_devices()[:1]))
        with watchdog.phase("step"):
            return {
                "watchdog.beat": _each(watchdog.beat, calls),
                "saver.poll": _each(saver.poll, calls),
                "preemption.requested": _each(preemption.requested, calls),
            }


def measure_peers(folder: Path) -> dict[str, float]:
    """The same in one of two processes, the slower of both."""
    command = [sys.executable, str(Path(__file__).with_name("cost.py")), f"--polls={_PEER_CALLS}"]
    with Run([command] * 2, folder) as run:
        codes, outputs = run.wait(_PEER_SECONDS), run.outputs()
    if codes != [0, 0]:
        raise RuntimeError(f"two processes that only poll ended with {codes}:\n" + "\n".join(outputs))
    both = [json.loads(text.strip().splitlines()[-1]) for text in outputs]
    return {name: max(one[name] for one in both) for name in both[0]}


def poll_as_one_of_several(calls: int, folder: Path) -> dict[str, float]:
    """What each process of `measure_peers` does."""
    join()
    return measure_calls(folder, calls)


def _each(call: Callable[[], Any], count: int) -> float:
    begun = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - begun) / count


def calls_parts(alone: dict[str, float], several: dict[str, float]) -> list[Part]:
    """The parts of every step in the main thread; of one process and of two whatever is slower."""
    names = {
        "watchdog.beat": "the watchdog hears that a step was made",
        "saver.poll": "a save that has failed is noticed",
        "preemption.requested": "SIGTERM is noticed, by all processes at one step",
    }
    how = "mean of many calls in a row, in one process or in one of two, whichever is slower"
    return [Part(names[key], "step", WAITED, max(alone[key], several[key]), f"{key}: {how}") for key in names]


def checkpoint_parts(folder: Path, state: Any, mesh: Any) -> list[Part]:
    """What a save makes the main thread wait for, and what its thread does to list hashes; and a start's comparison."""
    blocked: list[float] = []
    listed: list[float] = []
    write_manifest = checkpoint_files.write_manifest

    def timed(*arguments: Any, **named: Any) -> None:
        listed.append(_seconds(lambda: write_manifest(*arguments, **named)))

    with Watchdog({"save": 3600.0}) as watchdog, Checkpoints(folder) as checkpoints:
        saver = Saver(checkpoints, watchdog, mesh)
        with mock.patch.object(checkpoint_files, "write_manifest", timed):
            for step in range(1, _REPEATS + 1):
                blocked.append(_seconds(lambda step=step: saver.save(step, state, {"error_top1": 0.5})))
                saver.finish()
        newest = folder / str(checkpoints.steps()[-1])
    compared = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        damage = checkpoint_files.find_damage(newest)
        compared.append(time.perf_counter() - begun)
        if damage is not None:
            raise RuntimeError(f"a checkpoint that was just saved is damaged: {damage}")
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    # The least: what else is at work on the machine only adds to it.
    how = f"least of {_REPEATS}"
    return [
        Part(
            "a save begins: the state is copied to the host",
            "checkpoint",
            WAITED,
            min(blocked),
            f"{how}: Saver.save until it returns, with Orbax's own work; elsewhere the copy over the link besides",
            link_bytes=size if jax.default_backend() == "cpu" else 0.0,
        ),
        Part(
            "a checkpoint's files are hashed and put on the disk",
            "checkpoint",
            BESIDE,
            statistics.median(listed),
            f"median of {_REPEATS}: write_manifest of a real save, SHA-256 and fsync, in the save's thread",
        ),
        Part(
            "a checkpoint is compared with its hashes",
            "start",
            WAITED,
            min(compared),
            f"{how}: find_damage, the files in the system's cache",
        ),
    ]


def replicas_part(state: Any, size: int) -> Part:
    """All copies of the state are compared, over simulated devices on a CPU."""
    mesh = data_mesh(jax.devices()[:COPIES])
    check, copies = make_replica_check(mesh), replicate(state, mesh)
    jax.block_until_ready(copies)
    seconds = []
    for _ in range(_REPEATS + 1):
        begun = time.perf_counter()
        astray = check(copies)
        seconds.append(time.perf_counter() - begun)
        if astray:
            raise RuntimeError(f"copies that were just made differ: {astray}")
    # Simulated devices share the cores; real ones work side by side.
    share = mesh.size if mesh.devices.flat[0].platform == "cpu" else 1
    return Part(
        "the devices' copies of the state are compared",
        "checkpoint",
        WAITED,
        min(seconds[1:]) / share,
        f"least of {_REPEATS} over {mesh.size} devices, {'divided by them' if share > 1 else 'side by side'}; "
        "elsewhere the state read, written in one row and read again",
        memory_bytes=3.0 * size,
    )


def start_part(variables: Any) -> Part:
    """The initial parameters are hashed, for processes to agree on them."""
    seconds = min(_seconds(lambda: fingerprint(variables)) for _ in range(_REPEATS))
    how = f"least of {_REPEATS}: fingerprint(initial variables)"
    return Part("processes agree on the initial parameters", "start", WAITED, seconds, how)


def batch_parts(count: int = BATCH) -> list[Part]:
    """Every image and label is checked on the host."""
    chance = np.random.default_rng(0)
    images = list(chance.integers(0, 256, (count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8))
    labels = [int(label) for label in chance.integers(0, CLASSES, count)]
    shape = images[0].shape

    def check() -> None:
        for image, label in zip(images, labels, strict=True):
            # Once when it is read, and once in its batch.
            check_labels([label], CLASSES, str)
            check_image(image, shape, str)
        check_labels(labels, CLASSES, str)

    seconds = min(_seconds(check) for _ in range(20 * _REPEATS))
    how = f"least of {20 * _REPEATS}: check_image and check_labels of {count} images, in the workers that decode them"
    return [Part("images and labels of a batch are checked", "step", BESIDE, seconds, how)]


def _seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun
