"""safetensors files give their tensors one by one, in every dtype that nets have."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from resnet_jax.pretrained.safetensors_file import is_safetensors, read_safetensors

VALUES = {
    "scalar": np.asarray(7, np.int64),
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.arange(4, dtype=np.float16),
    "empty": np.zeros((0, 3), np.float64),
    "flags": np.array([True, False]),
}


@pytest.fixture
def path(tmp_path):
    save_file(VALUES, tmp_path / "net.safetensors", metadata={"format": "pt"})
    return tmp_path / "net.safetensors"


def write(path, header, data):
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return path


def test_tensors_and_metadata_come_back(path):
    tensors, metadata = read_safetensors(path)
    assert (set(tensors), metadata) == (set(VALUES), {"format": "pt"})
    for name, value in VALUES.items():
        found = tensors[name].read()
        assert (
            (tensors[name].shape, tensors[name].dtype)
            == (found.shape, found.dtype.name)
            == (value.shape, value.dtype.name)
        )
        np.testing.assert_array_equal(found, value)
        assert found.flags.writeable and found.flags.c_contiguous


def test_bfloat16_is_known(tmp_path):
    values = np.arange(5).astype(ml_dtypes.bfloat16)
    entry = {"dtype": "BF16", "shape": [5], "data_offsets": [0, 10]}
    tensors, _ = read_safetensors(write(tmp_path / "net.safetensors", {"x": entry}, values.tobytes()))
    assert tensors["x"].dtype == "bfloat16"
    np.testing.assert_array_equal(tensors["x"].read(), values)


def test_an_unusual_dtype_is_named(tmp_path):
    entry = {"dtype": "F8_E4M3", "shape": [5], "data_offsets": [0, 5]}
    with pytest.raises(ValueError, match="tensor 'x' is of dtype F8_E4M3; allowed: F16, F32"):
        read_safetensors(write(tmp_path / "net.safetensors", {"x": entry}, bytes(5)))


def test_a_file_that_shrinks_while_it_is_read_is_refused(path):
    tensors, _ = read_safetensors(path)
    path.write_bytes(path.read_bytes()[:-60])
    for tensor in tensors.values():
        if tensor.shape == (2, 3):
            with pytest.raises(ValueError, match="tensor 'matrix' is cut off"):
                tensor.read()


def test_the_format_shows_in_the_first_bytes(path, tmp_path):
    assert is_safetensors(path)
    for content in (b"", b"PK\3\4", b"{" * 9, struct.pack("<Q", 1 << 40) + b"{}"):
        (tmp_path / "other").write_bytes(content)
        assert not is_safetensors(tmp_path / "other")
