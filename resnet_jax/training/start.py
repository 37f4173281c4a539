"""The start of a run: each process prepares its part, and before the first step all agree on what they run."""

import contextlib
import importlib.metadata
from collections.abc import Iterator
from typing import Any

import jax

from resnet_jax.config import flatten
from resnet_jax.environment import source_digest
from resnet_jax.hosts.agreement import check_agreement
from resnet_jax.hosts.fingerprint import fingerprint
from resnet_jax.parts import Parts
from resnet_jax.tasks import TASKS
from resnet_jax.training.determinism import check_threads, promises
from resnet_jax.training.start_times import StartTimes
from resnet_jax.training.state import TrainState
from resnet_jax.training.workdir_lock import lock_workdir
from resnet_jax.workdir import Workdir, may_differ

# One process may have to make a data set, or read a large one from slow storage, while the others wait.
_PREPARATION_SECONDS = 1800.0
_WORKDIR_SECONDS = 60.0
# Libraries whose versions change what is computed.
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")


@contextlib.contextmanager
def started(config: Any, files: Workdir, times: StartTimes) -> Iterator[tuple[Parts, TrainState]]:
    """Holds the workdir for the block, and gives the run's parts and its state before step 1.

    What stops one process stops all, with its reason: a config, data set, version or initial parameters that differ
    from the others' too. Process 0 alone writes.

    Args:
      config: checked.
      files: of the workdir, which all processes must share.
      times: of the start.

    Raises:
      ValueError: the config is not possible, the workdir belongs to another run or one that is at work in it, or the
        processes disagree; then the message names what they disagree on, and who has what.
      FileNotFoundError: the data set is not there.
      PeerLost: a process did not come.
    """
    jax.devices()  # which all processes make together: one that stopped before would leave the others waiting
    times.end("devices")
    with contextlib.ExitStack() as stack:
        facts: dict[str, str] = {}
        problem: Exception | None = None
        try:
            if jax.default_backend() == "cpu":
                check_threads(config.train.determinism, jax.local_device_count())
            parts = TASKS[config.task].build(config)
            times.end("data")
            variables = parts.initial_variables()
            facts = _facts(parts, variables)
            # What cannot be built leaves no folder behind.
            if jax.process_index() == 0:
                stack.enter_context(lock_workdir(files.path))
            files.refuse_other_config(config)
            files.refuse_other_data(parts.config, parts.input, parts.data)
        except (ValueError, OSError, ImportError) as error:
            problem = error
        check_agreement({"start": "ready" if problem is None else str(problem), **facts}, seconds=_PREPARATION_SECONDS)
        if problem is not None:
            raise problem
        if jax.process_index() == 0:
            files.claim(parts.config, parts.input, parts.data)
        check_agreement({}, seconds=_WORKDIR_SECONDS)
        there = files.config.is_file()
        check_agreement({"workdir": "is there" if there else f"has no {files.config.name} of process 0: share it"})
        # Not before all agree: each device takes its part of what its own process made.
        yield parts, parts.initial_state(variables)


def _facts(parts: Parts, variables: dict) -> dict[str, str]:
    """What all processes must have alike."""
    if jax.process_count() == 1:
        return {}
    keys = {key: repr(value) for key, value in flatten(parts.config).items() if not may_differ(key)}
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    input = {"mean": parts.input.mean, "std": parts.input.std}
    return {
        **keys,
        **versions,
        "source files of resnet_jax": source_digest(),
        "determinism": promises(parts.config.train.determinism),
        "data set's files": parts.data,
        "mean and std of the images": fingerprint(input),
        "initial parameters": fingerprint(variables),
    }
