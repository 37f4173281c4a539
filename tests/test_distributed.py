"""How arrays lie on the mesh, and that a replicated state can be donated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.distributed import data_mesh, local_rows, replicate, split_batch


def test_the_batch_is_divided_and_the_state_copied():
    mesh = data_mesh()
    batch = jax.device_put(np.arange(16.0), split_batch(mesh))
    assert [shard.data.shape for shard in batch.addressable_shards] == [(2,)] * 8
    state = replicate(np.arange(16.0), mesh)
    assert [shard.data.shape for shard in state.addressable_shards] == [(16,)] * 8


@pytest.mark.parametrize("slices", [1, 2, 8])
def test_the_batch_is_divided_over_all_slices_in_the_devices_order(slices):
    mesh = data_mesh(slices=slices)
    assert dict(mesh.shape) == {"slices": slices, "data": 8 // slices}
    batch = jax.device_put(np.arange(16.0), split_batch(mesh))
    for number, device in enumerate(jax.devices()):
        (shard,) = [shard for shard in batch.addressable_shards if shard.device == device]
        np.testing.assert_array_equal(shard.data, [2 * number, 2 * number + 1])


def test_slices_of_different_size_are_refused():
    with pytest.raises(ValueError, match="train.slices=3: 8 devices do not form so many groups of one size"):
        data_mesh(slices=3)


class Device:
    """As a device of a large run says where it is."""

    def __init__(self, slice_index, process_index):
        self.slice_index, self.process_index = slice_index, process_index

    def __repr__(self):
        return f"{self.slice_index}.{self.process_index}"


def test_a_process_has_the_rows_of_its_own_devices_wherever_its_slice_is(monkeypatch):
    # Slice 0 is made of processes 1 and 2, slice 1 of 0 and 3.
    places = [(1, 0), (0, 1), (0, 2), (1, 3)]
    devices = [Device(*place) for place in places for _ in range(2)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    mesh = data_mesh()
    assert [str(device) for device in mesh.devices[0]] == ["0.1", "0.1", "0.2", "0.2"]
    rows = {}
    for process in range(4):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        rows[process] = local_rows(32, mesh)
    assert rows == {1: range(8), 2: range(8, 16), 0: range(16, 24), 3: range(24, 32)}


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [((4, 4), (2, 4)), ((8, 4, 4), (1, 16)), ((1, 1, 1), (1, 3)), ((8,), (1, 8)), ((2, 2, 2), (3, 2))],
)
def test_slices_are_the_devices_own_where_they_are_alike(monkeypatch, sizes, shape):
    """Hosts with GPUs are slices; of several sizes, or of one device each, they would divide nothing well."""
    devices = [Device(index, index) for index, size in enumerate(sizes) for _ in range(size)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    assert data_mesh().devices.shape == shape


def test_a_slice_does_not_end_within_a_process(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [Device(0, process) for process in (0, 0, 1, 1)])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert data_mesh(slices=2).devices.shape == (2, 2)
    with pytest.raises(ValueError, match="train.slices=4: a process's devices would be in two of them"):
        data_mesh(slices=4)


@pytest.mark.parametrize("devices", [1, 8])
def test_leaves_that_were_one_array_can_be_donated_and_the_original_lives_on(devices):
    mesh = data_mesh(jax.devices()[:devices])
    one = jnp.zeros((4,))
    state = replicate({"a": one, "b": one}, mesh)
    pointers = [shard.data.unsafe_buffer_pointer() for leaf in state.values() for shard in leaf.addressable_shards]
    assert len(set(pointers)) == 2 * devices
    add = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    for _ in range(3):
        state = add(state)
    np.testing.assert_array_equal(state["a"], 3 * np.ones(4))
    np.testing.assert_array_equal(one, np.zeros(4))
