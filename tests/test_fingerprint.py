import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hosts_helper import JOIN, run_processes
from jax.sharding import NamedSharding, PartitionSpec

from resnet_jax.distributed import data_mesh, replicate, split_batch
from resnet_jax.hosts.fingerprint import Replica, _checksum, fingerprint, make_replica_check

MESH = data_mesh(jax.devices()[:4])
CHECK = make_replica_check(MESH)


def from_copies(*copies):
    """An array that claims to be the same on all devices of the mesh, made of a copy for each."""
    copies = [jnp.asarray(copy) for copy in copies]
    buffers = [jax.device_put(copy, device) for copy, device in zip(copies, MESH.devices.flat, strict=True)]
    sharding = NamedSharding(MESH, PartitionSpec())
    return jax.make_array_from_single_device_arrays(copies[0].shape, sharding, buffers)


def flip(array, bit, at=0):
    """The array with one bit of one element flipped."""
    changed = np.array(array)
    bits = changed.reshape(-1).view(np.uint8)
    bits[at * changed.itemsize + bit // 8] ^= 1 << bit % 8
    return changed


def normal(*shape, dtype=np.float32):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def with_wrong_copy(right, wrong, place=2):
    copies = [right] * 4
    copies[place] = wrong
    return {"other": replicate(jnp.ones(7), MESH), "net": {"kernel": from_copies(*copies)}}


@pytest.mark.parametrize("bit", range(32))
def test_every_flipped_bit_is_seen(bit):
    kernel = normal(3, 3, 8, 5)
    assert CHECK(with_wrong_copy(kernel, flip(kernel, bit, at=117))) == [Replica(position=2, process_index=0)]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.int8, np.uint32, bool])
def test_a_flipped_bit_is_seen_in_every_type(dtype):
    array = (normal(50) > 0).astype(dtype)
    assert CHECK(with_wrong_copy(array, flip(array, 0, at=49), place=0)) == [Replica(0, 0)]


def test_bits_count_and_not_values():
    zeros = np.zeros(3, np.float32)
    assert CHECK(with_wrong_copy(zeros, -zeros)) == [Replica(2, 0)]
    assert CHECK(with_wrong_copy(zeros * np.nan, zeros * np.nan)) == []


