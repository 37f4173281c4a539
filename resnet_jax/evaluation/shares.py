"""A test that a run's processes share: each sees its part of a split on its own devices, and only sums travel.

Nothing that a process does for its share waits for another one. At the end all exchange their sums, and a process whose
share failed comes to that, too, so that the others hear why and do not wait for it.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Shaped

from resnet_jax.distributed import collected, data_mesh, replicated, split_batch
from resnet_jax.evaluation.metrics import Sums
from resnet_jax.hosts.peers import PeerLost, lost_peers_named

# Of the reason that a process whose share failed tells the others.
_REASON_BYTES = 1024
# How a process's share ended: all counted, failed for what the user has to mend, or for anything else.
_WELL, _BAD_INPUT, _FAULT = range(3)


def processes_of(mesh: Mesh) -> list[int]:
    """The processes whose devices the mesh has, in its order."""
    return list(dict.fromkeys(device.process_index for device in mesh.devices.flat))


def own_mesh(mesh: Mesh) -> Mesh:
    """This process's devices of a mesh; the mesh itself if it has no others."""
    own = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    return mesh if len(own) == mesh.size else data_mesh(own)


def share_of(count: int, place: int, processes: int) -> range:
    """The examples that one of several processes sees: one stretch, which it reads in sequence.

    The stretches follow on one another, and their lengths differ by one at most; with more processes than examples some
    are empty.

    Args:
      count: examples of the split.
      place: of the process among them, from 0.
      processes: how many there are.
    """
    return range(count * place // processes, count * (place + 1) // processes)


def own_copies(tree: Any, mesh: Mesh) -> Any:
    """The arrays of a mesh on this process's devices alone.

    They lie whole on every device: it takes the copies that are there, and no byte moves.
    """
    if not mesh.is_multi_process:
        return tree
    sharding = replicated(own_mesh(mesh))

    def copies(leaf: jax.Array) -> jax.Array:
        if leaf.is_fully_addressable:
            return leaf
        here = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, here)

    return jax.tree.map(copies, tree)


def gather(values: np.ndarray, mesh: Mesh) -> Shaped[np.ndarray, "processes ..."]:
    """What each process brings, in the mesh's order of processes and the same bits in all; all call it together.

    Raises:
      PeerLost: another process is gone.
    """
    if not mesh.is_multi_process:
        return values[None]
    places = [device.process_index for device in mesh.devices.flat]
    with lost_peers_named():
        # Every device brings what its process has; of each process one is kept.
        brought = jax.make_array_from_callback((mesh.size, *values.shape), split_batch(mesh), lambda _: values[None])
        everywhere = np.asarray(collected(brought, mesh))
    return everywhere[[places.index(process) for process in processes_of(mesh)]]


def add_shares(count: int, mesh: Mesh, test: Callable[[range], Sums], *, unreadable: str) -> dict[str, float]:
    """Tests a split, each process its own share, and adds up; all processes call it together.

    Args:
      count: examples of the split.
      mesh: devices of all processes.
      test: (share) -> sums over its examples, which no other process has a part in.
      unreadable: "stop", or "skip" if the sums may lack examples.

    Returns:
      {"loss", "error_top1", "error_top5", "count"}, the same numbers in all processes.

    Raises:
      Exception: what `test` raised here.
      ValueError: `test` raised one in another process; the message is its.
      PeerLost: `test` raised anything else in another process, and the message is its; or a process is gone.
      RuntimeError: if not every example was counted once.
    """
    processes = processes_of(mesh)
    share = share_of(count, processes.index(jax.process_index()), len(processes))

    def work() -> np.ndarray:
        return np.asarray([*jax.tree.leaves(jax.device_get(test(share))), len(share)], np.float32)

    rows = exchange(mesh, work, like=np.zeros(len(jax.tree.leaves(Sums.zero())) + 1, np.float32))
    # Row by row: one order of the processes in all of them.
    *totals, seen = rows.astype(np.float64).sum(axis=0)
    added = Sums(*totals)
    if seen != count or added.count > count or (added.count < count and unreadable != "skip"):
        raise RuntimeError(f"evaluated {added.count:.0f} of {count} images; every one must count once")
    return added.means()


def exchange(mesh: Mesh, work: Callable[[], np.ndarray], *, like: np.ndarray) -> Shaped[np.ndarray, "processes ..."]:
    """Does each process's work, and gives all what each has made; all call it together.

    Args:
      mesh: devices of all processes.
      work: makes this process's values.
      like: an array of their shape and type, which a process brings whose work fails.

    Raises:
      Exception: what `work` raised here.
      ValueError: `work` raised one in another process; the message is its.
      PeerLost: `work` raised anything else in another process, and the message is its; or a process is gone.
    """
    values, problem = like, None
    try:
        values = work()
    except Exception as error:
        problem = error
    how = _WELL if problem is None else _BAD_INPUT if isinstance(problem, ValueError) else _FAULT
    ends = gather(np.asarray(how), mesh)
    if ends.any():
        _stop(problem, ends, mesh)
    return gather(values, mesh)


def _stop(problem: Exception | None, how: np.ndarray, mesh: Mesh) -> None:
    """Raises what happened here, or else the first other process's reason."""
    reason = "" if problem is None else f"{problem}" if isinstance(problem, ValueError) else repr(problem)
    reasons = gather(np.frombuffer(reason.encode()[:_REASON_BYTES].ljust(_REASON_BYTES), np.uint8), mesh)
    if problem is not None:
        raise problem
    first = int(np.flatnonzero(how)[0])
    told = reasons[first].tobytes().decode(errors="ignore").strip()
    message = f"process {processes_of(mesh)[first]} of {len(how)} could not test its share of the images: {told}"
    raise ValueError(message) if how[first] == _BAD_INPUT else PeerLost(message)
