"""TFRecord: any record by its index, the same examples as ArrayRecord has, and no damage unseen."""

import pickle
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest
import tensorflow_datasets as tfds
from tfrecord_files import as_tfrecord, checksum, record

from resnet_jax.data.prepare import prepare
from resnet_jax.data.tfrecord import TFRecordFile, masked_crc32c, tfrecord_split

RECORDS = [b"first", b"", bytes(range(256)) * 40, b"the last one"]
RAW = {"deserialize_method": tfds.decode.DeserializeMethod.RAW_BYTES}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "some.tfrecord"
    path.write_bytes(b"".join(map(record, RECORDS)))
    return path


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The digits in ArrayRecord form, and in three TFRecord files a split."""
    folder = prepare("digits", data_dir=tmp_path_factory.mktemp("digits"))
    target = tmp_path_factory.mktemp("tfrecord") / "digits" / "1.0.0"
    as_tfrecord(folder, target, {"train": [700, 1, 737], "test": [100, 200, 59]})
    return tfds.builder_from_directory(folder), tfds.builder_from_directory(target)


def test_checksum_is_the_published_one():
    # CRC-32C's check value, and that of 32 zero bytes in RFC 3720, B.4.
    for data, crc in ((b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA)):
        assert masked_crc32c(data) == ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def test_records_are_read_by_index(path):
    file = TFRecordFile(path)
    assert [file[index] for index in (3, 0, 2, 1)] == [RECORDS[3], RECORDS[0], RECORDS[2], RECORDS[1]]
    assert (len(file), file[-1]) == (4, RECORDS[-1])
    for index in (4, -5):
        with pytest.raises(IndexError):
            file[index]


def test_empty_file_has_no_records(tmp_path):
    (tmp_path / "empty").touch()
    assert len(TFRecordFile(tmp_path / "empty")) == 0


def test_pickled_file_has_its_index_with_it(path):
    content = pickle.dumps(TFRecordFile(path))
    path.write_bytes(path.read_bytes() + b"more that a new index would stumble over")
    assert list(pickle.loads(content)) == RECORDS


def test_threads_share_a_file(path):
    file = TFRecordFile(path)
    with ThreadPoolExecutor(4) as executor:
        assert list(executor.map(file.__getitem__, [*range(4)] * 100)) == RECORDS * 100


@pytest.mark.parametrize("byte", [0, 5, 8, 11])
def test_damaged_header_is_named(path, byte):
    content, start = bytearray(path.read_bytes()), len(record(RECORDS[0]))
    content[start + byte] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"some\.tfrecord is damaged.*: record 1, at byte {start}: .* its length"):
        TFRecordFile(path)


@pytest.mark.parametrize("byte", [12, 16, 17, 20])
def test_damaged_data_are_named_when_read(path, byte):
    content = bytearray(path.read_bytes())
    content[byte] ^= 4
    path.write_bytes(content)
    file = TFRecordFile(path)
    with pytest.raises(ValueError, match=r"some\.tfrecord is damaged.*: record 0, at byte 0: .* 5 bytes of data"):
        file[0]
    assert file[3] == RECORDS[3]


@pytest.mark.parametrize("missing", [1, 5, 16, 17, 27])
def test_file_that_is_cut_short_is_named(path, missing):
    content = path.read_bytes()
    start = len(content) - len(record(RECORDS[3]))
    path.write_bytes(content[:-missing])
    with pytest.raises(ValueError, match=rf"some\.tfrecord is damaged.*: record 3, at byte {start}: "):
        TFRecordFile(path)


def test_file_that_is_cut_short_after_it_was_opened_is_named(path):
    file = TFRecordFile(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="record 3, at byte .* ends after 27 of the record's 28 bytes"):
        file[3]


def test_length_beyond_all_files_is_no_request_for_memory(path):
    length = struct.pack("<Q", 2**63)
    path.write_bytes(length + checksum(length))
    with pytest.raises(ValueError, match="record 0, at byte 0: it would end at 9223372036854775824"):
        TFRecordFile(path)


@pytest.mark.parametrize("split", ["train", "train[:90%]", "train[690:705]", "test[-3:]+train[700:701]", "test+train"])
def test_split_names_the_same_examples_as_in_array_record(digits, split):
    array_record, tfrecord = digits
    expected = list(array_record.as_data_source(split, **RAW))
    found = pickle.loads(pickle.dumps(tfrecord_split(tfrecord.info, split)))
    assert len(found) == len(expected)
    assert [found[index] for index in range(len(found))] == expected
    assert found[-1] == expected[-1]
    with pytest.raises(IndexError):
        found[len(expected)]


def test_example_is_read_without_tensorflow(digits):
    array_record, tfrecord = digits
    decoders = {"image": tfds.decode.SkipDecoding()}
    raw = tfrecord_split(tfrecord.info, "test")[7]
    example = tfrecord.info.features.deserialize_example_np(raw, decoders=decoders)
    assert example == array_record.as_data_source("test", decoders=decoders)[7]


@pytest.mark.parametrize("split", ["dev", "train[:10", "train[:2000]"])
def test_unknown_split_is_answered_with_those_there_are(digits, split):
    with pytest.raises(ValueError, match=r"split='.*' of data set 'digits/1\.0\.0': .*; the splits are train, test"):
        tfrecord_split(digits[1].info, split)


def test_another_form_is_refused(digits):
    with pytest.raises(ValueError, match="'digits/1.0.0' is stored as array_record; allowed is tfrecord"):
        tfrecord_split(digits[0].info, "train")


def test_file_with_another_number_of_records_is_named(tmp_path, digits):
    folder = as_tfrecord(digits[0].data_path, tmp_path / "digits" / "1.0.0", {"train": [1438], "test": [200, 159]})
    (folder / "digits-test.tfrecord-00001-of-00002").write_bytes(record(b"only one"))
    info = tfds.builder_from_directory(folder).info
    assert len(tfrecord_split(info, "test[:200]")) == 200
    with pytest.raises(ValueError, match="00001-of-00002 holds 1 records, dataset_info.json says 159"):
        tfrecord_split(info, "test")
