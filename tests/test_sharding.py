"""A state that is divided among devices trains like one that is copied: the same updates, from smaller shares."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from test_loop import SMALL, StopAt

from resnet_jax.analysis.collectives import collectives_of
from resnet_jax.build import build
from resnet_jax.checkpoints import Checkpoints
from resnet_jax.config_files import load_config
from resnet_jax.data.prepare import prepare
from resnet_jax.distributed import data_mesh, divided, replicate
from resnet_jax.records import read_metrics
from resnet_jax.training.loop import train
from resnet_jax.training.sharding import state_shardings
from resnet_jax.training.state import Progress
from resnet_jax.workdir import Workdir

STEPS = 3
# Wide enough for arrays that are divided.
WIDE = {**SMALL, "model.width": "16", "train.ema_decay": "0.9", "model.bn_group_size": "8"}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepare("digits", data_dir=folder)
    return lambda **changes: load_config(
        "digits", {**WIDE, "data.data_dir": str(folder), **{key.replace("__", "."): v for key, v in changes.items()}}
    )


@pytest.fixture(scope="module")
def trained(config):
    """(sharding, ...) -> parts, state and compiled call, after a few steps on all devices."""

    @functools.cache
    def run(sharding, **changes):
        parts = build(config(train__sharding=sharding, **changes))
        state, progress = parts.initial_state(), replicate(Progress.zero(), parts.mesh)
        call = parts.make_call(1)
        compiled = call.lower(state, progress, *parts.feed.arguments(0)).compile()
        for step in range(STEPS):
            state, progress = compiled(state, progress, *parts.feed.arguments(step))
        return parts, state, compiled

    return run


@pytest.fixture(scope="module")
def copied(trained):
    return trained("none")[1]


def bytes_of_a_device(tree):
    return sum(leaf.addressable_data(0).nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("sharding", ["optimizer", "parameters"])
def test_the_update_is_the_same(trained, copied, sharding):
    parts, state, _ = trained(sharding)
    layout = state_shardings(state, parts.mesh, sharding)
    for (path, one), other, lies in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(copied), jax.tree.leaves(layout), strict=True
    ):
        assert one.sharding.is_equivalent_to(lies, one.ndim), path
        # Gradients are added in another order: a rounding of 32 bits, times what three steps make of it.
        largest = max(float(np.abs(other).max()), 1e-6)
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * largest, err_msg=jax.tree_util.keystr(path))


def test_a_device_keeps_its_share_only(trained, copied):
    _, optimizer, _ = trained("optimizer")
    _, parameters, _ = trained("parameters")
    for divided_state, names in ((optimizer, ["opt_state", "ema"]), (parameters, ["opt_state", "ema", "params"])):
        for name in names:
            share = bytes_of_a_device(getattr(divided_state, name)) / bytes_of_a_device(getattr(copied, name))
            # An eighth, and the small arrays.
            assert 1 / 8 < share < 0.25, name
    assert bytes_of_a_device(optimizer.params) == bytes_of_a_device(copied.params)


@pytest.mark.slow
def test_what_is_divided_is_divided_within_a_slice(trained):
    """So it is collected on the fast network; across slices only gradients and statistics are added."""
    parts, state, compiled = trained("parameters", train__slices=2)
    assert dict(parts.mesh.shape) == {"slices": 2, "data": 4}
    specs = {leaf.sharding.spec for leaf in jax.tree.leaves(state.params)}
    assert any("data" in spec for spec in specs) and not any("slices" in str(spec) for spec in specs)
    gathered = [one for one in collectives_of(compiled.as_text(), 8) if one.kind == "all-gather"]
    assert gathered and {one.devices for one in gathered} == {4}


@pytest.mark.slow
def test_a_run_goes_on_from_its_checkpoint_bit_for_bit(config, tmp_path):
    whole = train(config(train__sharding="parameters"), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(config(train__sharding="parameters"), tmp_path / "stopped", writers=[StopAt(9)])
    record = train(config(train__sharding="parameters"), tmp_path / "stopped")
    assert record["resumed_from_step"] and record["test"] == whole["test"]
    states = []
    for name in ("whole", "stopped"):
        parts = build(config(train__sharding="parameters"))
        with Checkpoints(Workdir(tmp_path / name).checkpoints, read_only=True) as checkpoints:
            like = (parts.initial_state(), replicate(Progress.zero(), parts.mesh))
            states.append(checkpoints.restore_latest(like)[1][0])
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_run_goes_on_with_another_layout(config, tmp_path):
    train(config(), tmp_path / "copied")
    with pytest.raises(KeyboardInterrupt):
        train(config(train__sharding="parameters", train__slices=2), tmp_path / "changed", writers=[StopAt(9)])
    record = train(config(train__sharding="optimizer"), tmp_path / "changed")
    assert record["resumed_from_step"] == 8
    losses = [read_metrics(tmp_path / name / "metrics.jsonl")["train/loss"][1] for name in ("copied", "changed")]
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_the_longest_axis_that_can_be_is_divided_and_small_arrays_are_copied():
    mesh = data_mesh(jax.devices()[:4])
    shapes = {"kernel": (3, 3, 32, 64), "classifier": (512, 10), "odd": (4099, 3), "bias": (64,), "scalar": ()}
    layout = divided({name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}, mesh)
    assert {name: sharding.spec for name, sharding in layout.items()} == {
        "kernel": PartitionSpec(None, None, None, "data"),
        "classifier": PartitionSpec("data"),
        "odd": PartitionSpec(),
        "bias": PartitionSpec(),
        "scalar": PartitionSpec(),
    }
