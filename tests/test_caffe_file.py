"""Caffe's files are read as another library wrote them, lazily; one that is damaged or hostile gives a ValueError."""

import io
import pickle
import subprocess
import sys
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from caffe_files import PACKED, UNPACKED, BlobProto, MsraNet, NetParameter, blob, blob_values
from safetensors.numpy import save

from resnet_jax.pretrained.caffe.caffe_file import is_caffemodel, read_binaryproto, read_caffemodel

RANDOM = np.random.default_rng(0)


@pytest.fixture
def written(tmp_path):
    """Writes bytes or a message, and gives the path."""

    def write(content, name="net.caffemodel"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
        return path

    return write


def small_net():
    net = NetParameter(name="small", input=["data"], input_dim=[1, 3, 8, 8])
    values = RANDOM.normal(size=(2, 3, 1, 2))
    settings = {"num_output": 2, "kernel_size": [1, 2], "pad": [0], "stride": [300], "bias_term": False}
    net.layer.add(
        name="conv", type="Convolution", bottom=["data"], top=["a", "b"], blobs=[blob(values)],
        loss_weight=[1, 2, 3], param=[{"name": "x", "lr_mult": 2}], phase=1, convolution_param=settings,
    )  # fmt: skip
    settings = {"use_global_stats": True, "eps": 0.25}
    net.layer.add(name="bn", type="BatchNorm", blobs=[blob([1, 2]), blob([3])], batch_norm_param=settings)
    net.layer.add(name="sum", type="Eltwise", eltwise_param={"operation": 1, "coeff": [1, -0.5]})
    return net


# The wire format by hand, for what the library does not write.
def varint(value):
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def field(number, content):
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def layer(*contents, name=b"x"):
    return field(100, b"".join([field(1, name), field(2, b"Scale"), *contents]))


def shaped(dims, values=b"\0" * 8):
    """A layer with one blob of a shape and values."""
    shape = field(7, field(1, b"".join(varint(dim) for dim in dims)))
    return layer(field(7, field(5, values) + shape))


@pytest.mark.parametrize("messages", [PACKED, UNPACKED], ids=["packed", "unpacked"])
def test_layers_are_read_as_they_were_written(written, messages):
    net = small_net()
    layers = read_caffemodel(written(messages["NetParameter"].FromString(net.SerializeToString())))
    assert [(one.name, one.type) for one in layers] == [
        ("conv", "Convolution"),
        ("bn", "BatchNorm"),
        ("sum", "Eltwise"),
    ]
    assert (layers[0].bottoms, layers[0].tops) == (("data",), ("a", "b"))
    assert layers[0].settings == {
        "convolution.num_output": (2,),
        "convolution.bias_term": (0,),
        "convolution.pad": (0,),
        "convolution.kernel_size": (1, 2),
        "convolution.stride": (300,),
    }
    assert layers[1].settings == {"batch_norm.use_global_stats": (1,), "batch_norm.eps": (0.25,)}
    assert layers[2].settings == {"eltwise.operation": (1,), "eltwise.coeff": (1.0, -0.5)}
    for one, message in zip(layers, net.layer, strict=True):
        for found, expected in zip(one.blobs, message.blobs, strict=True):
            array = found.read()
            assert (
                (array.dtype.name, array.shape) == (found.dtype, found.shape) == ("float32", tuple(expected.shape.dim))
            )
            assert array.flags.c_contiguous and array.flags.writeable
            np.testing.assert_array_equal(array, blob_values(expected))


@pytest.mark.parametrize("messages", [PACKED, UNPACKED], ids=["packed", "unpacked"])
def test_many_values_and_those_of_64_bits(written, messages):
    values = RANDOM.normal(size=300_000)
    net = NetParameter(layer=[{"name": "x", "blobs": [blob(values), BlobProto(double_data=values, num=3, channels=100,
                                                                              height=500, width=2)]}])  # fmt: skip
    (one,) = read_caffemodel(written(messages["NetParameter"].FromString(net.SerializeToString())))
    np.testing.assert_array_equal(one.blobs[0].read(), values.astype(np.float32))
    assert (one.blobs[1].shape, one.blobs[1].dtype) == ((3, 100, 500, 2), "float64")
    np.testing.assert_array_equal(one.blobs[1].read(), values.reshape(3, 100, 500, 2))


def test_values_stay_in_the_file_until_they_are_asked_for(written):
    size = 4 * 2**20
    path = written(NetParameter(layer=[{"name": str(i), "blobs": [blob(np.ones(size // 4))]} for i in range(4)]))
    tracemalloc.start()
    layers = read_caffemodel(path)
    assert tracemalloc.get_traced_memory()[1] < size / 16
    array = layers[2].blobs[0].read()
    assert tracemalloc.get_traced_memory()[1] < 1.1 * size
    tracemalloc.stop()
    assert array.sum() == size / 4


def test_a_file_that_shrinks_meanwhile(written):
    path = written(small_net())
    layers = read_caffemodel(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="changed while it was read"):
        layers[0].blobs[0].read()


def test_fields_that_mean_nothing_here_are_stepped_over(written):
    unknown = [field(77, 2**64 - 1), field(200, b"\xff" * 300), b"\x4d\0\0\0\0" * 3, b"\x49" + b"\0" * 8]
    unknown.append(varint(300 << 3 | 5) + b"\0\0\0\0")
    net = small_net().SerializeToString() + b"".join(unknown) + layer(*unknown, name=b"last")
    assert [one.name for one in read_caffemodel(written(net))] == ["conv", "bn", "sum", "last"]


def test_settings_without_a_value_are_not_there(written):
    content = layer(field(106, field(3, b"") + field(4, 3)), field(139, field(3, b"")))
    (one,) = read_caffemodel(written(content))
    assert one.settings == {"convolution.kernel_size": (3,)}


HUGE = varint(2**64 - 1)
HOSTILE = {
    "empty": (b"", "empty"),
    "no layers": (field(1, b"name"), "no layers"),
    "old form": (PACKED["NetParameter"](layers=[{"name": "conv1", "type": 4}]).SerializeToString(), "V1LayerParameter"),
    "field 0": (layer() + b"\0\0", "number 0"),
    "field 2^29": (layer() + varint(2**32) + b"\0", "number 536870912"),
    "groups": (layer(b"\x0b\x0c"), "wire type 3"),
    "wire type 7": (layer(b"\x0f"), "wire type 7"),
    "a longer layer than the file": (varint(802) + HUGE, "18446744073709551615 bytes are claimed, 0 are left"),
    "a longer name than the layer": (field(100, b"\x0a\x7f") + b"x" * 200, "127 bytes are claimed, 0 are left"),
    "11 bytes of a number": (layer(b"\x50" + b"\x80" * 10 + b"\x01"), "64 bits"),
    "65 bits": (layer(b"\x50" + b"\xff" * 9 + b"\x02"), "64 bits"),
    "a cut number": (layer(b"\x50\x80"), "cut off"),
    "a cut float": (layer(b"\x2d\0\0"), "4 bytes are claimed"),
    "a name that is no text": (layer(name=b"\xff"), "utf-8"),
    "a long name": (layer(name=b"x" * 1001), "1001 bytes"),
    "a name that is a number": (field(100, field(1, 5)), "wire type"),
    "a layer that is a number": (field(100, 5), "wire type"),
    "a blob that is a number": (layer(field(7, 5)), "wire type"),
    "settings that are a number": (layer(field(106, 5)), "wire type"),
    "a setting that is a float": (layer(field(106, b"\x0d\0\0\0\0")), "wire type"),
    "an eps that is a number": (layer(field(139, field(3, 1))), "wire type"),
    "a cut eps": (layer(field(139, field(3, b"\0" * 3))), "cut off"),
    "a hundred sides": (layer(field(106, field(3, b"\1" * 100))), "more than 32"),
    "a hundred sides one by one": (layer(field(106, field(3, 1) * 100)), "more than 32"),
    "a hundred coefficients": (layer(field(110, b"\x15\0\0\0\0" * 100)), "more than 32"),
    "a hundred axes": (shaped([1] * 100), "more than 32 axes"),
    "fewer values": (shaped([3]), "needs 3 values, found 2"),
    "more values": (shaped([1]), "needs 1 values, found 2"),
    "half a value": (shaped([2], b"\0" * 7), "7 bytes"),
    "no values": (layer(field(7, field(7, field(1, b"\1")))), "no values"),
    "an axis of 0": (shaped([0], b""), "must be positive"),
    "a negative axis": (shaped([2**64 - 2]), r"\[-2\] must be positive"),
    "two negative axes": (shaped([2**64 - 1, 2**64 - 2]), "must be positive"),
    "over 2^63": (shaped([2**62, 4, 2**40]), "needs [0-9]+ values, found 2"),
    "a product of 2^64": (shaped([2**32, 2**32], b""), "needs 18446744073709551616 values, found 0"),
    "32 huge axes": (shaped([2**63 - 1] * 32), "needs [0-9]+ values"),
    "a negative old side": (layer(field(7, field(1, 2**64 - 1) + field(5, b"\0" * 4))), "must be positive"),
    "values twice": (layer(field(7, field(5, b"\0" * 4) * 2)), "more than one piece"),
    "both kinds of values": (layer(field(7, field(5, b"\0" * 4) + field(8, b"\0" * 8))), "more than one piece"),
    "values of varints": (layer(field(7, field(5, 1))), "wire type"),
    "values of another size": (layer(field(7, b"\x29" + b"\0" * 8)), "wire type"),
    "a shape that is a number": (layer(field(7, field(7, 1))), "wire type"),
    "deep nesting": (layer(*[b"".join(b"\x3a" + varint(n) for n in range(300_000, 0, -4))]), "bytes are claimed"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(written, case):
    content, message = HOSTILE[case]
    with pytest.raises(ValueError, match=message):
        read_caffemodel(written(content))


def test_nested_fields_are_not_followed(written):
    content = b""
    for _ in range(5000):
        content = field(7, content)
    start = time.monotonic()
    for number in (7, 106, 50):
        try:
            read_caffemodel(written(layer(field(number, content))))
        except ValueError:
            pass
    assert time.monotonic() - start < 5


# Without the checks of every call's types that the tests run with, which take most of the time.
TIMED_READING = """
import sys, time
from resnet_jax.pretrained.caffe.msra_layout import read_msra
for path in sys.argv[1:]:
    start = time.process_time()
    try:
        read_msra(path)
    except ValueError:
        print(time.process_time() - start)
"""


def test_nothing_takes_long(written):
    contents = [
        b"".join(layer(name=b"%d" % index) for index in range(100_000)),
        layer() * 100_000,
        layer() * 50_000,
        layer(b"\x50\0" * 1_000_001),
        # Alternating, so that no two belong together.
        layer(b"\x2d\0\0\0\0\x35\0\0\0\0" * 500_001),
        layer(b"\x2d\0\0\0\0" * 4_000_000),
        layer(field(7, b"\x2d\0\0\0\0" * 4_000_000)),
    ]
    paths = [written(content, str(index)) for index, content in enumerate(contents)]
    command = [sys.executable, "-c", TIMED_READING, *map(str, paths)]
    seconds = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert len(seconds) == len(contents) and max(map(float, seconds)) < 5


def test_cut_off_anywhere(written):
    net = small_net()
    content = net.SerializeToString()
    net.ClearField("layer")
    ends = {len(net.SerializeToString())}
    for one in small_net().layer:
        ends.add(max(ends) + len(field(100, one.SerializeToString())))
    whole = []
    for length in range(len(content)):
        try:
            read_caffemodel(written(content[:length]))
            whole.append(length)
        except ValueError:
            pass
    # A file that ends after a layer is a whole message.
    assert whole == sorted(ends)[1:-1]


@pytest.mark.parametrize(
    "change",
    [lambda byte: byte ^ 128, lambda byte: 0, lambda byte: 255, lambda byte: byte + 1 & 255],
    ids=["its highest bit", "to 0", "to 255", "by 1"],
)
def test_any_byte_changed_gives_nothing_but_value_errors(written, change):
    content = bytearray(small_net().SerializeToString())
    for index, byte in enumerate(content):
        path = written(bytes(content[:index] + bytes([change(byte)]) + content[index + 1 :]))
        try:
            is_caffemodel(path)
            for one in read_caffemodel(path):
                [tensor.read() for tensor in one.blobs]
        except ValueError:
            pass


def test_a_path_that_is_no_file(tmp_path):
    for read in (read_caffemodel, read_binaryproto):
        with pytest.raises(ValueError, match="not a file"):
            read(tmp_path)
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "absent")
    assert not is_caffemodel(tmp_path)
    with pytest.raises(FileNotFoundError):
        is_caffemodel(tmp_path / "absent")


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    return file.getvalue()


def test_a_net_is_recognised(written):
    assert is_caffemodel(written(small_net()))
    assert is_caffemodel(written(MsraNet().net))
    assert is_caffemodel(written(NetParameter(layer=[{"name": "x", "type": "Data"}])))
    assert is_caffemodel(written(PACKED["NetParameter"](name="old", layers=[{"name": "conv1", "type": 4}])))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x0a",
        b"\n\n\n\n",
        b"name: 'ResNet'\nlayer {\n}\n",
        b"{}",
        zipped(),
        pickle.dumps({"a": 1}, protocol=2),
        save({"a": np.zeros(3, np.float32)}),
        blob(np.zeros((1, 3, 2, 2))).SerializeToString(),
        field(1, b"x") + varint(802) + b"\x7f" + b"x",
        field(1, b"x") + field(100, b""),
        field(1, b"x") + field(100, b"\x0a\x05x"),
        field(1, b"x") + field(100, field(50, b"x")),
        field(1, b"x") + field(100, 1),
        field(4, 1) * 1000 + layer(),
    ],
)
def test_other_files_are_not_taken_for_nets(written, content):
    assert not is_caffemodel(written(content))


def test_headers_of_safetensors_whose_length_begins_as_a_name_does(written):
    for count in range(1000, 1256):
        assert not is_caffemodel(written(save({"a": np.zeros(3, np.float32)}, {"x": "y" * count})))


@pytest.mark.parametrize("form", ["old sides", "shape", "64 bits", "three axes"])
def test_a_mean_image_is_turned_to_red_green_blue(written, form):
    image = RANDOM.uniform(0, 255, (5, 4, 3)).astype(np.float32)
    planes = image[..., ::-1].transpose(2, 0, 1)
    message = {
        "old sides": BlobProto(num=1, channels=3, height=5, width=4, data=planes.ravel()),
        "shape": blob(planes[None]),
        "64 bits": BlobProto(double_data=planes.ravel(), shape={"dim": [1, 3, 5, 4]}),
        "three axes": blob(planes),
    }[form]
    found = read_binaryproto(written(message, "mean.binaryproto"))
    np.testing.assert_array_equal(found, image)
    assert found.dtype == np.float32 and found.flags.c_contiguous


@pytest.mark.parametrize(
    ("message", "match"),
    [
        (blob(np.zeros((1, 1, 5, 4))), r"\(1, 1, 5, 4\)"),
        (blob(np.zeros((2, 3, 5, 4))), r"\(2, 3, 5, 4\)"),
        (blob(np.zeros((3, 4))), r"\(3, 4\)"),
        (blob(0.0), r"its shape is \(\)"),
        (blob(np.full((3, 1, 1), np.inf)), "finite"),
        (BlobProto(double_data=[1e300] * 3, shape={"dim": [3, 1, 1]}), "finite"),
        (blob(np.zeros((3, 1, 1))).SerializeToString()[:-1], "claimed"),
        (b"no image at all", "byte"),
        (b"", "empty"),
    ],
)
def test_what_is_no_mean_image(written, message, match):
    with pytest.raises(ValueError, match=f"net.caffemodel is no mean image of Caffe: .*{match}"):
        read_binaryproto(written(message))
