"""The training step: the same on any number of devices, its arithmetic, and what a non-finite loss must not touch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data.batch import Batch
from resnet_jax.data.device_augment import make_prepare
from resnet_jax.data.feeds import ResidentFeed
from resnet_jax.data.resident import ResidentData, make_batch_at
from resnet_jax.distributed import data_mesh, replicate, replicated, split_batch
from resnet_jax.models.registry import create_model, initialize
from resnet_jax.training import schedules, steps
from resnet_jax.training.losses import LOSSES
from resnet_jax.training.objective import classification
from resnet_jax.training.optimizers import sgd
from resnet_jax.training.state import Progress, TrainState
from resnet_jax.training.steps import make_resident_step, make_streamed_step, make_train_step

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

    def make_update(seed):
        batch_at = make_batch_at(
            mesh,
            seed=seed,
            batch_size=32,
            mean=np.full(3, 120, np.float32),
            std=np.full(3, 60, np.float32),
            pad=1,
            flip=True,
        )
        return make_train_step(classification(model), OPTIMIZER, schedule, seed=seed), batch_at

    call = make_resident_step(make_update, mesh, steps_per_call=steps_per_call)
    feed = ResidentFeed(data, seeds=(0,), batch_size=32)
    state, progress = replicate((make_state(model, schedule), Progress.zero()), mesh)
    for k in range(0, steps, steps_per_call):
        state, progress = call(state, progress, *feed.arguments(k))
    assert int(state.step) == steps
    assert state.params["classifier"]["kernel"].sharding.is_equivalent_to(replicated(mesh), 2)
    return jax.device_get(state), jax.device_get(progress)


def assert_same_to_rounding(found, expected):
    """Every array to 1e-5 of its largest value."""
    leaves = dict(jax.tree_util.tree_leaves_with_path(found))
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        scale = max(float(np.abs(leaf).max()), 1e-3)
        np.testing.assert_allclose(leaves[path], leaf, atol=1e-5 * scale, rtol=0, err_msg=str(path))


@pytest.mark.slow
@pytest.mark.parametrize("group_size", [None, 8])
def test_a_step_is_the_same_on_1_2_4_and_8_devices(group_size):
    """Loss, gradients (as momentum), statistics and parameters, to 1e-5 of each array's largest value."""
    expected, expected_progress = run_steps(1, steps=1, group_size=group_size)
    for devices in (2, 4, 8):
        found, progress = run_steps(devices, steps=1, group_size=group_size)
        assert float(progress.sums.loss) == pytest.approx(float(expected_progress.sums.loss), rel=1e-5)
        assert float(progress.sums.errors_top1) == float(expected_progress.sums.errors_top1)
        assert_same_to_rounding(found, expected)


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
    new, _ = jax.jit(make_train_step(classification(model), OPTIMIZER, schedule, seed=0))(state, Progress.zero(), batch)

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
    step = jax.jit(make_train_step(classification(model), OPTIMIZER, schedule, seed=0))
    images = np.random.default_rng(1).normal(size=(16, *SHAPE)).astype(np.float32)
    state, progress = step(make_state(model, schedule), Progress.zero(), batch_of(images))
    images[3, 2, 2, 1] = np.nan
    after, progress = step(state, progress, batch_of(images))
    assert (int(after.step), int(progress.skipped), int(progress.bad_step)) == (2, 1, 1)
    assert float(progress.sums.count) == 16
    assert int(after.skipped) == 1
    jax.tree.map(np.testing.assert_array_equal, after.replace(step=state.step, skipped=state.skipped), state)


def test_a_finite_loss_with_a_gradient_that_is_not_changes_nothing_but_the_step(monkeypatch):
    own = LOSSES["softmax"]
    # The root of nothing has the value 0, and no slope.
    monkeypatch.setitem(
        LOSSES, "softmax", lambda logits, *rest, **options: own(logits, *rest, **options) + root(logits)
    )
    model, schedule = tiny_model(), schedules.constant(0.05)
    before = make_state(model, schedule)
    step = jax.jit(make_train_step(classification(model), OPTIMIZER, schedule, seed=0))
    after, progress = step(before, Progress.zero(), batch_of(np.ones((16, *SHAPE), np.float32)))
    assert int(progress.skipped) == 1 and np.isfinite(float(progress.bad_loss))
    jax.tree.map(np.testing.assert_array_equal, after.replace(step=before.step, skipped=before.skipped), before)


