"""PyTorch's files are read without PyTorch: what it wrote comes out as it was, and a hostile file is refused."""

import os
import pickle
import random
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch_files as files
from torch_files import call, count_up, mapping, number, row, tensor, text

from resnet_jax.pretrained.pytorch import safe_torch
from resnet_jax.pretrained.pytorch.safe_torch import is_torch, read_torch

FIXTURES = Path(__file__).parent / "fixtures" / "torch_files"
DTYPES = ["float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8"]
FORMS = ["zip", "legacy"]
NET = {"a": tensor()}


def write(path: Path, form: str, body: bytes, **settings) -> Path:
    if form == "zip":
        return files.write_zip(path, body, **settings)
    path.write_bytes(files.legacy_bytes(body, **settings))
    return path


def assert_counts_up(found, shape, dtype):
    assert (found.shape, found.dtype) == (shape, dtype)
    values = found.read()
    assert (values.shape, values.dtype.name) == (shape, dtype)
    assert values.flags.c_contiguous and values.flags.writeable
    np.testing.assert_array_equal(values.astype(np.float64), np.arange(values.size).reshape(shape))


@pytest.mark.parametrize("form", FORMS)
class TestFilesOfPyTorch:
    def test_a_state_dict(self, form):
        found = read_torch(FIXTURES / f"net_{form}.pth")
        per_channel = ["1.weight", "1.bias", "1.running_mean", "1.running_var"]
        assert list(found) == ["0.weight", *per_channel, "1.num_batches_tracked"]
        assert_counts_up(found["0.weight"], (2, 3, 3, 3), "float32")
        for name in per_channel:
            assert_counts_up(found[name], (2,), "float32")
        assert_counts_up(found["1.num_batches_tracked"], (), "int64")

    def test_dtypes_and_views(self, form):
        found = read_torch(FIXTURES / f"views_{form}.pth")
        for dtype in DTYPES:
            assert_counts_up(found.pop(dtype), (2, 3), dtype)
        np.testing.assert_array_equal(found.pop("bool").read(), [[False, True, False], [True, False, True]])
        np.testing.assert_array_equal(found.pop("row").read(), np.arange(4))
        shapes = {
            "channels_last": (2, 3, 2, 2),
            "transposed": (3, 4),
            "parameter": (4,),
            "tied": (5,),
            "tied_to": (5,),
            "scalar": (),
            "empty": (0, 3),
        }
        assert list(found) == list(shapes)
        for name, shape in shapes.items():
            assert_counts_up(found[name], shape, "float32")

    def test_a_checkpoint_gives_its_state_dict_under_the_names_it_has(self, form):
        found = read_torch(FIXTURES / f"checkpoint_{form}.pth")
        assert list(found)[:2] == ["module.0.weight", "module.1.weight"] and len(found) == 6
        assert_counts_up(found["module.0.weight"], (2, 3, 3, 3), "float32")

    def test_every_cut_is_refused(self, form, tmp_path):
        path = write(tmp_path / "cut.pth", form, mapping(NET))
        data = path.read_bytes()
        for length in range(len(data)):
            path.write_bytes(data[:length])
            with pytest.raises(ValueError, match=f"^{path}: "):
                read_torch(path)

    def test_mutations_are_read_or_refused(self, form, tmp_path):
        """Much more of this is in experiments/pretrained/fuzz.py."""
        path, chance, outcomes = tmp_path / "mutated.pth", random.Random(0), set()
        seeds = [(FIXTURES / f"{name}_{form}.pth").read_bytes() for name in ("net", "views", "checkpoint")]
        for _ in range(150):
            data = bytearray(chance.choice(seeds))
            for _ in range(chance.randint(1, 3)):
                data[chance.randrange(len(data))] = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])
            path.write_bytes(data)
            try:
                outcomes.add(len([stored.read() for stored in read_torch(path).values()]) > 0)
            except ValueError as error:
                outcomes.add("refused")
                assert str(error).startswith(f"{path}: ")
        assert outcomes == {True, "refused"}


