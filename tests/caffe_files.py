"""Caffe's nets without Caffe: the messages of its files, random nets of the released form, and what they compute.

The messages are made at run time from the field numbers of `caffe.proto`, and written by the library of protocol
buffers; the forward pass follows Caffe's layers in numpy, one image at a time, in float64.
"""

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field = descriptor_pb2.FieldDescriptorProto
_KINDS = {
    "text": _Field.TYPE_STRING,
    "int": _Field.TYPE_INT32,
    "uint": _Field.TYPE_UINT32,
    "int64": _Field.TYPE_INT64,
    "float": _Field.TYPE_FLOAT,
    "double": _Field.TYPE_DOUBLE,
    "bool": _Field.TYPE_BOOL,
}
# A star marks a repeated field, two one that is packed; another message is named.
_MESSAGES = {
    "BlobShape": {"dim": (1, "int64**")},
    "BlobProto": {
        "num": (1, "int"), "channels": (2, "int"), "height": (3, "int"), "width": (4, "int"),
        "data": (5, "float**"), "diff": (6, "float**"), "shape": (7, "BlobShape"), "double_data": (8, "double**"),
    },
    "ConvolutionParameter": {
        "num_output": (1, "uint"), "bias_term": (2, "bool"), "pad": (3, "uint*"), "kernel_size": (4, "uint*"),
        "group": (5, "uint"), "stride": (6, "uint*"), "pad_h": (9, "uint"), "pad_w": (10, "uint"),
        "kernel_h": (11, "uint"), "kernel_w": (12, "uint"), "stride_h": (13, "uint"), "stride_w": (14, "uint"),
        "axis": (16, "int"), "dilation": (18, "uint*"),
    },
    "BatchNormParameter": {"use_global_stats": (1, "bool"), "eps": (3, "float")},
    "ScaleParameter": {"axis": (1, "int"), "bias_term": (4, "bool")},
    "EltwiseParameter": {"operation": (1, "int"), "coeff": (2, "float*")},
    "InnerProductParameter": {"num_output": (1, "uint"), "bias_term": (2, "bool"), "transpose": (6, "bool")},
    "PoolingParameter": {
        "pool": (1, "int"), "kernel_size": (2, "uint"), "stride": (3, "uint"), "pad": (4, "uint"),
        "kernel_h": (5, "uint"), "global_pooling": (12, "bool"), "round_mode": (13, "int"),
    },
    "ReLUParameter": {"negative_slope": (1, "float")},
    "ParamSpec": {"name": (1, "text"), "lr_mult": (3, "float")},
    "LayerParameter": {
        "name": (1, "text"), "type": (2, "text"), "bottom": (3, "text*"), "top": (4, "text*"),
        "loss_weight": (5, "float*"), "param": (6, "ParamSpec*"), "blobs": (7, "BlobProto*"), "phase": (10, "int"),
        "convolution_param": (106, "ConvolutionParameter"), "eltwise_param": (110, "EltwiseParameter"),
        "inner_product_param": (117, "InnerProductParameter"), "pooling_param": (121, "PoolingParameter"),
        "relu_param": (123, "ReLUParameter"), "batch_norm_param": (139, "BatchNormParameter"),
        "scale_param": (142, "ScaleParameter"),
    },
    "V1LayerParameter": {"bottom": (2, "text*"), "top": (3, "text*"), "name": (4, "text"), "type": (5, "int")},
    "NetParameter": {
        "name": (1, "text"), "layers": (2, "V1LayerParameter*"), "input": (3, "text*"), "input_dim": (4, "int*"),
        "layer": (100, "LayerParameter*"),
    },
}  # fmt: skip


def _make_messages(*, packed):
    file = descriptor_pb2.FileDescriptorProto(name=f"caffe_{packed}.proto", package="caffe", syntax="proto2")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, (number, kind) in fields.items():
            field = message.field.add(name=field_name, number=number)
            field.label = _Field.LABEL_REPEATED if "*" in kind else _Field.LABEL_OPTIONAL
            if "**" in kind:
                field.options.packed = packed
            if kind.strip("*") in _KINDS:
                field.type = _KINDS[kind.strip("*")]
            else:
                field.type, field.type_name = _Field.TYPE_MESSAGE, f".caffe.{kind.strip('*')}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}")) for name in _MESSAGES}


