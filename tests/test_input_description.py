"""Pixel statistics against numpy, and the file that carries them."""

import jaxtyping
import numpy as np
import pytest

from resnet_jax.data.input_description import InputDescription, describe_input

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 4, 5, 3)).astype(np.uint8)


def test_pixel_mean_is_an_image_and_nothing_is_divided():
    found = describe_input(IMAGES, ("a", "b"), normalization="pixel_mean")
    np.testing.assert_allclose(found.mean, IMAGES.mean(0), rtol=1e-6)
    np.testing.assert_array_equal(found.std, np.ones(3))


def test_channel_statistics_equal_numpy_s():
    found = describe_input(IMAGES, ("a", "b"), normalization="channel_mean_std")
    np.testing.assert_allclose(found.mean, IMAGES.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(found.std, IMAGES.std((0, 1, 2)), rtol=1e-6)


def test_the_file_gives_back_what_was_saved(tmp_path):
    saved = describe_input(IMAGES, ("cat", "grüner Hund"), normalization="pixel_mean")
    saved.save(tmp_path / "input.npz")
    loaded = InputDescription.load(tmp_path / "input.npz")
    assert (loaded.image_shape, loaded.class_names) == (saved.image_shape, saved.class_names)
    np.testing.assert_array_equal(loaded.mean, saved.mean)
    np.testing.assert_array_equal(loaded.std, saved.std)
    assert [path.name for path in tmp_path.iterdir()] == ["input.npz"]


def test_descriptions_are_the_same_only_if_all_of_it_is():
    one = describe_input(IMAGES, ("a", "b"), normalization="pixel_mean")
    assert one.same_as(describe_input(IMAGES, ("a", "b"), normalization="pixel_mean"))
    assert not one.same_as(describe_input(IMAGES, ("a", "c"), normalization="pixel_mean"))
    assert not one.same_as(describe_input(IMAGES[:-1], ("a", "b"), normalization="pixel_mean"))
    assert not one.same_as(describe_input(IMAGES, ("a", "b"), normalization="channel_mean_std"))


def test_unknown_normalization_is_refused():
    with pytest.raises(ValueError, match="normalization='imagenet' is not one of pixel_mean"):
        describe_input(IMAGES, (), normalization="imagenet")


def test_one_text_is_not_the_names_of_the_classes(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="class_names='cat' must be several texts"):
        InputDescription((8, 8, 3), np.zeros(3), np.ones(3), "cat")