def test_a_published_file(real_data):
    path = real_data.parent / "weights" / "cifar_resnet20.th"
    if not path.is_file():
        pytest.skip("needs the published weights of CIFAR ResNet-20")
    found = read_torch(path)
    shapes = [stored.shape for name, stored in found.items() if len(stored.shape) == 4]
    assert (
        shapes
        == [(16, 3, 3, 3)]
        + [(16, 16, 3, 3)] * 6
        + [(32, 16, 3, 3)]
        + [(32, 32, 3, 3)] * 5
        + [(64, 32, 3, 3)]
        + [(64, 64, 3, 3)] * 5
    )
    assert found["module.linear.weight"].shape == (10, 64)
    parameters = [stored for name, stored in found.items() if "running" not in name]
    assert sum(stored.read().size for stored in parameters) == 269_722
    assert all((found[name].read() > 0).all() for name in found if name.endswith("running_var"))
    assert 0.05 < np.abs(found["module.conv1.weight"].read()).mean() < 0.5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "model_state", "state_dict_ema", "net"])
def test_the_state_dict_is_found_beside_anything(form, key, tmp_path):
    beside = {"epoch": number(3), "optimizer": mapping({"state": b"]"}), "best": tensor()}
    found = read_torch(write(tmp_path / "file.pth", form, mapping({**beside, key: mapping(NET)})))
    assert list(found) == ["a"]
    assert_counts_up(found["a"], (2, 3), "float32")


def test_a_text_where_a_state_dict_may_be_is_none(tmp_path):
    body = mapping({"model": text("resnet50"), "net": tensor(), "state_dict": mapping(NET)})
    assert list(read_torch(files.write_zip(tmp_path / "file.pth", body))) == ["a"]
    body = mapping({"model": tensor(), "net": tensor()})
    assert list(read_torch(files.write_zip(tmp_path / "file.pth", body))) == ["model", "net"]


@pytest.mark.parametrize("function", ["torch._utils._rebuild_tensor", "torch._utils._rebuild_parameter"])
def test_older_forms_of_a_tensor(function, tmp_path):
    """Before 0.4 a tensor's size was a `torch.Size`; Python 2 wrote an ordered dict as pairs."""
    size = call("torch.Size", row(number(2), number(3)))
    made = call("torch._utils._rebuild_tensor", files.storage(), number(0), size, row(number(3), number(1)))
    if function.endswith("parameter"):
        made = call(function, made, b"\x88", call("collections.OrderedDict"))
    body = call("collections.OrderedDict", b"](](" + text("a") + made + b"ee")
    assert_counts_up(read_torch(files.write_zip(tmp_path / "file.pth", body))["a"], (2, 3), "float32")


def test_bytes_of_one_tensor_alone_are_read(tmp_path, monkeypatch):
    values = 250_000
    storages = {str(n): count_up(values) for n in range(20)}
    body = mapping({key: tensor(key, values, (500, 500), (500, 1)) for key in storages})
    for form in FORMS:
        path = write(tmp_path / form, form, body, storages=storages)
        tracemalloc.start()
        found = read_torch(path)
        opened = tracemalloc.get_traced_memory()[1]
        assert found["3"].read()[1, 1] == 501
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert opened < 200_000 and peak < 1.2 * 4 * values


def test_a_view_of_a_large_storage_is_read_in_small_pieces(tmp_path):
    values = 5_000_000
    body = mapping({"a": tensor(values=values, shape=(2,), strides=(1,), offset=7)})
    found = read_torch(files.write_zip(tmp_path / "file.pth", body, storages={"0": count_up(values)}))["a"]
    tracemalloc.start()
    np.testing.assert_array_equal(found.read(), [7, 8])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    # It is checked once, or a thousand views of one storage would read all of it a thousand times.
    patched(tmp_path / "file.pth", np.float32(4_999_999).tobytes(), bytes(4))
    np.testing.assert_array_equal(found.read(), [7, 8])


