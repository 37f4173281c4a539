"""Joins the processes of one run, before any of them touches a device."""

import ipaddress
import os
import sys

from resnet_jax.hosts.meeting import meet, split_address
from resnet_jax.hosts.place import detected_place, stated_place

# jax waits so long at a process's end for the others to end; they may be writing their last checkpoint.
_ENDING_SECONDS = 120


def join(
    coordinator: str | None = None,
    process_count: int | None = None,
    process_index: int | None = None,
    *,
    joining_seconds: int = 60,
    heartbeat_seconds: int = 30,
) -> bool:
    """Makes this process one of its run's processes; returns when all are there. The first thing a run does.

    Which process it is comes from the arguments, each else from its variable RESNET_JAX_COORDINATOR,
    RESNET_JAX_PROCESS_COUNT, RESNET_JAX_PROCESS_INDEX; where there is none of them, from the cluster that jax
    detects: a Cloud TPU, SLURM (`srun`), Open MPI, a Kubernetes Indexed Job (with `jax[k8s]`). The last three give
    each process one GPU, the one with its index on the host; JAX_LOCAL_DEVICE_IDS=0,1,... says otherwise. Where
    there is nothing of it, or one process, jax.distributed is not called. A run that has joined already stays so.

    Args:
      coordinator: host:port at which process 0 can be reached by all. It listens on all interfaces unless the host
        is this machine's loopback or JAX_COORDINATOR_BIND_ADDRESS says another; nobody is authenticated.
      process_count: processes of the run; 1 needs nothing else, and keeps a detected cluster out.
      process_index: of this process, from 0.
      joining_seconds: how long to wait for the others.
      heartbeat_seconds: after so long without a sign of life a process counts as dead, and jax ends the others.

    Returns:
      Whether this process is one of several.

    Raises:
      ValueError: for arguments that are incomplete or contradict each other, or if a device was used before.
      PeerLost: in every process that is there, if one is absent or the coordinator cannot be reached.
    """
    import jax
    from jax._src import xla_bridge  # whether a backend is there is asked nowhere public

    for name, seconds in {"joining_seconds": joining_seconds, "heartbeat_seconds": heartbeat_seconds}.items():
        if seconds < 1:
            raise ValueError(f"{name}={seconds}: at least 1")
    if jax.distributed.is_initialized():
        return True
    place = stated_place(coordinator, process_count, process_index) or detected_place(joining_seconds)
    if place.process_count == 1:
        return False
    if xla_bridge.backends_are_initialized():
        raise ValueError("a run of several processes joins before anything uses a device, and jax has its devices")
    bind = _bind_address(place.coordinator)
    meet(
        place.coordinator,
        bind,
        process_count=place.process_count,
        process_index=place.process_index,
        seconds=joining_seconds,
    )
    _pass_proxies_by(split_address(place.coordinator)[0])
    jax.distributed.initialize(
        place.coordinator,
        place.process_count,
        place.process_index,
        coordinator_bind_address=bind,
        # Detection would also choose devices, which a process that was told its place did not ask for.
        cluster_detection_method=None if place.detected else "deactivate",
        initialization_timeout=joining_seconds,
        heartbeat_timeout_seconds=heartbeat_seconds,
        shutdown_timeout_seconds=_ENDING_SECONDS,
    )
    return True


def leave(code: int) -> int:
    """The last thing a process does: returns its exit code, unless it failed and is one of several.

    Then it ends here: Python's own end would wait in jax for the others, who wait for this one.
    """
    jax = sys.modules.get("jax")
    if code and jax is not None and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _bind_address(coordinator: str) -> str:
    """Where process 0 listens."""
    stated = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS")
    if stated:
        return stated
    host, port = split_address(coordinator)
    if host == "localhost":
        return f"127.0.0.1:{port}"
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        loopback = False
    return coordinator if loopback else f"[::]:{port}"


def _pass_proxies_by(host: str) -> None:
    """Lets gRPC connect to the host as the meeting did, directly; it would ask an HTTP proxy even for the loopback."""
    if any(os.environ.get(name) for name in ("grpc_proxy", "https_proxy", "http_proxy")):
        excluded = os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy")
        os.environ["no_grpc_proxy"] = f"{excluded},{host}" if excluded else host
