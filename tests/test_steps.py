"""The training step: the same on any number of devices, its arithmetic, and what a non-finite loss must not touch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data.batch import Batch
from resnet_jax.data.resident import EpochOrders, ResidentData, make_batch_at
from resnet_jax.distributed import data_mesh, replicate, replicated
from resnet_jax.models.registry import create_model, initialize
from resnet_jax.training import schedules
from resnet_jax.training.optimizers import sgd
from resnet_jax.training.state import Progress, TrainState
from resnet_jax.training.steps import make_resident_step, make_train_step

SHAPE = (8, 8, 3)
OPTIMIZER = sgd(momentum=0.9, nesterov=False, weight_decay=1e-4, decay="kernels")


def tiny_model(**options):
    """A stem and two blocks: what compiles quickly."""
    return create_model("cifar_resnet8", stage_sizes=(1, 1), width=8, **options)


def make_state(model, schedule):
    return TrainState.create(initialize(model, jax.random.key(0), SHAPE), OPTIMIZER, schedule)


def random_split(count=96):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, *SHAPE)).astype(np.uint8)
    return ResidentData(images=images, labels=random.integers(0, 10, count).astype(np.int32))


def run_steps(devices, *, steps, group_size=None, steps_per_call=1, dtype="float32"):
    """State and progress after a few steps of 32 examples on that many devices."""
    mesh = data_mesh(jax.devices()[:devices])
    model = tiny_model(bn_group_size=group_size, dtype=dtype)
    schedule = schedules.constant(0.05)
    data = replicate(random_split(), mesh)
    batch_at = make_batch_at(
        mesh,
        seed=0,
        batch_size=32,
        mean=np.full(3, 120, np.float32),
        std=np.full(3, 60, np.float32),
        pad=1,
        flip=True,
    )
    train_step = make_train_step(model, OPTIMIZER, schedule, seed=0)
    call = make_resident_step(train_step, batch_at, mesh, steps_per_call=steps_per_call)
    orders = EpochOrders(seed=0, count=96)
    state, progress = replicate((make_state(model, schedule), Progress.zero()), mesh)
    for k in range(0, steps, steps_per_call):
        state, progress = call(state, progress, data, *orders.at(k * 32))
    assert int(state.step) == steps
    assert state.params["classifier"]["kernel"].sharding.is_equivalent_to(replicated(mesh), 2)
    return jax.device_get(state), jax.device_get(progress)


@pytest.mark.parametrize("group_size", [None, 8])
def test_a_step_is_the_same_on_1_2_4_and_8_devices(group_size):
    """Loss, gradients (as momentum), statistics and parameters, to 1e-5 of each array's largest value."""
    expected, expected_progress = run_steps(1, steps=1, group_size=group_size)
    for devices in (2, 4, 8):
        found, progress = run_steps(devices, steps=1, group_size=group_size)
        assert float(progress.sums.loss) == pytest.approx(float(expected_progress.sums.loss), rel=1e-5)
        assert float(progress.sums.errors_top1) == float(expected_progress.sums.errors_top1)
        for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
            other = dict(jax.tree_util.tree_leaves_with_path(found))[path]
            scale = max(float(np.abs(leaf).max()), 1e-3)
            np.testing.assert_allclose(other, leaf, atol=1e-5 * scale, rtol=0, err_msg=str(path))


def test_groups_differ_from_the_whole_batch():
    whole, _ = run_steps(1, steps=1)
    groups, _ = run_steps(1, steps=1, group_size=8)
    assert not np.allclose(whole.params["stem"]["conv"]["kernel"], groups.params["stem"]["conv"]["kernel"], atol=1e-5)


def test_many_steps_in_one_call_equal_single_steps():
    single, single_progress = run_steps(1, steps=3)
    looped, looped_progress = run_steps(1, steps=3, steps_per_call=3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), single, looped)
    assert float(looped_progress.sums.count) == float(single_progress.sums.count) == 96


