"""RandAugment and TrivialAugment: known answers of each operation, and how often and how strongly each is drawn."""

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data import policies
from resnet_jax.data.policies import (
    MAX_MAGNITUDE,
    RAND_AUGMENT,
    TRIVIAL_AUGMENT,
    apply_operation,
    rand_augment,
    trivial_augment,
)

TABLES = {"rand_augment": RAND_AUGMENT, "trivial_augment": TRIVIAL_AUGMENT}
# Amount at magnitude 0 and 30, from the papers' code as torchvision has it: RandAugment, TrivialAugment Wide.
AMOUNTS = {
    "ShearX": ((0, 0.3), (0, 0.99)),
    "ShearY": ((0, 0.3), (0, 0.99)),
    "TranslateX": ((0, 150 / 331), (0, 32)),
    "TranslateY": ((0, 150 / 331), (0, 32)),
    "Rotate": ((0, 30), (0, 135)),
    "Brightness": ((0, 0.9), (0, 0.99)),
    "Color": ((0, 0.9), (0, 0.99)),
    "Contrast": ((0, 0.9), (0, 0.99)),
    "Sharpness": ((0, 0.9), (0, 0.99)),
    "Posterize": ((8, 4), (8, 2)),
    "Solarize": ((255, 0), (255, 0)),
}
WITHOUT_AMOUNT = ("Identity", "AutoContrast", "Equalize")
UNSIGNED = ("Posterize", "Solarize", *WITHOUT_AMOUNT)


def noise(height=20, width=30, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels)).astype(np.uint8)


