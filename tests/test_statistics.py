"""Pixel statistics are those of the centre crops, are stored and used, and ImageNet's published ones ship."""

import numpy as np
import pytest
from colored_images import build_colored_images

from resnet_jax import cli
from resnet_jax.data.datasets import dataset_info
from resnet_jax.data.examples import Examples
from resnet_jax.data.statistics import (
    PUBLISHED_IMAGENET,
    PixelStatistics,
    describe_streamed_input,
    measure,
    statistics_of,
)
from resnet_jax.data.views import CenterView


@pytest.fixture(scope="module")
def info(real_data):
    return dataset_info("imagenet2012", data_dir=real_data)


@pytest.fixture(scope="module")
def measured(real_data, tmp_path_factory) -> PixelStatistics:
    path = tmp_path_factory.mktemp("statistics") / "statistics.npz"
    assert (
        measure(
            "imagenet2012",
            data_dir=real_data,
            split="train[:60]",
            image_size=32,
            short_side=40,
            output=path,
            workers=0,
        )
        == path
    )
    return PixelStatistics.load(path)


def test_the_mean_image_is_that_of_the_centre_crops(info, measured):
    examples = Examples(info, "train[:60]")
    view = CenterView(image_size=32, short_side=40, resize="area")
    crops = np.stack([view(examples[index].image) for index in range(60)]).astype(np.float64)
    np.testing.assert_allclose(measured.mean_image, crops.mean(0), rtol=1e-6)
    np.testing.assert_allclose(measured.channel_mean, crops.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(measured.channel_std, crops.std((0, 1, 2)), rtol=1e-5)
    covariance = np.cov(crops.reshape(-1, 3).T / 255, bias=True)
    vectors = measured.eigenvectors
    np.testing.assert_allclose(vectors @ np.diag(measured.eigenvalues / 255) @ vectors.T, covariance, atol=1e-6)
    assert (measured.count, measured.source) == (60, "measured")
    assert measured.eigenvalues[0] > measured.eigenvalues[1] > measured.eigenvalues[2]


def test_the_published_values_are_of_the_kind_that_is_measured(measured):
    """60 images are few: near is within a third, and the first component, brightness, points the same way."""
    assert np.abs(measured.channel_mean / PUBLISHED_IMAGENET.channel_mean - 1).max() < 0.3
    assert abs(measured.eigenvalues[0] / PUBLISHED_IMAGENET.eigenvalues[0] - 1) < 0.35
    assert abs(measured.eigenvectors[:, 0] @ PUBLISHED_IMAGENET.eigenvectors[:, 0]) > 0.99


def test_what_is_stored_comes_back(measured, tmp_path):
    measured.save(tmp_path / "copy.npz")
    copy = PixelStatistics.load(tmp_path / "copy.npz")
    for name, value in vars(measured).items():
        np.testing.assert_array_equal(getattr(copy, name), value)
    PUBLISHED_IMAGENET.save(tmp_path / "published.npz")
    assert PixelStatistics.load(tmp_path / "published.npz").mean_image is None


def test_a_file_is_used_then_what_lies_beside_the_data_then_the_published_values(info, measured, tmp_path):
    from dataclasses import replace

    assert statistics_of(info) is PUBLISHED_IMAGENET
    beside = replace(info, directory=tmp_path)
    measured.save(tmp_path / "pixel_statistics.npz")
    assert statistics_of(beside).source == "measured"
    PUBLISHED_IMAGENET.save(tmp_path / "other.npz")
    assert statistics_of(beside, tmp_path / "other.npz").source == "published"


def test_without_any_the_command_is_named(tmp_path):
    digits = dataset_info("digits", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=f"resnet-jax measure digits --data_dir={tmp_path}$"):
        statistics_of(digits)


def test_a_file_of_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", x=1)
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("other.npz", "text.npz"):
        with pytest.raises(ValueError, match=f"{name} holds no pixel statistics"):
            PixelStatistics.load(tmp_path / name)


def describe(info, statistics, **changes):
    settings = {"normalization": "pixel_mean", "image_size": 32, "short_side": 40, "resize": "area"}
    return describe_streamed_input(info, statistics, **(settings | changes))


def test_the_net_is_told_what_to_expect(info, measured):
    input = describe(info, measured)
    assert (input.image_shape, input.short_side, input.source) == ((32, 32, 3), 40, "measured")
    np.testing.assert_array_equal(input.mean, measured.mean_image)
    assert (input.std == 1).all()
    input = describe(info, measured, normalization="channel_mean_std", image_size=48, short_side=48)
    np.testing.assert_array_equal(input.mean, measured.channel_mean)
    np.testing.assert_array_equal(input.std, measured.channel_std)
    published = describe(info, PUBLISHED_IMAGENET)
    np.testing.assert_array_equal(published.mean, PUBLISHED_IMAGENET.channel_mean)


def test_a_mean_image_of_another_size_is_refused(info, measured):
    with pytest.raises(ValueError, match="32 pixels wide, the crops are 48.*--image_size=48"):
        describe(info, measured, image_size=48, short_side=48)


def test_the_command_measures_a_set_and_a_grey_one(tmp_path, capsys):
    dataset_info("digits", data_dir=tmp_path)
    flags = ["--image_size=8", "--short_side=8", "--workers=0", "--split=train[:20]"]
    assert cli.main(["measure", "digits", f"--data_dir={tmp_path}", *flags]) == 0
    path = tmp_path / "digits" / "1.0.0" / "pixel_statistics.npz"
    assert capsys.readouterr().out.strip() == str(path)
    assert PixelStatistics.load(path).mean_image.shape == (8, 8, 1)


def test_a_folder_that_cannot_be_written_stops_before_anything_is_decoded(tmp_path, capsys):
    dataset_info("digits", data_dir=tmp_path)
    (tmp_path / "file").write_text("")
    assert cli.main(["measure", "digits", f"--data_dir={tmp_path}", f"--output={tmp_path}/file/x.npz"]) == 2
    assert "file" in capsys.readouterr().err


def test_a_measure_that_fails_leaves_nothing_behind(tmp_path):
    build_colored_images(tmp_path, broken=(3,))
    with pytest.raises(ValueError, match="example 3"):
        measure("colors", data_dir=tmp_path, image_size=16, short_side=16, output=tmp_path / "out" / "s.npz", workers=0)
    assert list((tmp_path / "out").iterdir()) == []
