"""Files of Caffe, read without it: nets with their weights (`.caffemodel`) and mean images (`.binaryproto`).

Both are messages in the wire format of protocol buffers, with the fields of Caffe's `caffe.proto`. They may be from
anywhere: every length is checked against what surrounds it, fields that mean nothing here are stepped over without
being looked into, and values are read when they are asked for.
"""

import math
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from resnet_jax.pretrained.caffe.caffe_layer import CaffeLayer
from resnet_jax.pretrained.caffe.wire_format import BYTES, FIXED32, FIXED64, MOST_VALUES, VARINT, Field, Message, need
from resnet_jax.pretrained.stored_tensor import StoredTensor

_OLD_LAYERS, _LAYER = 2, 100
# What NetParameter may have before its layers, with the wire types: fields are written in the order of their numbers.
_MOST_BEFORE_LAYERS = 100
_BEFORE_LAYERS = {1: BYTES, 3: BYTES, 4: VARINT, 5: VARINT, 6: BYTES, 7: VARINT, 8: BYTES}

# LayerParameter's messages of settings that a residual net may have: field -> name and the fields in it.
_SETTINGS = {
    106: ("convolution", {
        1: "num_output", 2: "bias_term", 3: "pad", 4: "kernel_size", 5: "group", 6: "stride", 9: "pad_h", 10: "pad_w",
        11: "kernel_h", 12: "kernel_w", 13: "stride_h", 14: "stride_w", 16: "axis", 18: "dilation",
    }),
    110: ("eltwise", {1: "operation", 2: "coeff"}),
    117: ("inner_product", {1: "num_output", 2: "bias_term", 5: "axis", 6: "transpose"}),
    121: ("pooling", {
        1: "pool", 2: "kernel_size", 3: "stride", 4: "pad", 5: "kernel_h", 6: "kernel_w", 7: "stride_h", 8: "stride_w",
        9: "pad_h", 10: "pad_w", 12: "global_pooling", 13: "round_mode",
    }),
    123: ("relu", {1: "negative_slope"}),
    139: ("batch_norm", {1: "use_global_stats", 2: "moving_average_fraction", 3: "eps"}),
    142: ("scale", {1: "axis", 2: "num_axes", 4: "bias_term"}),
}  # fmt: skip
_FLOATS = ("coeff", "negative_slope", "moving_average_fraction", "eps")


def read_caffemodel(path: str | os.PathLike) -> list[CaffeLayer]:
    """Reads a net's layers, in their order; the parameters stay in the file until they are asked for.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is something else, damaged, or of the form before 2015 (V1LayerParameter); the path is
        not named.
    """
    with _open_message(path) as message:
        layers = []
        for field in message.fields(0, message.size):
            if field.number == _OLD_LAYERS:
                raise ValueError(
                    "its layers are V1LayerParameter, the form before 2015; Caffe's upgrade_net_proto_binary makes "
                    "the newer form of it"
                )
            if field.number == _LAYER:
                layers.append(_read_layer(message, field))
        if not layers:
            raise ValueError("it has no layers")
        return layers


def is_caffemodel(path: str | os.PathLike) -> bool:
    """Whether a file begins as a Caffe net does, of the newer or the older form; reads a few bytes of it.

    The format has no mark of its own: what comes before the first layer must be fields of a net, and the layer's own
    first field must lie within it.

    Raises:
      FileNotFoundError: there is no such file.
    """
    try:
        with _open_message(path) as message:
            for field in islice(message.fields(0, message.size), _MOST_BEFORE_LAYERS):
                if field.number in (_LAYER, _OLD_LAYERS) and field.wire == BYTES:
                    first = next(message.fields(field.start, field.stop), None)
                    if field.number == _OLD_LAYERS:
                        return first is not None
                    return first is not None and first.number <= 4 and first.wire == BYTES
                if _BEFORE_LAYERS.get(field.number) != field.wire:
                    return False
    except ValueError:
        pass
    return False


def read_binaryproto(path: str | os.PathLike) -> Float32[np.ndarray, "h w 3"]:
    """Reads a mean image, as Caffe's compute_image_mean writes it: a blob of 1 x 3 x h x w, blue, green, red.

    Returns:
      The image in the order red, green, blue, in units of the pixels (0 to 255).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is something else, damaged, of another shape, or not finite.
    """
    try:
        with _open_message(path) as message:
            blob = _read_blob(message, 0, message.size)
            if len(blob.shape) not in (3, 4) or blob.shape[-3] != 3 or blob.shape[:-3] not in ((), (1,)):
                raise ValueError(f"its shape is {blob.shape}, expected (1, 3, h, w)")
            with np.errstate(over="ignore"):
                image = blob.read().astype(np.float32, copy=False)
            if not np.isfinite(image).all():
                raise ValueError("it must be finite")
    except ValueError as error:
        raise ValueError(f"{Path(path)} is no mean image of Caffe: {error}") from error
    return np.ascontiguousarray(image.reshape(blob.shape[-3:])[::-1].transpose(1, 2, 0))


