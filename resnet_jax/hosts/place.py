"""Which process of its run this one is: as it was told, or as the cluster's environment says."""

import os
from typing import NamedTuple

from resnet_jax.hosts.meeting import split_address

COORDINATOR = "RESNET_JAX_COORDINATOR"
PROCESS_COUNT = "RESNET_JAX_PROCESS_COUNT"
PROCESS_INDEX = "RESNET_JAX_PROCESS_INDEX"


class Place(NamedTuple):
    """Where process 0 is reached (host:port), how many processes there are, which one this is, and who said so."""

    coordinator: str
    process_count: int
    process_index: int
    detected: bool


ALONE = Place("", 1, 0, detected=False)


def stated_place(coordinator: str | None, process_count: int | None, process_index: int | None) -> Place | None:
    """This process's place from arguments and our own variables; None if there is none of them.

    Raises:
      ValueError: if they are incomplete, contradict each other or cannot be read.
    """
    coordinator = coordinator or os.environ.get(COORDINATOR) or None
    count = _number(PROCESS_COUNT) if process_count is None else process_count
    index = _number(PROCESS_INDEX) if process_index is None else process_index
    if (coordinator, count, index) == (None, None, None):
        return None
    if count is not None and count < 1:
        raise ValueError(f"process_count={count}: at least 1")
    if count is not None and index is not None and not 0 <= index < count:
        raise ValueError(f"process_index={index}: 0 to {count - 1}, because process_count={count}")
    if count == 1:
        return ALONE
    if coordinator is None or count is None or index is None:
        given = {"coordinator": coordinator, "process_count": count, "process_index": index}
        absent = " and ".join(name for name, value in given.items() if value is None)
        raise ValueError(
            f"no {absent}: coordinator, process_count and process_index are given together, as flags or as "
            f"{COORDINATOR}, {PROCESS_COUNT} and {PROCESS_INDEX}; process_count=1 alone is a run of one process"
        )
    try:
        host, port = split_address(coordinator)
        valid = bool(host) and 0 < port < 65536 and (":" not in host or coordinator.startswith("["))
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(f"coordinator={coordinator!r}: host:port with a port from 1 to 65535, such as 10.0.0.1:1234")
    return Place(coordinator, count, index, detected=False)


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{variable}={text!r}: a whole number") from None


def detected_place(seconds: int) -> Place:
    """This process's place in the cluster that jax detects; ALONE where there is none.

    Args:
      seconds: how long to wait for the coordinator's name.

    Raises:
      ConnectionError: if there is one that does not say the place.
      ValueError: if processes were started by a launcher that jax does not understand.
    """
    # jax.distributed.initialize detects the same, but not before it connects: it would call a single process, too.
    from jax._src.clusters import ClusterEnv, K8sCluster, SlurmCluster

    cluster_name = ""
    try:
        for cluster in ClusterEnv._cluster_types:
            if cluster is K8sCluster and "JOB_COMPLETION_INDEX" not in os.environ:
                continue  # a pod that is no part of an Indexed Job; jax would raise
            if cluster.opt_in_only_method or not cluster.is_env_present():
                continue
            cluster_name = cluster.__name__
            if cluster is SlurmCluster and os.environ.get("SLURM_STEP_NUM_TASKS") == "1":
                return ALONE  # a shell in an allocation of several tasks, which SLURM_NTASKS counts
            count, index = cluster.get_process_count(), cluster.get_process_id()
            if count == 1:
                return ALONE
            coordinator = os.environ.get("JAX_COORDINATOR_ADDRESS") or cluster.get_coordinator_address(
                timeout_secs=seconds, override_coordinator_port=os.environ.get("JAX_COORDINATOR_PORT")
            )
            return Place(coordinator, count, index, detected=True)
    except Exception as error:  # they ask metadata servers and Kubernetes, whose clients have errors of their own
        raise ConnectionError(
            f"jax detects a cluster ({cluster_name or 'unknown'}), but not this process's place in it: {error}; "
            "coordinator, process_count and process_index say it, and process_count=1 is a run of one process"
        ) from error
    if os.environ.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        # Open MPI 5 with a jax that knows Open MPI 4: each process would be a run of its own, in one workdir.
        raise ValueError(
            f"mpirun started {os.environ['OMPI_COMM_WORLD_SIZE']} processes, and this jax does not find process 0: say "
            "coordinator, process_count and process_index (OMPI_COMM_WORLD_RANK), or process_count=1"
        )
    return ALONE