def root(logits):
    return jnp.sqrt(0 * logits).sum()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, np.float32(1e30)])
def test_one_gradient_that_is_not_finite_or_has_no_finite_square_is_found_wherever_it_is(bad):
    # Kernels, vectors, and both of stacked blocks.
    params = make_state(tiny_model(scan=True), schedules.constant(0.05)).params
    gradients = jax.tree.map(np.array, params)
    finite = jax.jit(steps.all_finite)
    assert finite(gradients)
    for leaf in jax.tree.leaves(gradients):
        place = (-1,) * leaf.ndim
        leaf[place], kept = bad, leaf[place]
        assert not finite(gradients), leaf.shape
        leaf[place] = kept


def test_updates_are_counted_that_are_skipped_in_a_row():
    model, schedule = tiny_model(), schedules.constant(0.05)
    step = jax.jit(make_train_step(classification(model), OPTIMIZER, schedule, seed=0))
    images = np.random.default_rng(1).normal(size=(16, *SHAPE)).astype(np.float32)
    state, progress, counts = make_state(model, schedule), Progress.zero(), []
    for bad in (True, True, True, False, True):
        batch = batch_of(np.full_like(images, np.nan) if bad else images)
        state, progress = step(state, progress, batch)
        counts.append(int(state.skipped))
    assert counts == [1, 2, 3, 0, 1]
    assert (int(progress.skipped), int(progress.skipped_in_a_row), int(progress.bad_step)) == (4, 3, 0)
    assert int(progress.row_end) == 2 and float(progress.bad_rate) == np.float32(0.05)


def test_the_first_non_finite_loss_is_kept_with_its_step():
    model, schedule = tiny_model(), schedules.constant(0.05)
    step = jax.jit(make_train_step(classification(model), OPTIMIZER, schedule, seed=0))
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
        step = jax.jit(make_train_step(classification(model), OPTIMIZER, schedule, seed=seed))
        state, found = make_state(model, schedule), []
        for _ in range(2):
            state, progress = step(state, Progress.zero(), batch_of(images))
            found.append(float(progress.sums.loss))
        return found

    first = losses(0)
    assert first[0] != first[1]
    assert losses(0) == first
    assert losses(1) != first


def one_step(state=None, *, devices=1, images=64, group_size=4, mixed=False, padded=(), schedule=None, **options):
    """State and progress after a step on 64 random images, split over that many devices."""
    mesh = data_mesh(jax.devices()[:devices])
    model, schedule = tiny_model(bn_group_size=group_size), schedule or schedules.constant(0.05)
    random = np.random.default_rng(1)
    weights = np.ones(images, np.float32)
    weights[list(padded)] = 0
    batch = batch_of(random.normal(size=(images, *SHAPE)).astype(np.float32), weights)
    if mixed:
        shares = random.uniform(size=images).astype(np.float32)
        batch = batch.replace(partner_label=jnp.roll(batch.label, 1), share=jnp.asarray(shares))
    step = make_train_step(classification(model), OPTIMIZER, schedule, seed=0, mesh=mesh, **options)
    state = make_state(model, schedule) if state is None else state
    arguments = (*replicate((state, Progress.zero()), mesh), jax.device_put(batch, split_batch(mesh)))
    return jax.device_get(jax.jit(step)(*arguments))


@pytest.mark.parametrize("case", [{}, {"mixed": True, "padded": (3, 5, 40, 63)}])
def test_a_step_in_parts_is_the_whole_step(case):
    """Parameters, momentum, statistics and sums; the rows of weight 0 leave the parts with unequal weights."""
    expected = one_step(**case)
    for devices, parts in ((1, 16), (8, 2)):
        assert_same_to_rounding(one_step(devices=devices, accumulation_steps=parts, **case), expected)
    assert float(expected[1].sums.count) == 64 - len(case.get("padded", ()))