@contextmanager
def _open_message(path: str | os.PathLike) -> Iterator[Message]:
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError("not a file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield Message(path, data)


def _read_layer(message: Message, layer: Field) -> CaffeLayer:
    need(layer, "a layer", BYTES)
    texts: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: []}
    blobs: list[Field] = []
    settings: dict[str, tuple[int | float, ...]] = {}
    for field in message.fields(layer.start, layer.stop):
        if field.number in texts:
            texts[field.number].append(message.text(field, f"field {field.number} of a layer"))
        elif field.number == 7:
            blobs.append(field)
        elif field.number in _SETTINGS:
            _read_settings(message, field, settings)
    name = texts[1][-1] if texts[1] else ""
    try:
        tensors = []
        for blob in blobs:
            need(blob, "a blob", BYTES)
            tensors.append(_read_blob(message, blob.start, blob.stop))
    except ValueError as error:
        raise ValueError(f"layer {name!r}, blob {len(tensors)}: {error}") from error
    type = texts[2][-1] if texts[2] else ""
    return CaffeLayer(name, type, tuple(texts[3]), tuple(texts[4]), tuple(tensors), settings)


def _read_settings(message: Message, section: Field, settings: dict[str, tuple[int | float, ...]]) -> None:
    kind, names = _SETTINGS[section.number]
    need(section, f"{kind}_param", BYTES)
    for field in message.fields(section.start, section.stop):
        if field.number in names:
            name = f"{kind}.{names[field.number]}"
            read = message.floats if names[field.number] in _FLOATS else message.integers
            values = (*settings.get(name, ()), *read(field, name))
            if values:
                settings[name] = values
            if len(values) > MOST_VALUES:
                raise ValueError(f"{name} has more than {MOST_VALUES} values")


def _read_blob(message: Message, start: int, stop: int) -> StoredTensor:
    """BlobProto: a shape, or the four sides of the older form, and as many values."""
    shape: list[int] = []
    sides: dict[int, int] = {}
    values: Field | None = None
    for field in message.fields(start, stop):
        if field.number == 7:
            need(field, "its shape", BYTES)
            for part in message.fields(field.start, field.stop):
                shape += message.integers(part, "its shape") if part.number == 1 else []
                if len(shape) > MOST_VALUES:
                    raise ValueError(f"its shape has more than {MOST_VALUES} axes")
        elif field.number in (1, 2, 3, 4):
            need(field, "its shape", VARINT)
            sides[field.number] = field.value
        elif field.number in (5, 8):
            if values is not None:
                raise ValueError("its values are in more than one piece")
            values = field
    if sides:
        shape = [sides.get(axis, 0) for axis in (1, 2, 3, 4)]
    # Negative numbers are stored as those from 2^63.
    if not all(1 <= side < 2**63 for side in shape):
        sides_as_said = [side - 2**64 if side >= 2**63 else side for side in shape]
        raise ValueError(f"its shape {sides_as_said} must be positive whole numbers")
    return _stored_tensor(message.path, tuple(shape), values)


def _stored_tensor(path: Path, shape: tuple[int, ...], values: Field | None) -> StoredTensor:
    if values is None:
        raise ValueError("it has no values")
    size, fixed = (4, FIXED32) if values.number == 5 else (8, FIXED64)
    need(values, "its values", BYTES, fixed)
    packed, length = values.wire == BYTES, values.stop - values.start
    if packed and length % size:
        raise ValueError(f"its {length} bytes are no whole number of values")
    count = length // size if packed else values.times
    if math.prod(shape) != count:
        raise ValueError(f"its shape {shape} needs {math.prod(shape)} values, found {count}")
    # Values that are not packed have their field's tag before each of them.
    row = size if packed else 1 + size

    def read() -> np.ndarray:
        # Not from the map, whose pages would count as memory of the process.
        array = np.fromfile(path, np.uint8, count * row, offset=values.stop - count * row)
        if array.size != count * row:
            raise ValueError(f"{path} was changed while it was read")
        array = np.ascontiguousarray(array.reshape(count, row)[:, row - size :])
        return array.view(f"<f{size}").astype(f"float{8 * size}", copy=False).reshape(shape)

    return StoredTensor(shape, f"float{8 * size}", read)
