import concurrent.futures
import contextlib
import os
import re
import socket
import threading
import time

import jax
import pytest
from hosts_helper import JOIN, free_port, run_processes

from resnet_jax.hosts import launch, place
from resnet_jax.hosts.launch import join, leave
from resnet_jax.hosts.meeting import meet, name_processes
from resnet_jax.hosts.place import ALONE, Place, detected_place, stated_place

SLURM_STEP = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[007-010],other",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    """Whatever launched the tests says nothing about the runs in them."""
    for name in list(os.environ):
        if name.startswith(
            (
                "RESNET_JAX_COORDINATOR",
                "RESNET_JAX_PROCESS",
                "SLURM_",
                "OMPI_",
                "KUBERNETES_",
                "JOB_COMPLETION",
                "JAX_COORDINATOR",
            )
        ):
            monkeypatch.delenv(name)


def set_variables(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


# Where the place comes from


def test_nothing_said_is_one_process_without_jax_distributed(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("called"))
    jax.devices()  # a device in use hinders one process not at all
    assert not join()
    assert not join(process_count=1)
    set_variables(monkeypatch, SLURM_STEP)
    assert not join(process_count=1)


def test_arguments_and_variables_complete_each_other(monkeypatch):
    assert stated_place(None, None, None) is None
    expected = Place("10.0.0.1:1234", 4, 3, detected=False)
    assert stated_place("10.0.0.1:1234", 4, 3) == expected
    names = (place.COORDINATOR, place.PROCESS_COUNT, place.PROCESS_INDEX)
    set_variables(monkeypatch, dict(zip(names, ("10.0.0.1:1234", "4", "1"), strict=True)))
    assert stated_place(None, None, 3) == expected
    assert stated_place(None, None, 0) == expected._replace(process_index=0)
    assert stated_place("[fe80::1]:99", None, None).coordinator == "[fe80::1]:99"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a:1", None, None), "no process_count and process_index: .* given together, .*RESNET_JAX_PROCESS_COUNT"),
        (("a:1", 2, None), "no process_index: "),
        ((None, 2, 0), "no coordinator: "),
        (("a:1", 2, 2), "process_index=2: 0 to 1, because process_count=2"),
        (("a:1", 2, -1), "process_index=-1: 0 to 1"),
        (("a:1", 0, 0), "process_count=0: at least 1"),
        ((None, 1, 1), "process_index=1: 0 to 0"),
        (("a", 2, 0), "coordinator='a': host:port"),
        (("a:", 2, 0), "coordinator='a:': host:port"),
        ((":1", 2, 0), "coordinator=':1': host:port"),
        (("a:0", 2, 0), "from 1 to 65535"),
        (("a:65536", 2, 0), "from 1 to 65535"),
        (("fe80::1:99", 2, 0), "host:port"),
    ],
)
def test_incomplete_or_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        join(*arguments)


def test_variables_that_are_no_numbers(monkeypatch):
    monkeypatch.setenv(place.PROCESS_COUNT, "two")
    with pytest.raises(ValueError, match="RESNET_JAX_PROCESS_COUNT='two': a whole number"):
        join()


@pytest.mark.parametrize("name", ["joining_seconds", "heartbeat_seconds"])
def test_impossible_times(name):
    with pytest.raises(ValueError, match=f"{name}=0: at least 1"):
        join(**{name: 0})


def test_a_device_in_use_is_too_late():
    jax.devices()
    with pytest.raises(ValueError, match="joins before anything uses a device"):
        join(f"127.0.0.1:{free_port()}", 2, 0)


def test_slurm_step(monkeypatch):
    set_variables(monkeypatch, SLURM_STEP)
    found = detected_place(1)
    assert found == Place(found.coordinator, 4, 2, detected=True)
    assert found.coordinator.startswith("node007:")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "login:7")
    assert detected_place(1).coordinator == "login:7"


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_JOB_ID": "4097"},  # the script of an sbatch job, outside of any step
        SLURM_STEP | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        SLURM_STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},  # salloc's shell
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},  # a pod that is no Indexed Job's
        {"OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_one_process_in_a_cluster_is_alone(monkeypatch, variables):
    set_variables(monkeypatch, variables)
    assert detected_place(1) == ALONE


def test_open_mpi(monkeypatch):
    launched = {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    set_variables(monkeypatch, launched)
    # Version 5, of which jax 0.10 knows nothing, and later ones only with mpi4py.
    with pytest.raises((ValueError, ConnectionError), match="coordinator, process_count and process_index"):
        detected_place(1)
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911")
    monkeypatch.setenv("OMPI_VERSION", "4.1.6")
    found = detected_place(1)
    assert found == Place(found.coordinator, 3, 1, detected=True)
    assert found.coordinator.startswith("10.96.0.1:")


def test_a_cluster_that_does_not_say_the_place(monkeypatch):
    set_variables(monkeypatch, SLURM_STEP | {"SLURM_PROCID": "second"})
    with pytest.raises(ConnectionError, match=r"a cluster \(SlurmCluster\), but not .*'second'; coordinator, "):
        join()


@pytest.mark.parametrize(
    ("coordinator", "bind"),
    [
        ("127.0.0.1:7", "127.0.0.1:7"),
        ("localhost:7", "127.0.0.1:7"),
        ("[::1]:7", "[::1]:7"),
        ("10.0.0.1:7", "[::]:7"),
        ("node007:7", "[::]:7"),
    ],
)
def test_the_loopback_stays_on_the_loopback(monkeypatch, coordinator, bind):
    assert launch._bind_address(coordinator) == bind
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "10.0.0.2:8")
    assert launch._bind_address(coordinator) == "10.0.0.2:8"


@pytest.mark.parametrize(("before", "after"), [({}, "node7"), ({"no_proxy": "a,b"}, "a,b,node7")])
def test_proxies_are_passed_by(monkeypatch, before, after):
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    set_variables(monkeypatch, before)
    launch._pass_proxies_by("node7")
    assert "no_grpc_proxy" not in os.environ
    monkeypatch.setenv("https_proxy", "http://proxy:1")
    launch._pass_proxies_by("node7")
    assert os.environ["no_grpc_proxy"] == after
    monkeypatch.delenv("no_grpc_proxy")


# The meeting, between threads


def meet_in_threads(*calls, port=None, seconds=5.0, between=lambda port: None):
    """Each call is (process_count, process_index); returns each one's error message, None without one."""
    port = port or free_port()

    def one(count, index):
        address = f"127.0.0.1:{port}"
        try:
            meet(address, address, process_count=count, process_index=index, seconds=seconds)
        except ConnectionError as error:
            return str(error).replace(f":{port}", ":PORT")

    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        results = [pool.submit(one, *call) for call in calls]
        between(port)
        return [result.result() for result in results]