def test_a_part_moves_no_images_between_devices():
    mesh = data_mesh()
    model, schedule = tiny_model(bn_group_size=4), schedules.constant(0.05)
    batch = batch_of(np.zeros((64, *SHAPE), np.float32))
    step = make_train_step(classification(model), OPTIMIZER, schedule, seed=0, accumulation_steps=2, mesh=mesh)
    arguments = (
        *replicate((make_state(model, schedule), Progress.zero()), mesh),
        jax.device_put(batch, split_batch(mesh)),
    )
    text = jax.jit(step).lower(*arguments).compile().as_text()
    assert "all-reduce" in text
    assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute"))


def test_dropout_differs_from_part_to_part():
    model, schedule = tiny_model(bn_group_size=4, dropout_rate=0.5), schedules.constant(0.05)
    image = np.random.default_rng(1).normal(size=(8, *SHAPE)).astype(np.float32)
    batch = batch_of(np.concatenate([image, image])).replace(label=jnp.tile(jnp.arange(8, dtype=jnp.int32), 2))

    def loss(batch, **options):
        step = jax.jit(make_train_step(classification(model), OPTIMIZER, schedule, seed=0, **options))
        return float(step(make_state(model, schedule), Progress.zero(), batch)[1].sums.loss)

    # With the same key both parts would lose the same.
    halves = loss(batch, accumulation_steps=2)
    first = jax.tree.map(lambda leaf: jnp.concatenate([leaf[:8], jnp.zeros_like(leaf[:8])]), batch)
    second = jax.tree.map(lambda leaf: jnp.concatenate([jnp.zeros_like(leaf[8:]), leaf[8:]]), batch)
    losses = [loss(half, accumulation_steps=2) for half in (first, second)]
    assert halves == pytest.approx(sum(losses), rel=1e-5)
    assert abs(losses[0] - losses[1]) > 1e-3 * losses[0]


@pytest.mark.parametrize(
    ("devices", "group_size", "parts", "message"),
    [
        (1, 4, 3, "accumulation_steps=3 and 1 devices do not divide the batch of 64 examples"),
        (8, 4, 16, "accumulation_steps=16 and 8 devices do not divide the batch of 64 examples"),
        (8, 4, 4, "bn_group_size=4 does not divide the 2 examples of one device"),
        (1, None, 2, "bn_group_size=None does not divide the 32 examples of one device"),
    ],
)
def test_parts_that_would_cut_a_device_s_rows_or_a_group_are_refused(devices, group_size, parts, message):
    with pytest.raises(ValueError, match=message):
        one_step(devices=devices, group_size=group_size, accumulation_steps=parts)


def test_averages_follow_parameters_and_statistics_and_start_fast():
    model, schedule = tiny_model(bn_group_size=4), schedules.constant(0.05)
    state = TrainState.create(initialize(model, jax.random.key(0), SHAPE), OPTIMIZER, schedule, ema=True)
    expected = jax.device_get(state.variables)
    for step, decay in enumerate((1 / 10, 2 / 11, 0.2)):
        state, _ = one_step(state, ema_decay=0.2)
        expected = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, expected, state.variables)
        assert_same_to_rounding(state.ema, expected)
        assert int(state.step) == step + 1
    assert state.evaluated_variables is state.ema
    assert not np.allclose(state.ema["params"]["stem"]["conv"]["kernel"], state.params["stem"]["conv"]["kernel"])


def test_frozen_statistics_stay_to_the_last_bit_in_parts():
    """A sum of three equal numbers, divided by three, is not always the number."""
    model, schedule = tiny_model(norm="frozen"), schedules.constant(0.05)
    state = make_state(model, schedule)
    draws = np.random.default_rng(0)
    constants = jax.tree.map(lambda x: jnp.asarray(draws.uniform(0.1, 1, x.shape), x.dtype), state.batch_stats)
    images = draws.normal(size=(24, *SHAPE)).astype(np.float32)
    mesh = data_mesh(jax.devices()[:1])
    step = jax.jit(make_train_step(classification(model), OPTIMIZER, schedule, seed=0, accumulation_steps=3, mesh=mesh))
    after, _ = step(state.replace(batch_stats=constants), Progress.zero(), batch_of(images))
    jax.tree.map(np.testing.assert_array_equal, after.batch_stats, constants)