def test_a_large_archive_with_64_bit_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    path = files.write_zip(tmp_path / "file.pth", mapping(NET))
    assert b"PK\6\6" in path.read_bytes() and b"PK\1\2" in path.read_bytes()
    assert_counts_up(read_torch(path)["a"], (2, 3), "float32")


@pytest.mark.parametrize("form", FORMS)
def test_nothing_in_a_file_is_run(form, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    payload = pickle.dumps(Payload(), 2)[2:-1]
    path = write(tmp_path / "file.pth", form, mapping({"state_dict": mapping({**NET, "b": payload})}))
    with pytest.raises(ValueError, match=r"it asks for (posix|nt).mkdir, .*; nothing was run; save the tensors alone"):
        read_torch(path)
    assert not (tmp_path / "made").exists()
    pickle.loads(b"\x80\x02" + payload + b".")
    assert (tmp_path / "made").exists(), "the payload does nothing, so that the test shows nothing"


HUGE = 2**62
# What is pickled, with storage "0" of six float32 values, and what the message names.
HOSTILE = {
    "os.system": (mapping({"a": call("os.system", text("true"))}), "asks for os.system"),
    "eval": (call("builtins.eval", text("1")), "asks for builtins.eval"),
    "numpy": (
        mapping({"a": call("numpy.core.multiarray._reconstruct")}),
        "asks for numpy.core.multiarray._reconstruct",
    ),
    "namespace": (mapping({"args": files.name("argparse.Namespace") + b")\x81"}), "asks for argparse.Namespace"),
    "a whole net": (files.name("torchvision.models.resnet.ResNet"), "asks for torchvision.models.resnet.ResNet"),
    "subclass": (call("torch._tensor._rebuild_from_type_v2"), "asks for torch._tensor._rebuild_from_type_v2"),
    "chain": (call("torch._utils._rebuild_parameter", call("torch.load", text("x"))), "asks for torch.load"),
    "attribute of a name": (call("torch._utils._rebuild_tensor.__globals__"), "_rebuild_tensor.__globals__"),
    "set state": (tensor() + b"}b", "sets the state of TorchTensor"),
    "attribute": (mapping(NET) + mapping({"items": b"N"}) + b"b", "sets the attribute 'items'; allowed: _metadata"),
    "called tensor": (tensor() + b")R", "calls TorchTensor with tuple"),
    "called storage type": (call("torch.FloatStorage", number(HUGE)), "calls StorageType"),
    "negative size": (tensor(shape=(-1, 3)), "the size -1 must be a whole number from 0"),
    "negative stride": (tensor(strides=(-3, 1)), "the stride -3 must be"),
    "negative offset": (tensor(offset=-1), "the offset -1 must be"),
    "huge size": (tensor(shape=(2**100, 3)), "the size 1267650600228229401496703205376 must be"),
    "text as size": (
        call(
            "torch._utils._rebuild_tensor_v2", files.storage(), b"K\x00", row(text("a")), row(b"K\x01"), b"\x89", b"N"
        ),
        "the size 'a' must be",
    ),
    "many dimensions": (tensor(shape=(1,) * 40, strides=(1,) * 40), "the same length, at most 8"),
    "other strides": (tensor(shape=(2, 3), strides=(1,)), "two tuples of the same length"),
    "too large": (tensor(shape=(HUGE, 2)), "storage '0' has 6"),
    "one too many": (tensor(shape=(7,), strides=(1,)), "the last of them number 6; storage '0' has 6"),
    "offset behind": (tensor(offset=1), "offset 1 .*number 6; storage '0' has 6"),
    "stride out": (tensor(strides=(4, 1)), "number 6; storage '0' has 6"),
    "huge stride": (tensor(strides=(HUGE, HUGE)), "storage '0' has 6"),
    "stride 0": (tensor(shape=(HUGE,), strides=(0,)), f"has {HUGE} values, the last of them number 0"),
    "small stride 0": (tensor(shape=(7,), strides=(0,)), "has 7 values"),
    "huge and empty": (tensor(shape=(0, HUGE), strides=(1, 1)), "its other sizes are too large"),
    "many on one": (
        mapping({f"t{n}": tensor() for n in range(3)}),
        "3 tensors are views of 72 bytes in all, and the storages have 24",
    ),
    "many that reach far": (
        mapping({f"t{n}": tensor(shape=(2,), strides=(5,)) for n in range(3)}),
        "3 tensors are views of 72 bytes in all, and the storages have 24",
    ),
    "storage too small": (tensor(values=HUGE, shape=(1,), strides=(1,)), "storage '0'.* have"),
    "storage negative": (tensor(values=-1), "a storage has the key '0' and -1 values"),
    "storage two ways": (mapping({"a": tensor(), "b": tensor(values=5)}), "storage '0' is float32 with 6 values and"),
    "storage missing": (tensor(key="5"), "storage '5' is missing|storages listed are not"),
    "other file": (tensor(key="../../data.pkl"), "storage '../../data.pkl' is missing|storages listed are not"),
    "storage view": (
        row(text("storage"), files.name("torch.FloatStorage"), text("0"), text("cpu"), number(6), row()) + b"Q",
        "a view of another one",
    ),
    "storage of text": (
        row(text("storage"), text("torch.FloatStorage"), text("0"), text("cpu"), number(6)) + b"Q",
        "a storage's type is 'torch.FloatStorage'",
    ),
    "persistent tuple": (row(text("module"), text("0")) + b"Q", "a persistent id is tuple"),
    "persistent none": (b"NQ", "a persistent id is None"),
    "pairs": (call("collections.OrderedDict", b"](]e"), "an item is list, no pair"),
    "parameter": (call("torch._utils._rebuild_parameter", b"N", b"\x88", b"N"), "the first of them a tensor"),
    "size": (call("torch.Size", b"]"), "torch.Size: allowed is one tuple"),
    "top": (tensor(), "the file holds TorchTensor, no state dict; save the tensors alone"),
    "nothing": (b"}", "the file's dict has no tensors .its keys: none.|storages listed are not"),
    "no tensors": (
        mapping({"state_dict": mapping({"b": b"N"})}),
        "the dict 'state_dict' has no tensors .its keys: 'b'|storages listed are not",
    ),
    "other entry": (mapping({**NET, "version": number(3)}), "the file's dict has 'version', which is 3; allowed are"),
    "inner entry": (mapping({"net": mapping({**NET, "b": b"]"})}), "the dict 'net' has 'b', which is list; allowed"),
    "number as name": (b"}(" + text("a") + tensor() + b"K\x05" + tensor() + b"u", "the file's dict has 5, which is"),
    "something behind": (mapping(NET) + b".N", "something follows the pickle|starts with PROTO and has it once"),
    "itself": (
        b"}q\x00" + text("state_dict") + b"h\x00s",
        "the dict 'state_dict' has no tensors|storages listed are not",
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_pickle_is_refused(case, form, tmp_path):
    body, message = HOSTILE[case]
    path = write(tmp_path / "file.pth", form, body)
    with pytest.raises(ValueError, match=f"^{path}: .*(?:{message})"):
        read_torch(path)


def test_many_copies_of_one_list_cannot_be_asked_for(tmp_path):
    """Each call takes six bytes, and would take memory for a dict of 1,000 items."""
    function, pairs = files.name("collections.OrderedDict"), [row(number(n), b"N") for n in range(1000)]
    body = b"(](" + b"".join(pairs) + b"eq\x00" + function + b"q\x01" + b"h\x01(h\x00tR" * 1000 + b"t"
    path = files.write_zip(tmp_path / "file.pth", body)
    tracemalloc.start()
    with pytest.raises(ValueError, match="the file holds tuple"):
        read_torch(path)
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()


def patched(path: Path, find: bytes, replace: bytes, count: int = 1) -> None:
    data = path.read_bytes()
    assert data.count(find) >= 1 and len(find) == len(replace)
    path.write_bytes(data.replace(find, replace, count))


def rewrite(path: Path, compression: int = zipfile.ZIP_STORED, **changes: bytes) -> None:
    """Adds entries to the archive, NAME of them with "/" for "__"."""
    with zipfile.ZipFile(path, "a", compression) as archive:
        for name, data in changes.items():
            archive.writestr(name.replace("__", "/"), data)


def record_of(data: bytes, name: bytes) -> int:
    """Where the directory's record of an entry is."""
    return data.rindex(name) - 46


def set_field(path: Path, name: bytes, offset: int, value: bytes) -> None:
    data = bytearray(path.read_bytes())
    at = record_of(data, name) + offset
    data[at : at + len(value)] = value
    path.write_bytes(data)


ZIPS = {
    "compressed": (
        lambda p: rewrite(p, zipfile.ZIP_DEFLATED, archive__more=bytes(10**6)),
        "'archive/more' is compressed",
    ),
    "bzip2": (
        lambda p: rewrite(p, zipfile.ZIP_BZIP2, archive__more=bytes(10**6)),
        "'archive/more' is compressed .method 12",
    ),
    "traversal": (lambda p: rewrite(p, **{"..__x": b""}), "'../x' has a name that is no plain path"),
    "traversal inside": (lambda p: rewrite(p, **{"archive__..__..__x": b""}), "no plain path"),
    "absolute": (lambda p: rewrite(p, **{"__x": b""}), "no plain path"),
    "outside": (lambda p: rewrite(p, other__x=b""), "has 'other/x' outside of its folder 'archive/'"),
    "two roots": (lambda p: rewrite(p, **{"other__data.pkl": b""}), "with 2 entries NAME/data.pkl"),
    "TorchScript": (
        lambda p: rewrite(p, **{"archive__constants.pkl": b""}),
        "TorchScript .it has 'archive/constants.pkl",
    ),
    "TorchScript code": (
        lambda p: rewrite(p, zipfile.ZIP_DEFLATED, archive__code__net=bytes(1000)),
        "an archive of TorchScript .it has 'archive/code/net'., which is a program; save the tensors alone",
    ),
    "gap": (lambda p: p.write_bytes(p.read_bytes()[:-22] + b"x" + p.read_bytes()[-22:]), "and should end at"),
    "local signature": (lambda p: patched(p, b"PK\3\4", b"PK\3\5"), "'archive/data.pkl' is not at byte 0, where"),
    "local method": (
        lambda p: p.write_bytes(p.read_bytes()[:8] + b"\x08" + p.read_bytes()[9:]),
        "'archive/data.pkl' is compressed or encrypted, unlike the directory says",
    ),
    "encrypted": (lambda p: set_field(p, b"archive/data/0", 8, b"\1\0"), "'archive/data/0' is encrypted"),
    "other content": (lambda p: set_field(p, b"archive/data/0", 16, b"1234"), "storage '0' is damaged: its CRC-32 is"),
    "damaged pickle": (lambda p: set_field(p, b"archive/data.pkl", 16, b"1234"), "'archive/data.pkl' is damaged"),
    "no checksum": (lambda p: set_field(p, b"archive/data/0", 16, bytes(4)), "says 00000000, as if saved without"),
    "too long": (lambda p: set_field(p, b"archive/data/0", 20, b"\xf0\0\0\0" * 2), "'archive/data/0' ends at byte"),
    "overlap": (
        lambda p: set_field(p, b"archive/data/0", 20, b"\x1a\0\0\0" * 2),
        "'archive/data/0' and 'archive/byteorder' overlap",
    ),
    "64-bit size": (lambda p: set_field(p, b"archive/data/0", 20, b"\xff" * 8), "lacks its 64-bit sizes"),
    "start outside": (lambda p: set_field(p, b"archive/data/0", 42, b"\xf0\xff\0\0"), "claims to start at byte 65520"),
    "start elsewhere": (
        lambda p: set_field(p, b"archive/data/0", 42, b"\1\0\0\0"),
        "is not at byte 1, where the directory",
    ),
    "other name": (lambda p: patched(p, b"archive/data/0", b"archive/data/1"), "'archive/data/0' is not at byte"),
    "not UTF-8": (lambda p: patched(p, b"archive/data/0", b"archive/data/\xff", 2), "codec can't decode"),
    "record": (lambda p: patched(p, b"PK\1\2", b"PK\1\3"), "has no entry at its byte 0"),
    "no end": (lambda p: p.write_bytes(p.read_bytes() + b"x"), "no end record at the file's end"),
    "parts": (lambda p: patched(p, b"PK\5\6\0\0", b"PK\5\6\1\0"), "one of several parts"),
    "count": (lambda p: patched(p, b"\3\0\3\0", b"\2\0\2\0"), "its 2 entries take"),
    "many": (lambda p: patched(p, b"\3\0\3\0", b"\4\0\4\0"), "no entry at its byte"),
}


@pytest.mark.parametrize("case", ZIPS)
def test_a_hostile_archive_is_refused(case, tmp_path):
    change, message = ZIPS[case]
    path = files.write_zip(tmp_path / "file.pth", mapping(NET))
    assert_counts_up(read_torch(path)["a"], (2, 3), "float32")
    change(path)
    with pytest.raises(ValueError, match=f"^{path}: .*(?:{message})"):
        read_torch(path)["a"].read()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_that_is_listed_twice_is_refused(tmp_path):
    path = files.write_zip(tmp_path / "file.pth", mapping(NET))
    rewrite(path, archive__data__0=count_up())
    with pytest.raises(ValueError, match="lists 'archive/data/0' twice"):
        read_torch(path)


def test_a_zip_bomb_takes_no_memory(tmp_path):
    """Entries that share their bytes, and a directory that claims more than there is."""
    path = files.write_zip(tmp_path / "file.pth", mapping(NET), storages={"0": count_up(), "1": count_up()})
    data = bytearray(path.read_bytes())
    for number_of in (b"archive/data/0", b"archive/data/1"):
        at = record_of(data, number_of)
        data[at + 20 : at + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ValueError, match="ends at byte 42949"):
        read_torch(path)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


def test_a_view_of_a_damaged_storage_is_refused(tmp_path):
    path = files.write_zip(tmp_path / "file.pth", mapping({"a": tensor(shape=(2,), strides=(1,))}))
    patched(path, struct.pack("<f", 5), struct.pack("<f", 4))
    found = read_torch(path)["a"]
    for _ in range(2):
        with pytest.raises(ValueError, match=f"^{path}: storage '0' is damaged: its CRC-32"):
            found.read()


def test_a_file_has_a_largest_count_of_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr(safe_torch, "_MOST_TENSORS", 2)
    path = tmp_path / "file.pth"
    assert len(read_torch(files.write_zip(path, mapping({name: tensor(shape=(1, 1)) for name in "ab"})))) == 2
    files.write_zip(path, mapping({name: tensor(shape=(1, 1)) for name in "abc"}))
    with pytest.raises(ValueError, match="the file's dict has 3 tensors; allowed are 2"):
        read_torch(path)


def test_other_byte_orders_are_refused(tmp_path):
    path = files.write_zip(tmp_path / "file.pth", mapping(NET), entries={"archive/byteorder": b"big"})
    with pytest.raises(ValueError, match="in byte order b'big'; allowed is b'little'"):
        read_torch(path)
    path.write_bytes(files.legacy_bytes(mapping(NET)).replace(b"little_endian\x88", b"little_endian\x89"))
    with pytest.raises(ValueError, match="not stored in little-endian order"):
        read_torch(path)


def test_a_size_of_one_may_have_any_stride(tmp_path):
    body = mapping({"a": tensor(shape=(1, 6), strides=(2**62, 1))})
    assert_counts_up(read_torch(files.write_zip(tmp_path / "file.pth", body))["a"], (1, 6), "float32")


def test_a_bool_is_true_or_false(tmp_path):
    body = mapping({"a": tensor(values=2, shape=(2,), strides=(1,), kind="torch.BoolStorage")})
    path = files.write_zip(tmp_path / "file.pth", body, storages={"0": b"\1\2"})
    with pytest.raises(ValueError, match="storage '0' has a byte that is neither true nor false"):
        read_torch(path)["a"].read()


BODY = mapping(NET)
LEGACY = {
    "another pickle": (pickle.dumps({"a": 1}, 2), "a pickle that starts with dict, no file of torch.save"),
    "another version": (files.MAGIC + pickle.dumps(1002, 2), "version 1002 of the format; allowed is 1001"),
    "keys": (files.legacy_bytes(BODY, keys=["0", "0"]), "the 2 storages listed are not the 1"),
    "no keys": (files.legacy_bytes(BODY, keys=[]), "the 0 storages listed are not the 1"),
    "follows": (files.legacy_bytes(BODY) + b"x", "1 bytes follow the last storage"),
    "short": (files.legacy_bytes(BODY)[:-1], "the file ends at byte .* storage '0', which is to have 24 bytes"),
    "count": (
        files.legacy_bytes(BODY, storages={"0": count_up(5) + bytes(8)}),
        "should have 6 values, the file says 7",
    ),
    "pickled function": (pickle.dumps(os.system, 2), "asks for (posix|nt).system"),
    "tar": (bytes(257) + b"ustar" + bytes(250), "a tar archive, PyTorch's oldest format"),
    "text": (b"hello, this is text", "starts with b'hello, t', neither a zip archive nor a pickle"),
    "empty": (b"", "starts with b'', neither"),
    "empty zip": (b"PK\5\6" + bytes(18), "with 0 entries NAME/data.pkl, no file of torch.save"),
}


@pytest.mark.parametrize("case", LEGACY)
def test_another_file_is_refused(case, tmp_path):
    data, message = LEGACY[case]
    path = tmp_path / "file.pth"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"^{path}: .*(?:{message})"):
        read_torch(path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_torch(tmp_path / "missing.pth")
    with pytest.raises(ValueError, match="not a file"):
        read_torch(tmp_path)


def test_a_file_that_has_changed_since_is_refused(tmp_path):
    path = write(tmp_path / "file.pth", "legacy", mapping(NET))
    found = read_torch(path)["a"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"^{path}: the file ends within storage '0'"):
        found.read()


def test_files_are_told_apart_by_their_first_bytes(tmp_path):
    assert all(is_torch(path) for path in FIXTURES.iterdir())
    (tmp_path / "other").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    assert not is_torch(tmp_path / "other")


def test_a_long_message_is_cut(tmp_path):
    path = files.write_zip(tmp_path / "file.pth", mapping({"x" * 100_000: b"N", "y" * 100_000: b"N"}))
    with pytest.raises(ValueError) as error:
        read_torch(path)
    assert len(str(error.value)) < 2000


def test_loading_needs_no_pytorch_and_little_memory(tmp_path):
    """In 600 MB beyond what Python and jax take, whatever the file claims."""
    bomb = b"(" + b"]" * 1_000_000 + b"t"
    path = files.write_zip(tmp_path / "bomb.pth", bomb)
    script = (
        "import resource, sys\n"
        "from resnet_jax.pretrained.pytorch.safe_torch import read_torch\n"
        "used = 1024 * int(open('/proc/self/statm').read().split()[0]) * 4\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 600 * 2**20,) * 2)\n"
        "try:\n    read_torch(sys.argv[1])\nexcept ValueError as error:\n    print(error)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "the file holds tuple, no state dict" in done.stdout