def test_bfloat16_computes_while_the_state_stays_float32():
    state, progress = run_steps(1, steps=1, dtype="bfloat16")
    reference, _ = run_steps(1, steps=1)
    floats = [leaf for leaf in jax.tree.leaves((state.variables, state.opt_state))]
    assert {leaf.dtype for leaf in floats} == {np.dtype("float32")}
    assert progress.sums.loss.dtype == np.float32
    difference = np.abs(state.params["stem"]["conv"]["kernel"] - reference.params["stem"]["conv"]["kernel"]).max()
    assert 0 < difference < 0.05


def batch_of(images, weights=None):
    count = len(images)
    weights = np.ones(count, np.float32) if weights is None else weights
    return Batch(image=jnp.asarray(images), label=jnp.arange(count, dtype=jnp.int32) % 10, weight=jnp.asarray(weights))


def test_the_update_is_the_equation():
    """w - rate * (momentum * v + gradient + decay * w), gradients by finite differences of the mean loss."""
    model, schedule = tiny_model(), schedules.constant(0.05)
    state = make_state(model, schedule)
    images = np.random.default_rng(1).normal(size=(16, *SHAPE)).astype(np.float32)
    batch = batch_of(images)
    new, _ = jax.jit(make_train_step(model, OPTIMIZER, schedule, seed=0))(state, Progress.zero(), batch)

    def loss(bias):
        params = {**state.params, "classifier": {**state.params["classifier"], "bias": bias}}
        logits, _ = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            batch.image,
            train=True,
            mutable=["batch_stats"],
        )
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), batch.label[:, None], 1))

    bias = state.params["classifier"]["bias"]
    expected = bias - 0.05 * jax.grad(loss)(bias)
    np.testing.assert_allclose(new.params["classifier"]["bias"], expected, atol=1e-6)


def test_a_non_finite_loss_changes_nothing_but_the_step():
    model = tiny_model()
    schedule = schedules.with_warmup_until_error(schedules.constant(0.05), learning_rate=0.01, error=0.8, window=5)
    step = jax.jit(make_train_step(model, OPTIMIZER, schedule, seed=0))
    images = np.random.default_rng(1).normal(size=(16, *SHAPE)).astype(np.float32)
    state, progress = step(make_state(model, schedule), Progress.zero(), batch_of(images))
    images[3, 2, 2, 1] = np.nan
    after, progress = step(state, progress, batch_of(images))
    assert (int(after.step), int(progress.skipped), int(progress.bad_step)) == (2, 1, 1)
    assert float(progress.sums.count) == 16
    jax.tree.map(np.testing.assert_array_equal, after.replace(step=state.step), state)


def test_the_first_non_finite_loss_is_kept_with_its_step():
    model, schedule = tiny_model(), schedules.constant(0.05)
    step = jax.jit(make_train_step(model, OPTIMIZER, schedule, seed=0))
    state = make_state(model, schedule)
    state.params["classifier"]["bias"] = state.params["classifier"]["bias"].at[3].set(jnp.inf)
    images = np.random.default_rng(1).normal(size=(16, *SHAPE)).astype(np.float32)
    progress = Progress.zero()
    for _ in range(3):
        state, progress = step(state, progress, batch_of(images))
    assert (int(progress.skipped), int(progress.bad_step)) == (3, 0)
    assert not np.isfinite(float(progress.bad_loss))
    assert float(progress.sums.count) == 0


def test_dropout_draws_anew_at_each_step_and_repeats_for_the_same_seed():
    model, schedule = tiny_model(dropout_rate=0.5), schedules.constant(0.0)
    images = np.random.default_rng(1).normal(size=(16, *SHAPE)).astype(np.float32)

    def losses(seed):
        step = jax.jit(make_train_step(model, OPTIMIZER, schedule, seed=seed))
        state, found = make_state(model, schedule), []
        for _ in range(2):
            state, progress = step(state, Progress.zero(), batch_of(images))
            found.append(float(progress.sums.loss))
        return found

    first = losses(0)
    assert first[0] != first[1]
    assert losses(0) == first
    assert losses(1) != first
