"""How a run's processes wait for each other before jax connects them, so that one that never comes can be named.

jax's own start ends all processes with a C++ stack dump that names nobody when one is absent. So they meet first,
at the same address: process 0 listens where jax's coordinator will, the others say who they are, and all hear
whether everyone came. What they say is their index and count; as with jax's coordinator, nobody is authenticated.
"""

import contextlib
import selectors
import socket
import struct
import time
from collections.abc import Container

from resnet_jax.hosts.peers import PeerLost

_MAGIC = b"resnet_jax meeting 1\n"
_HELLO = struct.Struct(f"!{len(_MAGIC)}sII")  # magic, process index, process count
_RETRY_SECONDS = 0.1
_CONNECT_SECONDS = 5.0
# A process that has reached process 0 waits for its verdict this much longer than process 0 waits for the others.
_VERDICT_SECONDS = 5.0
_VERDICT_BYTES = 65536


def meet(coordinator: str, bind: str, *, process_count: int, process_index: int, seconds: float) -> None:
    """Returns in every process once all of them are there.

    Args:
      coordinator: host:port at which process 0 is reached.
      bind: host:port at which process 0 listens.
      process_count: processes of the run.
      process_index: of this process, from 0.
      seconds: how long it waits for the others.

    Raises:
      PeerLost: in every process, if one did not come, or two say the same index or different counts.
    """
    deadline = time.monotonic() + seconds
    if process_index == 0:
        problem = _wait_for_all(coordinator, bind, process_count, deadline, seconds)
    else:
        problem = _report_to_first(coordinator, process_count, process_index, deadline, seconds)
    if problem:
        raise PeerLost(problem)
    if process_index != 0:
        _wait_until_listening(coordinator)


def split_address(address: str) -> tuple[str, int]:
    """Host, without an IPv6 address's brackets, and port."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def name_processes(indices: list[int], process_count: int | None = None) -> str:
    """In words, e.g. "process 3 of 8" or "processes 0-2, 5"."""
    ranges: list[list[int]] = []
    for index in sorted(indices):
        if ranges and ranges[-1][-1] == index - 1:
            ranges[-1][1:] = [index]
        else:
            ranges.append([index])
    listed = ", ".join("-".join(map(str, ends)) if len(ends) == 2 else str(ends[0]) for ends in ranges)
    of = "" if process_count is None else f" of {process_count}"
    return f"process{'' if len(indices) == 1 else 'es'} {listed}{of}"


def _wait_for_all(coordinator: str, bind: str, count: int, deadline: float, seconds: float) -> str:
    """Process 0's part; tells the others what it returns, which is empty if all is well."""
    with _listen(bind, count) as server:
        arrived, problem = _receive(server, count, deadline)
    absent = sorted(set(range(1, count)) - set(arrived.values()))
    if absent and not problem:
        problem = f"{name_processes(absent, count)} did not join at {coordinator} within {seconds:g} s"
    for connection in arrived:
        with connection, contextlib.suppress(OSError):  # one that has gone meanwhile, jax will miss
            connection.sendall(_MAGIC + problem.encode())
    return problem


def _listen(bind: str, count: int) -> socket.socket:
    host, port = split_address(bind)
    if host == "::" and not socket.has_dualstack_ipv6():
        host = "0.0.0.0"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=count, dualstack_ipv6=host == "::")
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise PeerLost(
            f"process 0 cannot listen at {bind}: {reason}; it must run on the coordinator's host, once, and the port "
            "must be free"
        ) from error


def _receive(server: socket.socket, count: int, deadline: float) -> tuple[dict[socket.socket, int], str]:
    """Process index by connection, until all are there, time is up, or two contradict each other (said in words)."""
    arrived: dict[socket.socket, int] = {}
    problem = ""
    with contextlib.ExitStack() as strangers, selectors.DefaultSelector() as waiting:
        waiting.register(server, selectors.EVENT_READ)
        while len(arrived) < count - 1 and not problem and (left := deadline - time.monotonic()) > 0:
            for key, _ in waiting.select(left):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                if connection is server:
                    accepted, _ = server.accept()
                    accepted.setblocking(False)
                    waiting.register(accepted, selectors.EVENT_READ)
                    strangers.callback(_close_unless_in, accepted, arrived)
                    continue
                hello = _hello(connection)
                if hello is None or connection in arrived:
                    # No process of this run, or one that has gone again: it says no more than its hello.
                    waiting.unregister(connection)
                    arrived.pop(connection, None)
                    connection.close()
                    continue
                index, said_count = hello
                if said_count != count:
                    problem = f"process {index} says that there are {said_count} processes, process 0 says {count}"
                elif index in arrived.values():
                    problem = f"two processes say that they are process {index} of {count}"
                arrived[connection] = index
    return arrived, problem


def _close_unless_in(connection: socket.socket, kept: Container[socket.socket]) -> None:
    if connection not in kept:
        connection.close()


def _hello(connection: socket.socket) -> tuple[int, int] | None:
    """Index and count; None if it has closed or is no process of ours."""
    try:
        magic, index, count = _HELLO.unpack(connection.recv(_HELLO.size))
    except (OSError, struct.error):
        return None
    return (index, count) if magic == _MAGIC else None


def _report_to_first(coordinator: str, count: int, index: int, deadline: float, seconds: float) -> str:
    """Any other process's part."""
    reason: object = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            connection = socket.create_connection(split_address(coordinator), timeout=min(left, _CONNECT_SECONDS))
            with connection:
                connection.sendall(_HELLO.pack(_MAGIC, index, count))
                connection.settimeout(seconds + _VERDICT_SECONDS)
                verdict = _read(connection)
            if verdict.startswith(_MAGIC):
                return verdict.removeprefix(_MAGIC).decode()
            reason = "something else answers there"
        except OSError as error:
            reason = error.strerror or error
        time.sleep(_RETRY_SECONDS)
    return f"process 0 of {count} did not answer at {coordinator} within {seconds:g} s ({reason})"


def _wait_until_listening(coordinator: str) -> None:
    """Until jax's coordinator has taken process 0's place; jax's own second attempt would come a second later."""
    deadline = time.monotonic() + _CONNECT_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(split_address(coordinator), timeout=1):
            return
        time.sleep(_RETRY_SECONDS / 5)


def _read(connection: socket.socket) -> bytes:
    data = b""
    while len(data) < _VERDICT_BYTES and (part := connection.recv(4096)):
        data += part
    return data