@pytest.mark.parametrize(
    ("first", "second"), [(1.0, 2.0), (1.5, -1.5), (0.0, -0.0), (1.0, np.nextafter(np.float32(1), np.float32(2)))]
)
def test_values_in_each_others_place_are_seen(first, second):
    """A sum weighted with odd numbers alone would miss two that differ in the sign only."""
    places = np.arange(1, 4096)
    missed = []
    for place in places[:: max(1, len(places) // 24)]:
        right = np.zeros(4096, np.float32)
        right[0], right[place] = first, second
        wrong = right.copy()
        wrong[0], wrong[place] = second, first
        missed += [int(place)] * (CHECK(with_wrong_copy(right, wrong)) != [Replica(2, 0)])
    assert missed == []


def test_the_two_sums_are_two_and_each_sees_a_swap():
    right = normal(64)
    wrong = right.copy()
    wrong[[3, 40]] = right[[40, 3]]
    sums, other_sums = (np.asarray(_checksum([jnp.asarray(array)])) for array in (right, wrong))
    assert sums[0] != sums[1]
    assert (sums != other_sums).all()


def test_an_element_that_moves_to_another_array_is_seen():
    one, other = np.array([1.0, 0.0], np.float32), np.array([0.0, 0.0], np.float32)
    tree = {"a": from_copies(one, one, other, one), "b": from_copies(other, other, one, other)}
    assert CHECK(tree) == [Replica(2, 0)]


def test_equal_copies_pass():
    tree = replicate({"a": jnp.asarray(normal(4, 3)), "key": jax.random.key(1), "step": jnp.int32(3)}, MESH)
    assert CHECK(tree) == []


def test_without_a_majority_all_are_named():
    a, b = np.zeros(2, np.float32), np.ones(2, np.float32)
    assert CHECK(from_copies(a, a, b, b)) == [Replica(position, 0) for position in range(4)]
    assert CHECK(from_copies(a, b, b, 2 * b)) == [Replica(0, 0), Replica(3, 0)]


def test_what_is_not_replicated_is_refused():
    sharded = jax.device_put(jnp.zeros(8), split_batch(MESH))
    with pytest.raises(ValueError, match=r"\['weights'\]: .* has no copies"):
        CHECK({"weights": sharded})


def test_parts_are_compared_with_their_copies_in_other_slices():
    mesh = data_mesh(jax.devices()[:6], slices=3)
    check, sharding = make_replica_check(mesh), NamedSharding(mesh, PartitionSpec("data"))
    halves = [normal(4), normal(4) + 1]
    copies = [halves[position % 2].copy() for position in range(6)]

    def tree():
        placed = [jax.device_put(half, device) for half, device in zip(copies, mesh.devices.flat, strict=True)]
        divided = jax.make_array_from_single_device_arrays((8,), sharding, placed)
        return {"divided": divided, "whole": replicate(jnp.ones(3), mesh)}

    assert check(tree()) == []
    copies[3].view(np.uint32)[1] ^= 1
    assert check(tree()) == [Replica(3, 0)]


def test_a_replica_in_words():
    assert str(Replica(5, 1)) == "device 5 (process 1)"


def test_the_fingerprint_is_the_sha256_of_what_it_says():
    kernel = normal(2, 3)
    expected = hashlib.sha256(b"\"['a']\" int32 ()\n" + np.int32(7).tobytes())
    expected.update(b"\"['b']['kernel']\" float32 (2, 3)\n" + kernel.tobytes())
    tree = {"b": {"kernel": kernel}, "a": np.int32(7)}
    assert fingerprint(tree) == expected.hexdigest()
    assert fingerprint(replicate(jax.tree.map(jnp.asarray, tree), MESH)) == expected.hexdigest()
    transposed = np.asfortranarray(kernel)
    assert fingerprint(tree | {"b": {"kernel": transposed}}) == expected.hexdigest()


def test_the_fingerprint_sees_every_change():
    tree = {"kernel": normal(4, 6), "key": jax.random.key(0), "half": normal(3).astype(jnp.bfloat16)}
    changed = [
        tree | {"kernel": flip(tree["kernel"], 0, at=23)},
        tree | {"kernel": tree["kernel"].reshape(6, 4)},
        tree | {"kernel": tree["kernel"].view(np.int32)},
        tree | {"key": jax.random.key(1)},
        tree | {"half": flip(tree["half"], 3)},
        {("Kernel" if name == "kernel" else name): leaf for name, leaf in tree.items()},
    ]
    assert len({fingerprint(one) for one in [tree, *changed]}) == 7
    assert fingerprint(tree) == fingerprint(dict(reversed(tree.items())))


def test_a_sharded_array_of_this_process_has_a_fingerprint():
    values = jnp.arange(8.0)
    assert fingerprint([jax.device_put(values, split_batch(MESH))]) == fingerprint([values])


def test_two_processes_with_one_astray(tmp_path):
    snippet = JOIN + (
        "import jax, numpy as np\n"
        "from resnet_jax.distributed import data_mesh, replicated, split_batch\n"
        "from resnet_jax.hosts.fingerprint import fingerprint, make_replica_check\n"
        "mesh = data_mesh()\n"
        "values = np.arange(6, dtype=np.float32)\n"
        "wrong = values.copy(); wrong.view(np.uint32)[5] ^= 1 << 9\n"
        "def tree(last):\n"
        "    astray = jax.process_index() == 1\n"
        "    copies = [jax.device_put(last if astray and position == 1 else values, device)\n"
        "              for position, device in enumerate(mesh.local_devices)]\n"
        "    return {'a': jax.make_array_from_single_device_arrays((6,), replicated(mesh), copies)}\n"
        "check = make_replica_check(mesh)\n"
        "print('found', [str(one) for one in check(tree(values))], [str(one) for one in check(tree(wrong))])\n"
        "print('fingerprint', fingerprint(tree(wrong)) == fingerprint({'a': values}))\n"
        "part = jax.make_array_from_process_local_data(split_batch(mesh), values[:2])\n"
        "try:\n    fingerprint([part])\n"
        "except ValueError as error:\n    print(error)\n"
    )
    for ended in run_processes(snippet, 2, tmp_path, devices=2):
        assert ended.code == 0, ended.output
        assert "found [] ['device 3 (process 1)']" in ended.output
        assert "fingerprint True" in ended.output  # of the first copy, which is right
        assert "[0]: this process holds only a part of it" in ended.output