def test_a_skipped_update_leaves_the_averages():
    model, schedule = tiny_model(), schedules.constant(0.05)
    state = TrainState.create(initialize(model, jax.random.key(0), SHAPE), OPTIMIZER, schedule, ema=True)
    step = jax.jit(make_train_step(classification(model), OPTIMIZER, schedule, seed=0, ema_decay=0.9))
    after, _ = step(state, Progress.zero(), batch_of(np.full((16, *SHAPE), np.nan, np.float32)))
    jax.tree.map(np.testing.assert_array_equal, after.replace(step=state.step, skipped=state.skipped), state)


def test_without_averages_the_raw_variables_are_tested_and_a_decay_is_refused():
    state = make_state(tiny_model(), schedules.constant(0.05))
    assert state.ema == {}
    assert state.evaluated_variables["params"] is state.params
    with pytest.raises(ValueError, match="ema_decay=0.9: the state carries no averages"):
        one_step(ema_decay=0.9)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_gradient_is_that_of_the_chosen_loss_smoothed_and_mixed(loss):
    model, schedule = tiny_model(), schedules.constant(0.05)
    state = make_state(model, schedule)
    random = np.random.default_rng(1)
    batch = batch_of(random.normal(size=(16, *SHAPE)).astype(np.float32), np.array([1] * 14 + [0] * 2, np.float32))
    shares = random.uniform(size=16).astype(np.float32)
    batch = batch.replace(partner_label=jnp.roll(batch.label, 3), share=jnp.asarray(shares))
    step = make_train_step(classification(model, loss=loss, label_smoothing=0.1), OPTIMIZER, schedule, seed=0)
    new, _ = jax.jit(step)(state, Progress.zero(), batch)

    logits, _ = model.apply(state.variables, batch.image, train=True, mutable=["batch_stats"])
    mixed = {"partner_labels": batch.partner_label, "shares": batch.share}
    per_logit = jax.grad(LOSSES[loss])(logits, batch.label, batch.weight, label_smoothing=0.1, **mixed) / 14
    found = (state.params["classifier"]["bias"] - new.params["classifier"]["bias"]) / 0.05
    np.testing.assert_allclose(found, per_logit.sum(0), atol=2e-6)


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="loss='hinge' is not one of softmax, sigmoid"):
        classification(tiny_model(), loss="hinge")


@pytest.mark.slow
def test_a_streamed_step_prepares_its_batch_at_the_state_s_step_and_steps():
    images = np.random.default_rng(0).integers(0, 256, (32, *SHAPE)).astype(np.uint8)
    labels, weights = np.arange(32, dtype=np.int32) % 10, np.array([1] * 30 + [0] * 2, np.float32)
    model, schedule = tiny_model(), schedules.constant(0.05)
    train_step = make_train_step(classification(model), OPTIMIZER, schedule, seed=0)

    def after_two_steps(devices, call_of):
        mesh = data_mesh(jax.devices()[:devices])
        prepare = make_prepare(
            mesh,
            seed=0,
            mean=np.full(3, 120, np.float32),
            std=np.full(3, 60, np.float32),
            pca_std=0.1,
            eigenvalues=np.array([55.46, 4.794, 1.148]),
            eigenvectors=np.eye(3),
            mixup_alpha=0.2,
            cutmix_alpha=1.0,
            batch_size=32,
        )
        call = call_of(prepare, mesh)
        state, progress = replicate((make_state(model, schedule), Progress.zero()), mesh)
        batch = jax.device_put((images, labels, weights), split_batch(mesh))
        for _ in range(2):
            state, progress = call(state, progress, *batch)
        return jax.device_get((state, progress))

    def by_hand(prepare, mesh):
        def call(state, progress, images, labels, weights):
            return jax.jit(train_step)(state, progress, jax.jit(prepare)(images, labels, weights, int(state.step)))

        return call

    found = after_two_steps(8, lambda prepare, mesh: make_streamed_step(train_step, prepare, mesh))
    assert_same_to_rounding(found, after_two_steps(1, by_hand))
    assert float(found[1].sums.count) == 60
