"""Colour and mixing on the device: their statistics, their pixels, and what they may depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data.batch import Batch
from resnet_jax.data.device_augment import cutout, make_prepare, normalize, pca_color
from resnet_jax.data.mixing import cutmix, mix, mixup
from resnet_jax.distributed import data_mesh, split_batch
from resnet_jax.random_keys import named_key

KEY = jax.random.key(0)
# ImageNet's, on pixel values 0 to 255 (fb.resnet.torch).
EIGENVALUES = np.array([55.46, 4.794, 1.148])
EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def batch_of(count=4, size=(8, 6), weights=None):
    random = np.random.default_rng(0)
    weights = np.ones(count) if weights is None else np.array(weights)
    return Batch(
        image=jnp.asarray(random.normal(size=(count, *size, 3)), jnp.float32),
        label=jnp.arange(count, dtype=jnp.int32),
        weight=jnp.asarray(weights, jnp.float32),
    )


def colours(positions, key=KEY, std=0.1):
    images = jnp.full((len(positions), 2, 2, 3), 100.0)
    return pca_color(images, jnp.asarray(positions), key, std=std, eigenvalues=EIGENVALUES, eigenvectors=EIGENVECTORS)


def test_colour_is_shifted_alike_in_all_pixels_along_the_components():
    shifts = np.asarray(colours(np.arange(4000))) - 100.0
    assert (np.ptp(shifts, axis=(1, 2)) == 0).all()
    draws = shifts[:, 0, 0] @ EIGENVECTORS / EIGENVALUES  # the components are orthonormal
    np.testing.assert_allclose(draws.std(0), 0.1, rtol=0.05)
    np.testing.assert_allclose(draws.mean(0), 0, atol=0.006)
    np.testing.assert_allclose(np.corrcoef(draws.T), np.eye(3), atol=0.06)


def test_a_colour_belongs_to_the_position_and_the_key_alone():
    whole = colours([3, 4, 5, 6])
    np.testing.assert_array_equal(colours([5, 3]), whole[jnp.array([2, 0])])
    assert len(np.unique(whole[:, 0, 0, 0])) == 4
    assert not np.array_equal(colours([3], jax.random.key(1)), whole[:1])


def shares_of(way, alpha, steps=2000):
    batch = batch_of(2, (64, 64))

    def share(step):
        return way(batch, step, KEY, alpha=alpha).share[0]

    return np.asarray(jax.jit(lambda: jax.lax.map(share, jnp.arange(steps)))())


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_the_shares_of_mixup_follow_the_beta_distribution(alpha):
    shares = shares_of(mixup, alpha)
    assert shares.min() >= 0 and shares.max() <= 1
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def test_the_shares_of_cutmix_are_at_least_those_drawn_because_boxes_are_clipped():
    drawn, shares = shares_of(mixup, 1.0), shares_of(cutmix, 1.0)
    assert (shares > drawn - 1e-6).all()
    assert (shares > drawn + 0.02).mean() > 0.5
    # A side s of the box keeps s - s^2 / 4 on average over its places; the mean of that squared is 77 / 240 = 0.321 for
    # s^2 uniform, and whole pixels take a little off.
    assert 1 - shares.mean() == pytest.approx(0.316, abs=0.02)


def test_mixup_blends_with_the_neighbour_and_so_do_the_targets():
    batch = batch_of()
    mixed = jax.jit(lambda: mixup(batch, 3, KEY, alpha=1.0))()
    share = float(mixed.share[0])
    assert 0.05 < share < 0.95
    np.testing.assert_array_equal(mixed.share, np.full(4, share, np.float32))
    np.testing.assert_array_equal(mixed.partner_label, [3, 0, 1, 2])
    expected = share * batch.image + (1 - share) * batch.image[jnp.array([3, 0, 1, 2])]
    np.testing.assert_allclose(mixed.image, expected, atol=1e-6)
    np.testing.assert_array_equal(mixed.label, batch.label)


def test_cutmix_fills_one_box_with_the_neighbour_s_pixels_and_its_share_is_the_rest():
    batch = batch_of(size=(16, 12))
    neighbour = np.roll(batch.image, 1, axis=0)
    clipped = 0
    for step in range(40):
        mixed = cutmix(batch, step, KEY, alpha=1.0)
        from_neighbour = (np.asarray(mixed.image) == neighbour).all(-1)
        own = (np.asarray(mixed.image) == np.asarray(batch.image)).all(-1)
        assert (from_neighbour ^ own).all()
        assert (from_neighbour == from_neighbour[0]).all()
        rows, columns = from_neighbour[0].any(1), from_neighbour[0].any(0)
        np.testing.assert_array_equal(from_neighbour[0], rows[:, None] & columns)
        for side in (rows, columns):
            assert np.count_nonzero(np.diff(np.pad(side.astype(int), 1))) in (0, 2)  # one run, or nothing
        np.testing.assert_allclose(mixed.share, 1 - from_neighbour[0].mean(), rtol=1e-6)
        clipped += bool(rows[[0, -1]].any() or columns[[0, -1]].any())
    assert 5 < clipped < 40


def test_mix_takes_either_way_half_of_the_time_with_its_own_alpha():
    batch = batch_of(size=(32, 32))
    run = jax.jit(lambda step: mix(batch, step, KEY, mixup_alpha=0.3, cutmix_alpha=1.0))
    alone = jax.jit(lambda step: (mixup(batch, step, KEY, alpha=0.3), cutmix(batch, step, KEY, alpha=1.0)))
    ways = {"mixup": 0, "cutmix": 0}
    for step in range(100):
        mixed = run(step)
        blended, cut = alone(step)
        is_mixup = float(mixed.share[0]) == pytest.approx(float(blended.share[0]), rel=1e-5)
        way, expected = ("mixup", blended) if is_mixup else ("cutmix", cut)
        ways[way] += 1
        np.testing.assert_allclose(mixed.image, expected.image, atol=1e-6)
        np.testing.assert_allclose(mixed.share, expected.share, rtol=1e-5)
    assert 35 < ways["mixup"] < 65


def test_an_alpha_of_zero_turns_a_way_off():
    batch = batch_of()
    assert mix(batch, 0, KEY, mixup_alpha=0.0, cutmix_alpha=0.0) is batch
    for step in range(4):
        for way, alphas in ((mixup, (0.5, 0.0)), (cutmix, (0.0, 0.5))):
            found = mix(batch, step, KEY, mixup_alpha=alphas[0], cutmix_alpha=alphas[1])
            jax.tree.map(np.testing.assert_array_equal, found, way(batch, step, KEY, alpha=0.5))


@pytest.mark.parametrize("way", [mixup, cutmix])
def test_padding_neither_gives_nor_takes(way):
    weights = [1, 1, 0, 1, 1, 1]
    batch = batch_of(6, weights=weights)
    batch = batch.replace(image=batch.image.at[2].set(jnp.nan))
    step = next(step for step in range(20) if 0.2 < way(batch_of(6), step, KEY, alpha=1.0).share[0] < 0.8)
    mixed = way(batch, step, KEY, alpha=1.0)
    full = way(batch_of(6), step, KEY, alpha=1.0)
    for row in (2, 3):  # the padding, and the one whose neighbour it is
        np.testing.assert_array_equal(mixed.image[row], batch.image[row])
        assert mixed.share[row] == 1
    for row in (0, 1, 4, 5):
        np.testing.assert_array_equal(mixed.image[row], full.image[row])
        assert mixed.share[row] == full.share[row] < 1


def test_a_share_depends_on_step_and_key_alone():
    shares = {
        (count, size): [float(mixup(batch_of(count, size), step, KEY, alpha=1.0).share[0]) for step in range(3)]
        for count, size in ((4, (8, 6)), (16, (5, 5)))
    }
    assert shares[4, (8, 6)] == shares[16, (5, 5)]
    assert len(set(shares[4, (8, 6)])) == 3
    assert float(mixup(batch_of(), 0, jax.random.key(1), alpha=1.0).share[0]) != shares[4, (8, 6)][0]


@pytest.mark.parametrize("size", [1, 4, 5])
def test_cutout_sets_one_square_to_zero_whose_centre_is_any_pixel(size):
    count, height, width = 3000, 8, 6
    images = jnp.ones((count, height, width, 3))
    found = np.asarray(cutout(images, jnp.arange(count), KEY, size=size))
    assert set(np.unique(found)) == {0, 1} and (np.ptp(found, axis=-1) == 0).all()
    centres = {}
    for image in found[..., 0]:
        rows, columns = (np.unique(places) for places in np.nonzero(image == 0))
        assert (image[np.ix_(rows, columns)] == 0).all() and (image == 0).sum() == len(rows) * len(columns)
        centres[tuple(rows), tuple(columns)] = centres.get((tuple(rows), tuple(columns)), 0) + 1
    # The squares around all centres, clipped; each as often as the others.
    around = [
        [tuple(range(max(0, c - size // 2), min(length, c - size // 2 + size))) for c in range(length)]
        for length in (height, width)
    ]
    assert set(centres) == {(rows, columns) for rows in around[0] for columns in around[1]}
    expected = count / (height * width)
    assert max(abs(times - expected) for times in centres.values()) < 5 * np.sqrt(expected)


def test_a_square_belongs_to_the_position_and_the_key_alone():
    images = jnp.ones((4, 32, 32, 3))
    whole = np.asarray(cutout(images, jnp.array([3, 4, 5, 6]), KEY, size=16))
    np.testing.assert_array_equal(cutout(images[:2], jnp.array([5, 3]), KEY, size=16), whole[[2, 0]])
    assert not np.array_equal(cutout(images[:1], jnp.array([3]), jax.random.key(1), size=16), whole[:1])
    assert cutout(images, jnp.arange(4), KEY, size=0) is images


def prepared(
    devices=1, *, step=2, pca_std=0.1, cutout_size=0, mixup_alpha=0.4, cutmix_alpha=1.0, weights=None, count=16
):
    mesh = data_mesh(jax.devices()[:devices])
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
    weights = np.ones(count, np.float32) if weights is None else weights
    prepare = make_prepare(
        mesh,
        seed=0,
        mean=np.array([120.0, 110.0, 100.0], np.float32),
        std=np.full(3, 60, np.float32),
        pca_std=pca_std,
        eigenvalues=EIGENVALUES,
        eigenvectors=EIGENVECTORS,
        cutout_size=cutout_size,
        mixup_alpha=mixup_alpha,
        cutmix_alpha=cutmix_alpha,
        batch_size=16,
    )
    arguments = jax.device_put((images, np.arange(count, dtype=np.int32), weights), split_batch(mesh))
    return images, jax.jit(prepare)(*arguments, step)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_prepared_batch_is_the_same_on_1_and_8_devices_and_stays_split(step):
    weights = np.array([1] * 14 + [0] * 2, np.float32)
    _, expected = prepared(1, step=step, weights=weights)
    _, found = prepared(8, step=step, weights=weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), found, expected)
    assert all(leaf.sharding.shard_shape(leaf.shape)[0] == 2 for leaf in jax.tree.leaves(found))


def test_mixing_moves_one_image_a_device_and_no_more():
    mesh = data_mesh()
    batch = jax.device_put(batch_of(64), split_batch(mesh))
    program = jax.jit(lambda batch, step: mix(batch, step, KEY, mixup_alpha=0.4, cutmix_alpha=1.0))
    text = program.lower(batch, 0).compile().as_text()
    assert "collective-permute" in text
    assert "f32[1,8,6,3]" in text
    assert not any(word in text for word in ("all-gather", "all-to-all", "all-reduce"))


def test_without_colour_and_mixing_a_batch_is_only_normalised_and_padding_is_zero():
    weights = np.array([1] * 13 + [0, 1, 0], np.float32)
    images, batch = prepared(pca_std=0.0, mixup_alpha=0.0, cutmix_alpha=0.0, weights=weights)
    expected = np.asarray(normalize(jnp.asarray(images), np.array([120.0, 110.0, 100.0], np.float32), np.full(3, 60.0)))
    np.testing.assert_allclose(batch.image, expected * weights[:, None, None, None], atol=1e-6)
    assert not np.any(batch.image[13]) and not np.any(batch.image[15])
    assert batch.partner_label is None and batch.share is None


def test_a_prepared_image_has_the_square_of_its_position_in_the_stream():
    _, plain = prepared(step=3, mixup_alpha=0.0, cutmix_alpha=0.0)
    _, cut = prepared(step=3, mixup_alpha=0.0, cutmix_alpha=0.0, cutout_size=4)
    expected = cutout(plain.image, 3 * 16 + jnp.arange(16), named_key(0, "cutout"), size=4)
    np.testing.assert_array_equal(cut.image, expected)
    assert not np.array_equal(cut.image, plain.image)


def test_a_prepared_image_has_the_colour_of_its_position_in_the_stream():
    images, batch = prepared(step=3, mixup_alpha=0.0, cutmix_alpha=0.0)
    _, plain = prepared(step=3, pca_std=0.0, mixup_alpha=0.0, cutmix_alpha=0.0)
    shifts = np.asarray(batch.image - plain.image)[:, 0, 0]
    assert len(np.unique(shifts[:, 0])) == 16
    _, again = prepared(step=4, mixup_alpha=0.0, cutmix_alpha=0.0)
    assert not np.isin(np.asarray(again.image - plain.image)[:, 0, 0, 0], shifts[:, 0]).any()


def test_a_batch_of_another_size_is_refused():
    with pytest.raises(ValueError, match="batch_size=16, but 8 images came"):
        prepared(count=8)