@pytest.fixture(autouse=True)
def no_waiting_for_jax(monkeypatch):
    """Threads meet without jax's coordinator coming afterwards."""
    monkeypatch.setattr("resnet_jax.hosts.meeting._wait_until_listening", lambda _: None)


def test_all_come():
    assert meet_in_threads((3, 2), (3, 0), (3, 1)) == [None, None, None]


def test_all_hear_who_is_absent():
    message = "processes 1, 3-4 of 5 did not join at 127.0.0.1:PORT within 0.5 s"
    assert meet_in_threads((5, 0), (5, 2), seconds=0.5) == [message, message]


def test_no_coordinator():
    (message,) = meet_in_threads((2, 1), seconds=0.5)
    assert message == "process 0 of 2 did not answer at 127.0.0.1:PORT within 0.5 s (Connection refused)"


def test_two_that_take_each_other_for_one():
    messages = meet_in_threads((4, 0), (4, 1), (4, 1))
    assert messages == ["two processes say that they are process 1 of 4"] * 3


def test_two_that_count_differently():
    messages = meet_in_threads((3, 0), (2, 1))
    assert messages == ["process 1 says that there are 2 processes, process 0 says 3"] * 2


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (message,) = meet_in_threads((2, 0), port=taken.getsockname()[1])
    assert message.startswith("process 0 cannot listen at 127.0.0.1:PORT: Address already in use; it must run on")


def test_something_else_at_the_coordinator():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            with contextlib.suppress(OSError):  # when the server is shut down
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(1000)
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        answering = threading.Thread(target=answer)
        answering.start()
        (message,) = meet_in_threads((2, 1), port=server.getsockname()[1], seconds=0.5)
        server.shutdown(socket.SHUT_RDWR)
        answering.join()
    assert message.endswith("within 0.5 s (something else answers there)")