PACKED, UNPACKED = _make_messages(packed=True), _make_messages(packed=False)
NetParameter, LayerParameter, BlobProto = (PACKED[name] for name in ("NetParameter", "LayerParameter", "BlobProto"))


def blob(values):
    values = np.asarray(values, np.float32)
    return BlobProto(data=values.ravel(), shape={"dim": values.shape})


def blob_values(message):
    shape = message.shape.dim or (message.num, message.channels, message.height, message.width)
    return np.asarray(message.double_data or message.data, np.float64).reshape(shape)


class MsraNet:
    """Puts a random net of the released form together, layer by layer as its prototxt has them.

    `split` adds the layers that Caffe puts in by itself wherever an array is taken twice.
    """

    def __init__(
        self,
        stage_sizes=(1, 1, 1, 1),
        width=2,
        classes=3,
        *,
        seed=0,
        conv1_bias=True,
        weight=1.0,
        eps=None,
        stride_in="1x1",
        split=True,
        letters="abcdef",
    ):
        self.random, self.weight, self.eps, self.split = np.random.default_rng(seed), weight, eps, split
        self.net = NetParameter(name="ResNet", input=["data"], input_dim=[1, 3, 224, 224])
        top = self._unit("conv1", "bn_conv1", "scale_conv1", "data", (width, 3, 7, 7), stride=2, bias=conv1_bias)
        self._layer("conv1_relu", "ReLU", top, top=top)
        self._layer("pool1", "Pooling", "conv1", pooling_param={"pool": 0, "kernel_size": 3, "stride": 2})
        top, channels = "pool1", width
        for stage, size in enumerate(stage_sizes):
            # ResNet-50 counts a, b, c; the deeper nets a, b1, b2 in their long stages.
            names = letters[:size] if size <= len(letters) else ["a", *(f"b{index}" for index in range(1, size))]
            for index, letter in enumerate(names):
                stride = 2 if stage and not index else 1
                top, channels = self._block(f"{stage + 2}{letter}", top, channels, width * 2**stage, stride, stride_in)
        self._layer("pool5", "Pooling", top, pooling_param={"pool": 1, "kernel_size": 7, "stride": 1})
        kernel = self.random.normal(0, 1 / np.sqrt(channels), (classes, channels))
        blobs = [blob(kernel), blob(self.random.normal(size=classes))]
        self._layer("fc1000", "InnerProduct", "pool5", blobs=blobs, inner_product_param={"num_output": classes})
        self._layer("prob", "Softmax", "fc1000")

    def _block(self, name, bottom, channels, filters, stride, stride_in):
        left, right = bottom, bottom
        if self.split:
            left, right = (f"{bottom}_{bottom}_relu_0_split_{index}" for index in (0, 1))
            layer = self._layer(f"{bottom}_{bottom}_relu_0_split", "Split", bottom, top=left)
            layer.top.append(right)
        strides = (stride, 1) if stride_in == "1x1" else (1, stride)
        if name[1:] == "a":
            left = self._branch(name, "1", left, (4 * filters, channels, 1, 1), stride)
        right = self._branch(name, "2a", right, (filters, channels, 1, 1), strides[0])
        self._layer(f"{right}_relu", "ReLU", right, top=right)
        right = self._branch(name, "2b", right, (filters, filters, 3, 3), strides[1])
        self._layer(f"{right}_relu", "ReLU", right, top=right)
        right = self._branch(name, "2c", right, (4 * filters, filters, 1, 1), 1)
        self._layer(f"res{name}", "Eltwise", left, right)
        self._layer(f"res{name}_relu", "ReLU", f"res{name}", top=f"res{name}")
        return f"res{name}", 4 * filters

    def _branch(self, block, branch, bottom, shape, stride):
        names = (f"{kind}{block}_branch{branch}" for kind in ("res", "bn", "scale"))
        return self._unit(*names, bottom, shape, stride=stride, bias=False)

    def _unit(self, conv, norm, scale, bottom, shape, *, stride, bias):
        kernel = self.random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        blobs = [blob(kernel), blob(self.random.normal(size=shape[0]))]
        settings = {"num_output": shape[0], "kernel_size": [shape[2]], "pad": [shape[2] // 2], "stride": [stride]}
        settings |= {} if bias else {"bias_term": False}
        self._layer(conv, "Convolution", bottom, blobs=blobs[: 1 + bias], convolution_param=settings)
        statistics = self.random.normal(0, 0.3, shape[0]), self.random.uniform(0.5, 1.5, shape[0])
        blobs = [blob(values * (self.weight or 1)) for values in statistics]
        settings = {"use_global_stats": True} | ({} if self.eps is None else {"eps": self.eps})
        self._layer(norm, "BatchNorm", conv, top=conv, blobs=[*blobs, blob([self.weight])], batch_norm_param=settings)
        blobs = [blob(self.random.uniform(0.5, 1.5, shape[0])), blob(self.random.normal(0, 0.3, shape[0]))]
        self._layer(scale, "Scale", conv, top=conv, blobs=blobs, scale_param={"bias_term": True})
        return conv

    def _layer(self, name, kind, *bottoms, top=None, **fields):
        return self.net.layer.add(name=name, type=kind, bottom=bottoms, top=[top or name], **fields)


def layer_of(net, name):
    return next(layer for layer in net.layer if layer.name == name)


def run_net(net, image):
    """The logits [classes] of one image [3, h, w], blue, green, red, less the mean."""
    arrays = {"data": np.asarray(image, np.float64)}
    for layer in net.layer:
        if layer.type == "Softmax":
            continue
        inputs = [arrays[bottom] for bottom in layer.bottom]
        output = _LAYERS[layer.type](layer, [blob_values(blob) for blob in layer.blobs], *inputs)
        arrays |= dict.fromkeys(layer.top, output)
    return arrays["fc1000"]


def _windows(x, size, stride):
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]


def _convolve(layer, blobs, x):
    param = layer.convolution_param
    pad, stride = param.pad[0], param.stride[0]
    windows = _windows(np.pad(x, ((0, 0), (pad, pad), (pad, pad))), param.kernel_size[0], stride)
    bias = blobs[1] if len(blobs) > 1 else np.zeros(len(blobs[0]))
    return np.einsum("chwij,fcij->fhw", windows, blobs[0], optimize=True) + bias[:, None, None]


def _normalize(layer, blobs, x):
    factor = 1 / blobs[2][0] if blobs[2][0] else 0
    eps = layer.batch_norm_param.eps if layer.batch_norm_param.HasField("eps") else 1e-5
    mean, variance = ((values * factor)[:, None, None] for values in blobs[:2])
    return (x - mean) / np.sqrt(variance + eps)


def _scale(layer, blobs, x):
    return x * blobs[0][:, None, None] + blobs[1][:, None, None]


def _pool(layer, blobs, x):
    size, stride = layer.pooling_param.kernel_size, layer.pooling_param.stride
    if layer.pooling_param.pool == 1:
        assert x.shape[1:] == (size, size)
        return x.mean((1, 2))
    # PoolingLayer::Reshape without a pad: the size is rounded up, and the last window is cut off at the image's end.
    height, width = (-(-(side - size) // stride) + 1 for side in x.shape[1:])
    rows = [x[:, stride * i : stride * i + size].max(1) for i in range(height)]
    return np.stack([np.stack(rows, 1)[:, :, stride * j : stride * j + size].max(2) for j in range(width)], 2)


_LAYERS = {
    "Convolution": _convolve,
    "BatchNorm": _normalize,
    "Scale": _scale,
    "Pooling": _pool,
    "ReLU": lambda layer, blobs, x: np.maximum(x, 0),
    "Split": lambda layer, blobs, x: x,
    "Eltwise": lambda layer, blobs, x, y: x + y,
    "InnerProduct": lambda layer, blobs, x: blobs[0] @ x + blobs[1],
}
