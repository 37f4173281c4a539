"""The stream of training batches: without replacement, a function of seed and position alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data.device_augment import normalize, pad_crop_flip
from resnet_jax.data.device_policies import apply_policy
from resnet_jax.data.resident import EpochOrders, ResidentData, make_batch_at
from resnet_jax.distributed import data_mesh, replicate
from resnet_jax.random_keys import named_key

COUNT, BATCH = 50, 16


STRONG = {"policy": "randaugment", "cutout_size": 3, "mixup_alpha": 0.4, "cutmix_alpha": 1.0}


def stream(*, seed=0, devices=1, pad=2, flip=True, **options):
    mesh = data_mesh(jax.devices()[:devices])
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3)).astype(np.uint8)
    data = replicate(ResidentData(images=images, labels=np.arange(COUNT, dtype=np.int32)), mesh)
    orders = EpochOrders(seed=seed, count=COUNT)
    mean = images.mean(0).astype(np.float32)
    options |= {"mean": mean, "std": np.ones(3, np.float32), "pad": pad, "flip": flip}
    batch_at = jax.jit(make_batch_at(mesh, seed=seed, batch_size=BATCH, **options))
    return lambda k: batch_at(data, *orders.at(k * BATCH), k)


def test_every_epoch_visits_every_example_once_in_a_new_order():
    batch = stream()
    visited = np.concatenate([batch(k).label for k in range(10)])[: 3 * COUNT].reshape(3, COUNT)
    for epoch in visited:
        assert sorted(epoch) == list(range(COUNT))
    assert not np.array_equal(visited[0], visited[1])
    assert not np.array_equal(visited[1], visited[2])


@pytest.mark.parametrize("k", [0, 3, 7, 100])
def test_a_batch_is_the_same_on_any_number_of_devices_and_after_a_restart(k):
    expected = stream()(k)
    for devices in (1, 2, 4, 8):
        found = stream(devices=devices)(k)
        np.testing.assert_array_equal(found.label, expected.label)
        np.testing.assert_array_equal(found.image, expected.image)


@pytest.mark.slow
@pytest.mark.parametrize("k", [0, 3])
def test_a_strongly_augmented_batch_is_the_same_on_any_number_of_devices(k):
    expected = stream(**STRONG)(k)
    for devices in (2, 8):
        found = stream(devices=devices, **STRONG)(k)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), found, expected)
        assert found.image.sharding.shard_shape(found.image.shape)[0] == BATCH // devices


def test_each_kind_of_augmentation_does_its_own():
    plain = stream(pad=0)(3)
    found = {name: stream(pad=0, **{name: value})(3) for name, value in STRONG.items()}
    for batch in found.values():
        np.testing.assert_array_equal(batch.label, plain.label)
        assert not np.array_equal(batch.image, plain.image)
    cut = found["cutout_size"].image != plain.image
    assert (np.asarray(found["cutout_size"].image)[cut] == 0).all() and cut.any((1, 2, 3)).all()
    for name, batch in found.items():
        mixed = name in ("mixup_alpha", "cutmix_alpha")
        assert (batch.partner_label is not None) == mixed
        if mixed:
            np.testing.assert_array_equal(batch.partner_label, np.roll(plain.label, 1))


@pytest.mark.slow
def test_a_policy_sees_whole_images_as_they_are_stored():
    batch, images = stream(policy="trivialaugment", pad=0, flip=False)(1), np.random.default_rng(0)
    images = images.integers(0, 256, (COUNT, 8, 8, 3)).astype(np.uint8)
    options = {"policy": "trivialaugment", "operations": 2, "magnitude": 9}
    positions, rows = BATCH + jnp.arange(BATCH), np.asarray(batch.label)
    augmented = apply_policy(jnp.asarray(images[rows]), positions, named_key(0, "policy"), **options)
    np.testing.assert_allclose(batch.image, np.asarray(augmented, np.float32) - images.mean(0), atol=1e-4)


def test_another_seed_gives_another_order_and_other_crops():
    first, second = stream(seed=0)(0), stream(seed=1)(0)
    assert not np.array_equal(first.label, second.label)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8, 8, 3)), jnp.float32)
    crops = [pad_crop_flip(images, jnp.arange(16), jax.random.key(seed), pad=2, flip=True) for seed in (0, 1)]
    assert not np.array_equal(*crops)


def test_crops_are_windows_of_the_zero_padded_image_or_its_mirror():
    images = jnp.asarray(np.random.default_rng(0).normal(size=(200, 8, 8, 3)), jnp.float32)
    crops = np.asarray(pad_crop_flip(images, jnp.arange(200), jax.random.key(0), pad=2, flip=True))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for image, crop in zip(padded, crops, strict=True):
        windows = {
            (top, left, flip): image[top : top + 8, left : left + 8][:, :: -1 if flip else 1]
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
        }
        matches = [place for place, window in windows.items() if np.array_equal(window, crop)]
        assert len(matches) == 1
        seen.add(matches[0])
    # All 25 offsets and both orientations come up among 200 draws.
    assert {place[:2] for place in seen} == {(top, left) for top in range(5) for left in range(5)}
    assert {place[2] for place in seen} == {False, True}


def test_without_pad_and_flip_only_the_mean_is_taken_off():
    batch = stream(pad=0, flip=False)(0)
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3)).astype(np.uint8)
    expected = images[np.asarray(batch.label)] - images.mean(0).astype(np.float32)
    np.testing.assert_allclose(batch.image, expected, rtol=1e-6)


def test_normalize_subtracts_then_divides():
    images = jnp.full((1, 2, 2, 3), 100, jnp.uint8)
    found = normalize(images, jnp.array([40.0, 60.0, 100.0]), jnp.array([2.0, 4.0, 1.0]))
    np.testing.assert_allclose(found[0, 0, 0], [30.0, 10.0, 0.0])
