"""How arrays lie on the mesh, and that a replicated state can be donated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.distributed import data_mesh, replicate, split_batch


def test_the_batch_is_divided_and_the_state_copied():
    mesh = data_mesh()
    batch = jax.device_put(np.arange(16.0), split_batch(mesh))
    assert [shard.data.shape for shard in batch.addressable_shards] == [(2,)] * 8
    state = replicate(np.arange(16.0), mesh)
    assert [shard.data.shape for shard in state.addressable_shards] == [(16,)] * 8


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
