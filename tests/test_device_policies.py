"""RandAugment and TrivialAugment on the device: the pixels of Pillow's operations, and draws of each position."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data import device_policies, policies
from resnet_jax.data.device_policies import apply_policy
from resnet_jax.data.policies import RAND_AUGMENT, TRIVIAL_AUGMENT
from resnet_jax.distributed import data_mesh, split_batch

TABLES = {"randaugment": RAND_AUGMENT, "trivialaugment": TRIVIAL_AUGMENT}
OPTIONS = {"operations": 2, "magnitude": 9}
EXACT = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY"),
    *("Posterize", "Solarize", "Equalize"),
)
KEY = jax.random.key(0)


def picture(height=32, width=32, channels=3):
    """Smooth with some noise, of few levels beside one another, as photographs are."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    waves = [100 + 60 * np.sin(x / (3 + k)) + 40 * np.cos(y / (4 - k)) for k in range(channels)]
    return (np.stack(waves, -1) + random.normal(0, 8, (height, width, channels))).clip(0, 255).astype(np.uint8)


@partial(jax.jit, static_argnames="policy")
def on_device(policy, image, number, magnitude, turned):
    return device_policies.apply_operation(policy, image, number, magnitude, turned=turned)


@pytest.mark.parametrize("policy", TABLES)
@pytest.mark.parametrize(("height", "width", "channels"), [(32, 32, 3), (20, 30, 3), (28, 28, 1), (2, 5, 3)])
def test_every_operation_makes_pillow_s_pixels(policy, height, width, channels):
    image = picture(height, width, channels)
    for number, (name, operation) in enumerate(TABLES[policy].items()):
        for magnitude in (0, 4, 9, 15, 22, 30):
            for turned in (False, True):
                expected = policies.apply_operation(image, operation, magnitude, turned=turned and operation.signed)
                found = np.asarray(on_device(policy, image, number, magnitude, turned))
                assert found.dtype == np.uint8 and found.shape == image.shape
                differing = np.abs(found.astype(int) - expected)
                what = f"{name}, magnitude {magnitude}, turned {turned}"
                if name == "Rotate":
                    # Sines in single precision move a place between two pixels to the other one.
                    assert (differing > 0).mean() <= 0.01, what
                elif name in EXACT:
                    assert differing.max() == 0, what
                else:
                    # An amount in single precision, times ten levels, is just below a whole number or just above.
                    assert differing.max() <= 1 and (differing > 0).mean() <= 0.15, what


@pytest.mark.parametrize("value", [0, 7, 255])
def test_an_image_of_one_level_has_nothing_to_spread(value):
    image = np.full((8, 8, 3), value, np.uint8)
    for name in ("AutoContrast", "Equalize"):
        number = list(RAND_AUGMENT).index(name)
        np.testing.assert_array_equal(on_device("randaugment", image, number, 9, False), image)


def calls_of(monkeypatch, policy, *, count=2000, **options):
    """Number, magnitude and sign of each operation that is drawn, each [count, operations]."""
    calls = []

    def note(_, image, number, magnitude, *, turned):
        calls.append((number, jnp.asarray(magnitude), turned))
        return image

    monkeypatch.setattr(device_policies, "apply_operation", note)
    function = {"randaugment": device_policies.rand_augment, "trivialaugment": device_policies.trivial_augment}[policy]

    def draws(position):
        calls.clear()
        function(jnp.zeros((2, 2, 3), jnp.uint8), jax.random.fold_in(KEY, position), **options)
        return [jnp.stack(column) for column in zip(*calls, strict=True)]

    return map(np.asarray, jax.vmap(draws)(jnp.arange(count)))


def assert_even(numbers, values):
    counts = np.bincount(np.ravel(numbers), minlength=values)
    expected, degrees = np.size(numbers) / values, values - 1
    assert len(counts) == values
    assert ((counts - expected) ** 2 / expected).sum() < degrees + 5 * np.sqrt(2 * degrees)


def test_rand_augment_draws_operations_and_signs_evenly_at_one_magnitude(monkeypatch):
    numbers, magnitudes, turned = calls_of(monkeypatch, "randaugment", operations=3, magnitude=11)
    assert numbers.shape == (2000, 3) and (magnitudes == 11).all()
    for place in range(3):
        assert_even(numbers[:, place], len(RAND_AUGMENT))
    assert_even(turned, 2)
    # What follows does not depend on what came first.
    assert abs(np.corrcoef(numbers[:, 0], numbers[:, 1])[0, 1]) < 0.1


def test_trivial_augment_draws_operations_magnitudes_and_signs_evenly(monkeypatch):
    numbers, magnitudes, turned = calls_of(monkeypatch, "trivialaugment", count=6000)
    assert_even(numbers, len(TRIVIAL_AUGMENT))
    assert_even(magnitudes, 31)
    assert_even(turned, 2)


@pytest.mark.parametrize("policy", TABLES)
def test_an_image_s_draws_belong_to_its_position_and_the_key_alone(policy):
    images = jnp.asarray(np.stack([picture()] * 32))
    augment = jax.jit(partial(apply_policy, policy=policy, **OPTIONS))
    whole = np.asarray(augment(images, jnp.arange(32), KEY))
    np.testing.assert_array_equal(augment(images[:2], jnp.array([5, 3]), KEY), whole[[5, 3]])
    assert len({image.tobytes() for image in whole}) > 20
    assert not np.array_equal(augment(images, jnp.arange(32), jax.random.key(1)), whole)


def test_without_a_policy_images_stay_as_they_are():
    images = jnp.asarray(picture())[None]
    assert apply_policy(images, jnp.arange(1), KEY, policy="none", **OPTIONS) is images


def test_images_stay_on_their_devices():
    mesh = data_mesh()
    images = np.stack([picture()] * 16)
    arguments = jax.device_put((images, np.arange(16)), split_batch(mesh))
    augment = jax.jit(lambda images, positions: apply_policy(images, positions, KEY, policy="randaugment", **OPTIONS))
    text = augment.lower(*arguments).compile().as_text()
    assert not any(word in text for word in ("all-gather", "all-to-all", "all-reduce", "collective-permute"))