def shifted(image, *, down=0, right=0):
    """Moved by whole pixels, black where nothing came in."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((height, height), (width, width), (0, 0)))
    return padded[height - down : 2 * height - down, width - right : 2 * width - right]


@pytest.mark.parametrize("column", [0, 1])
def test_the_operations_and_their_ranges_are_the_published_ones(column):
    table = list(TABLES.values())[column]
    assert set(table) == {*AMOUNTS, *WITHOUT_AMOUNT}
    assert {name: table[name].amounts for name in AMOUNTS} == {name: both[column] for name, both in AMOUNTS.items()}
    assert {name for name in table if not table[name].signed} == set(UNSIGNED)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("channels", [1, 3])
def test_magnitude_0_changes_nothing_where_there_is_one(table, channels):
    image = noise(channels=channels)
    for name in AMOUNTS:
        # Threshold 255 still turns white into black, as it does in torchvision.
        expected = np.where(image == 255, 0, image) if name == "Solarize" else image
        np.testing.assert_array_equal(apply_operation(image, table[name], 0, turned=False), expected)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(20, 30), (1, 1), (2, 50)])
def test_every_operation_keeps_shape_and_type(table, channels, shape):
    for operation in table.values():
        for turned in (False, True) if operation.signed else (False,):
            found = apply_operation(noise(*shape, channels), operation, MAX_MAGNITUDE, turned=turned)
            assert found.shape == (*shape, channels) and found.dtype == np.uint8


@pytest.mark.parametrize("magnitude", [1, 9, 15, 29, 30])
@pytest.mark.parametrize("turned", [False, True])
def test_translations_move_by_whole_pixels_and_uncover_black(magnitude, turned):
    image = noise(44, 66)
    sign = -1 if turned else 1
    for table, x_range, y_range in ((RAND_AUGMENT, 150 / 331 * 66, 150 / 331 * 44), (TRIVIAL_AUGMENT, 32, 32)):
        right, down = (sign * int(full * magnitude / 30) for full in (x_range, y_range))
        found = apply_operation(image, table["TranslateX"], magnitude, turned=turned)
        np.testing.assert_array_equal(found, shifted(image, right=right))
        found = apply_operation(image, table["TranslateY"], magnitude, turned=turned)
        np.testing.assert_array_equal(found, shifted(image, down=down))


def test_a_shear_moves_each_row_or_column_in_proportion_to_its_distance_from_the_corner():
    image = noise(20, 20)
    for turned, sign in ((False, -1), (True, 1)):
        sheared = apply_operation(image, TRIVIAL_AUGMENT["ShearX"], MAX_MAGNITUDE, turned=turned)
        for row in (0, 5, 19):
            right = round(sign * 0.99 * (row + 0.5))
            np.testing.assert_array_equal(sheared[row], shifted(image, right=right)[row])
        sheared = apply_operation(image, TRIVIAL_AUGMENT["ShearY"], MAX_MAGNITUDE, turned=turned)
        for column in (0, 5, 19):
            down = round(sign * 0.99 * (column + 0.5))
            np.testing.assert_array_equal(sheared[:, column], shifted(image, down=down)[:, column])


def test_a_rotation_turns_counter_clockwise_about_the_centre():
    # 90 of 135 degrees is magnitude 20 of 30.
    image = noise(21, 21)
    operation = TRIVIAL_AUGMENT["Rotate"]
    np.testing.assert_array_equal(apply_operation(image, operation, 20, turned=False), np.rot90(image))
    np.testing.assert_array_equal(apply_operation(image, operation, 20, turned=True), np.rot90(image, -1))
    corner = apply_operation(np.full_like(image, 200), operation, 10, turned=False)[0, 0]
    np.testing.assert_array_equal(corner, 0)


def test_enhancements_blend_with_black_grey_and_the_mean():
    image = noise()
    for name, towards in (
        ("Brightness", np.zeros_like(image)),
        ("Color", np.asarray(Image.fromarray(image).convert("L"))[..., None]),
        ("Contrast", np.full_like(image, round(np.asarray(Image.fromarray(image).convert("L")).mean()))),
    ):
        for turned, change in ((False, 0.6), (True, -0.6)):
            found = apply_operation(image, RAND_AUGMENT[name], 20, turned=turned).astype(float)
            expected = np.clip(towards + (1 + change) * (image.astype(float) - towards), 0, 255)
            np.testing.assert_allclose(found, expected, atol=1, err_msg=name)


def test_sharpness_blends_with_the_smoothed_image():
    image = np.zeros((9, 9, 1), np.uint8)
    image[4, 4] = 130
    # Pillow's kernel has 5 of 13 in the middle, so smoothing leaves 50 there and 10 beside it.
    softer = apply_operation(image, RAND_AUGMENT["Sharpness"], 20, turned=True)
    np.testing.assert_allclose(softer[4, 3:6, 0], [6, 82, 6], atol=1)
    sharper = apply_operation(image, RAND_AUGMENT["Sharpness"], 20, turned=False)
    np.testing.assert_allclose(sharper[4, 3:6, 0], [0, 178, 0], atol=1)


@pytest.mark.parametrize(("magnitude", "bits"), [(0, 8), (9, 7), (30, 4)])
def test_posterize_keeps_the_upper_bits(magnitude, bits):
    image = noise()
    found = apply_operation(image, RAND_AUGMENT["Posterize"], magnitude, turned=False)
    np.testing.assert_array_equal(found, image & (256 - 2 ** (8 - bits)))


@pytest.mark.parametrize(("magnitude", "threshold"), [(0, 255), (9, 178.5), (30, 0)])
def test_solarize_inverts_from_the_threshold_on(magnitude, threshold):
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    found = apply_operation(image, RAND_AUGMENT["Solarize"], magnitude, turned=False)
    np.testing.assert_array_equal(found, np.where(image < threshold, image, 255 - image))


def test_auto_contrast_stretches_and_equalize_evens_out():
    image = (np.arange(100, 150, dtype=np.uint8)[:, None, None] * np.ones((1, 510, 3))).astype(np.uint8)
    for name in ("AutoContrast", "Equalize"):
        found = apply_operation(image, RAND_AUGMENT[name], 0, turned=False)
        np.testing.assert_allclose(found[:, 0, 0].astype(float), np.linspace(0, 255, 50), atol=3)


def drawn(monkeypatch, augment, draws, **options):
    """The (table's operation, magnitude, turned) of each operation that the draws apply."""
    calls = []

    def note(image, operation, magnitude, *, turned):
        calls.append((operation, magnitude, turned))
        return image

    monkeypatch.setattr(policies, "apply_operation", note)
    rng = np.random.default_rng(0)
    for _ in range(draws):
        augment(noise(), rng, **options)
    return calls


def assert_even(counts):
    """Chi-square below its mean plus five standard deviations."""
    counts = np.asarray(counts)
    expected = counts.sum() / len(counts)
    degrees = len(counts) - 1
    assert ((counts - expected) ** 2 / expected).sum() < degrees + 5 * np.sqrt(2 * degrees)


def test_trivial_augment_draws_operations_magnitudes_and_signs_evenly(monkeypatch):
    calls = drawn(monkeypatch, trivial_augment, 6000)
    assert len(calls) == 6000
    assert_even([sum(call[0] is operation for call in calls) for operation in TRIVIAL_AUGMENT.values()])
    assert_even(np.bincount([magnitude for _, magnitude, _ in calls], minlength=31))
    assert max(magnitude for _, magnitude, _ in calls) == MAX_MAGNITUDE
    assert_even(np.bincount([turned for operation, _, turned in calls if operation.signed], minlength=2))
    assert not any(turned for operation, _, turned in calls if not operation.signed)


@pytest.mark.parametrize(("operations", "magnitude"), [(2, 9), (3, 30)])
def test_rand_augment_draws_operations_and_signs_evenly_at_one_magnitude(operations, magnitude, monkeypatch):
    calls = drawn(monkeypatch, rand_augment, 2000, operations=operations, magnitude=magnitude)
    assert len(calls) == 2000 * operations
    assert_even([sum(call[0] is operation for call in calls) for operation in RAND_AUGMENT.values()])
    assert {applied for _, applied, _ in calls} == {magnitude}
    assert_even(np.bincount([turned for operation, _, turned in calls if operation.signed], minlength=2))
    assert not any(turned for operation, _, turned in calls if not operation.signed)


def test_the_generator_alone_decides_and_the_image_stays():
    image = noise()
    before = image.copy()
    for augment in (rand_augment, trivial_augment):
        outcomes = [augment(image, np.random.default_rng(seed)) for seed in (*range(20), *range(20))]
        for first, second in zip(outcomes[:20], outcomes[20:], strict=True):
            np.testing.assert_array_equal(first, second)
        assert len({outcome.tobytes() for outcome in outcomes}) > 10
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("magnitude", [-1, 31])
def test_a_magnitude_out_of_range_is_refused(magnitude):
    with pytest.raises(ValueError, match=f"magnitude={magnitude}; allowed are 0 to 30"):
        rand_augment(noise(), np.random.default_rng(0), magnitude=magnitude)
