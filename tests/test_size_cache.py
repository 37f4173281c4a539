"""Images' sizes kept from one start to the next: no record is read for them again, and nothing damaged is believed."""

import hashlib
import logging
import pickle
from unittest import mock

import numpy as np
import pytest
from box_sets import build_box_images
from colored_images import encoded_image

from resnet_jax.data.decode import image_size
from resnet_jax.data.examples import Examples
from resnet_jax.detection import size_cache
from resnet_jax.detection.batches import Framing
from resnet_jax.detection.data import open_union
from resnet_jax.detection.ordered_batches import OrderedBoxes
from resnet_jax.detection.size_cache import kept_sizes

SIZES = [image_size(encoded_image(index)) for index in range(9)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("boxes")
    build_box_images(folder, "coco", name="things", train=9, validation=4)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where sizes are kept."""
    monkeypatch.setenv("RESNET_JAX_CACHE", str(tmp_path / "cache"))
    size_cache._warn.cache_clear()
    return tmp_path / "cache" / "image_sizes"


@pytest.fixture
def reads():
    """Counts the records that are read."""
    with mock.patch.object(Examples, "fields", autospec=True, side_effect=Examples.fields) as fields:
        yield fields


def opened(data_dir, sets="things:train"):
    return open_union(sets, data_dir=data_dir)


def test_at_the_second_start_no_record_is_read(data_dir, folder, reads):
    source, framing = opened(data_dir), Framing()
    assert source.sizes() == SIZES and reads.call_count == 9
    assert source.sizes() == SIZES and pickle.loads(pickle.dumps(source)).sizes() == SIZES
    assert [path.name for path in folder.iterdir()] == [source.digest()]
    again = opened(data_dir)
    assert again.sizes() == SIZES
    assert framing.buckets(again) == [framing.bucket_of(size) for size in SIZES]
    assert len(OrderedBoxes(again, [framing], batch_size=2, share=range(3, 9))) > 0
    assert reads.call_count == 9


def test_each_part_of_a_union_has_its_own_file(data_dir, folder, reads):
    assert opened(data_dir, "things:train,things:validation").sizes() == [*SIZES, *SIZES[:4]]
    assert reads.call_count == 13 and len(list(folder.iterdir())) == 2
    assert opened(data_dir, "things:validation").sizes() == SIZES[:4]
    assert opened(data_dir, "things:validation,things:train").sizes() == [*SIZES[:4], *SIZES]
    assert reads.call_count == 13


def with_digest(value):
    return hashlib.sha256(value).digest() + value


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-3],
        lambda content: content[:20],
        lambda content: b"",
        lambda content: content + b"1234",
        lambda content: content[:-1] + b"\1",
        lambda content: with_digest(content[32:-8]),
        lambda content: with_digest(np.array([*SIZES, (5, 5)], "<i4").tobytes()),
    ],
)
def test_a_file_that_is_damaged_or_of_other_images_is_made_anew(damage, data_dir, folder, reads):
    assert opened(data_dir).sizes() == SIZES
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert opened(data_dir).sizes() == SIZES and reads.call_count == 18
    assert path.read_bytes() == whole and list(folder.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_costs_one_warning(data_dir, folder, reads, caplog):
    folder.parent.write_text("a file where the cache would be")
    with caplog.at_level(logging.WARNING, logger="resnet_jax"):
        for _ in range(2):
            assert opened(data_dir).sizes() == SIZES
        assert opened(data_dir, "things:validation").sizes() == SIZES[:4]
    assert reads.call_count == 22
    (message,) = caplog.messages
    assert message.startswith(f"images' sizes are not kept, so that each start reads the data sets in whole: {folder}:")


def test_without_a_home_nothing_is_kept(folder, caplog, monkeypatch):
    def unknown_home():
        raise RuntimeError("could not determine home directory")

    monkeypatch.setattr(size_cache, "cache_folder", unknown_home)
    assert kept_sizes("0", 1, lambda: [(3, 4)]) == [(3, 4)]
    assert "could not determine home directory" in caplog.text


def test_what_cannot_be_found_is_not_kept(folder):
    def fail():
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        kept_sizes("0", 1, fail)
    assert not folder.exists()