def connect(port):
    for _ in range(100):
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            time.sleep(0.01)
    pytest.fail("process 0 does not listen")


def test_strangers_are_no_processes():
    def stranger(port):
        with connect(port) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 3)
        silent.append(connect(port))

    silent = []
    assert meet_in_threads((2, 0), between=stranger, seconds=0.5) == [
        "process 1 of 2 did not join at 127.0.0.1:PORT within 0.5 s"
    ]
    with silent[0] as connection:
        assert connection.recv(1) == b""


def test_one_that_has_gone_again_is_absent():
    from resnet_jax.hosts.meeting import _HELLO, _MAGIC

    def come_and_go(port):
        with connect(port) as connection:
            connection.sendall(_HELLO.pack(_MAGIC, 1, 3))
            time.sleep(0.1)

    (message,) = meet_in_threads((3, 0), between=come_and_go, seconds=0.5)
    assert message == "processes 1-2 of 3 did not join at 127.0.0.1:PORT within 0.5 s"


@pytest.mark.parametrize(
    ("indices", "count", "words"),
    [([1], 2, "process 1 of 2"), ([5, 0, 1, 2], None, "processes 0-2, 5"), ([0, 1], 3, "processes 0-1 of 3")],
)
def test_processes_in_words(indices, count, words):
    assert name_processes(indices, count) == words


# Real processes


def test_processes_join(tmp_path):
    snippet = (
        "import sys; sys.modules['tensorflow'] = None\n"
        f"{JOIN}assert join()\n"  # the second time it has joined
        "import jax, numpy as np, os\n"
        "from pathlib import Path\n"
        "from jax.experimental import multihost_utils\n"
        "gathered = multihost_utils.process_allgather(np.array([jax.process_index() + 1]))\n"
        "print('got', jax.device_count(), jax.local_device_count(), gathered.ravel().tolist())\n"
        "port = int(os.environ['RESNET_JAX_COORDINATOR'].split(':')[1])\n"
        "lines = [line.split() for file in ('tcp', 'tcp6') for line in Path('/proc/net', file).open()]\n"
        "print('listening', {l[1] for l in lines if l[3] == '0A' and l[1].endswith(f':{port:04X}')})\n"
        "multihost_utils.sync_global_devices('end')\n"
    )
    # gRPC alone would ask the proxy for the loopback, too, and hang.
    environment = {"http_proxy": "http://127.0.0.1:9"}
    for ended in run_processes(snippet, 2, tmp_path, devices=2, environment=environment):
        assert ended.code == 0, ended.output
        assert "got 4 2 [1, 2]" in ended.output
        # 127.0.0.1 and nothing else, as the kernel writes it or as an IPv6 address.
        assert re.search(r"listening \{'(0{16}F{4}0{4})?0100007F:\w+'\}\n", ended.output), ended.output


def test_an_absent_process_is_named_without_a_stack_dump(tmp_path):
    snippet = (
        "from resnet_jax.hosts.launch import join\n"
        "try:\n    join(joining_seconds=1)\n"
        "except OSError as error:\n    print(error)\n    raise SystemExit(2)\n"
    )
    (ended,) = run_processes(snippet, 2, tmp_path, indices=[0])
    assert ended.code == 2
    assert ended.output.startswith("process 1 of 2 did not join at 127.0.0.1:")
    assert len(ended.output.splitlines()) == 1


def test_one_that_fails_leaves_at_once(tmp_path):
    snippet = JOIN + (
        "import sys, jax, numpy as np\n"
        "from jax.experimental import multihost_utils\n"
        "from resnet_jax.hosts.launch import leave\n"
        "multihost_utils.process_allgather(np.ones(1))\n"
        "if jax.process_index() == 1:\n    sys.exit(leave(3))\n"
        "try:\n    multihost_utils.process_allgather(np.ones(1))\n"
        "except ValueError as error:\n    print(error)\n    sys.exit(leave(4))\n"
    )
    first, second = run_processes(snippet, 2, tmp_path, seconds=30)
    assert (first.code, second.code) == (4, 3), first.output + second.output
    assert max(first.seconds, second.seconds) < 20  # jax's own end would wait minutes


def test_leave_alone_is_returned():
    assert [leave(code) for code in (0, 2)] == [0, 2]
