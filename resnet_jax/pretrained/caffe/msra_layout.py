"""The residual nets that the paper's authors released for Caffe: their layers, and the net of ours they are.

Layers are found by their names, as in the released ResNet-50, -101 and -152: conv1, bn_conv1, scale_conv1, pool1; for
every block res2a_branch1 (in a stage's first block), res2a_branch2a, 2b and 2c, each with its bn2a_... and scale2a_...,
and the sum res2a; pool5, and one classifier. How they are joined is followed from array to array, as Caffe does, so
that a net which only shares the names is refused.

The images' channels are blue, green, red there; the first kernel is turned round for ours. Caffe rounds a pooling's
size up and drops a window that would start beyond the image. Where the first convolution gives an even number of rows
(sides of 4k or 4k - 1 pixels, 224 among them) that leaves the windows of ours. Where it gives an odd number, Caffe has
one row and column less: ours keeps a last window that sees the last row alone, and the logits differ. The last pooling
averages 7 x 7 positions, all of the last stage at 224 pixels; at larger sizes the call's `pool_window=7` does that.
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resnet_jax.models.registry import create_model
from resnet_jax.models.resnet import ResNet
from resnet_jax.pretrained.caffe.caffe_file import read_caffemodel
from resnet_jax.pretrained.caffe.caffe_layer import CaffeLayer, layer_inputs

# What our nets add to the variance, and Caffe's default.
_EPSILON = 1e-5
# Of PoolingParameter and EltwiseParameter.
_MAX, _AVERAGE, _CEIL, _FLOOR, _SUM = 0, 1, 0, 1, 1
# Pads of pool1 and how it rounds its size: Caffe's own rule, or torch's, which later releases of Caffe can follow.
_PADDINGS = {(0, 0, _CEIL): "end", (1, 1, _FLOOR): "both"}
_BLOCK = re.compile(r"res([0-9]+)([a-z][0-9]*)_branch2a")

Shape = tuple[int, ...]
# Of a convolution and a normalization: the names on the way to them.
Places = tuple[tuple[str, ...], tuple[str, ...]]


def read_msra(path: str | os.PathLike) -> tuple[ResNet, dict]:
    """Reads a bottleneck net of this family, of any width, number of blocks and number of classes.

    All layers are checked before a value is read, and the net is not traced.

    Returns:
      The net, and its {"params", "batch_stats"} as float32 arrays of numpy. A convolution's bias (the released
      ResNet-50 has one in conv1) and an epsilon other than ours are part of the mean and variance that follow it.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no file of Caffe, or its net is none of this family; the message names the first layer that
        is missing or different, but not the path.
    """
    net = _Net(read_caffemodel(path))
    stages = net.stages()
    width, pool_padding = net.take_stem()
    strided = net.layers[f"res{stages[1][0]}_branch2a"] if len(stages) > 1 else None
    stride_in = "1x1" if strided is None or strided.sides("stride", 1) == (2, 2) else "3x3"
    for stage, blocks in enumerate(stages):
        for index, block in enumerate(blocks):
            stride = 2 if stage and not index else 1
            strides = (stride, 1) if stride_in == "1x1" else (1, stride)
            net.take_block(f"stage{stage + 1}_block{index + 1}", block, width * 2**stage, strides, first=not index)
    classifier = net.take_classifier()
    if net.left:
        raise ValueError(f"layer {net.left[0]} has parameters that a net of this family has no place for")
    model = create_model(
        "resnet50",
        stage_sizes=tuple(map(len, stages)),
        width=width,
        num_classes=classifier.setting("num_output", 0),
        stride_in=stride_in,
        pool_padding=pool_padding,
    )
    return model, _read_variables(net.units, classifier)


@dataclass(frozen=True)
class _Unit:
    """A convolution and its batch normalization, which is two layers in Caffe, and their places in our variables."""

    convolution_place: tuple[str, ...]
    norm_place: tuple[str, ...]
    convolution: CaffeLayer
    norm: CaffeLayer
    scale: CaffeLayer


class _Net:
    """Layers that are taken one after the other, from the image on, each checked as it is taken.

    `output` is what the last of them gave, a layer's name or "ReLU of" it, and `channels` how many channels that has.
    """

    def __init__(self, layers: Sequence[CaffeLayer]):
        self.layers: dict[str, CaffeLayer] = {}
        for layer in layers:
            if layer.name in self.layers:
                raise ValueError(f"layer {layer.name!r} is there twice")
            self.layers[layer.name] = layer
        self.inputs = layer_inputs(layers)
        self.taken: set[str] = set()
        self.units: list[_Unit] = []
        self.output, self.channels = "the image", 3

    @property
    def left(self) -> list[str]:
        """Layers with parameters that were not taken."""
        return [layer.name for layer in self.layers.values() if layer.blobs and layer.name not in self.taken]

    def stages(self) -> list[list[str]]:
        """The blocks of every stage in the file's order, as the layers' names have them: "2a", "2b", ..."""
        stages: list[list[str]] = []
        for name in self.layers:
            if found := _BLOCK.fullmatch(name):
                number = int(found[1])
                if number == len(stages) + 2:
                    stages.append([])
                elif not stages or number != len(stages) + 1:
                    raise ValueError(f"layer {name}: stage {number} comes after stage {len(stages) + 1}")
                stages[-1].append(found[1] + found[2])
        if not stages:
            raise ValueError("layer res2a_branch2a is missing, the first of the blocks")
        return stages

    def take(self, name: str, type: str, *inputs: str) -> CaffeLayer:
        """A layer of this type that takes what these layers gave, in any order."""
        if name not in self.layers:
            raise ValueError(f"layer {name} is missing, expected of type {type} after {' and '.join(inputs)}")
        layer = self.layers[name]
        layer.check("type", layer.type, type)
        layer.check("input", sorted(self.inputs[name]), sorted(inputs))
        self.taken.add(name)
        return layer

    def take_stem(self) -> tuple[int, str]:
        """The layers before the first stage; gives their filters and their `pool_padding`."""
        for source in self.inputs.get("conv1", ()):
            if source not in self.layers or not self.layers[source].bottoms:
                self.output = source
        filters = self.layers["conv1"].setting("num_output", 0) if "conv1" in self.layers else 0
        places = ("stem", "conv"), ("stem", "norm")
        self.take_unit(places, ("conv1", "bn_conv1", "scale_conv1"), self.output, (filters, 3, 7, 7), stride=2)
        pool = self.take("pool1", "Pooling", "ReLU of scale_conv1")
        for what, expected in {"kernel": 3, "stride": 2}.items():
            pool.check(what, pool.sides(what, 1), (expected, expected))
        pool.check("pool", pool.setting("pool", _MAX), _MAX)
        pool.check("global_pooling", pool.setting("global_pooling", 0), 0)
        found = (*pool.sides("pad", 0), pool.setting("round_mode", _CEIL))
        if found not in _PADDINGS:
            raise ValueError(f"layer pool1: pads and round_mode are {found}, expected one of {[*_PADDINGS]}")
        self.output, self.channels = "pool1", filters
        return filters, _PADDINGS[found]

    def take_block(self, place: str, block: str, filters: int, strides: tuple[int, int], *, first: bool) -> None:
        """The layers of a bottleneck; `strides` are those of the first 1x1 and of the 3x3."""

        def take(branch: str, places: tuple[str, ...], source: str, shape: Shape, stride: int) -> str:
            names = (f"res{block}_branch{branch}", f"bn{block}_branch{branch}", f"scale{block}_branch{branch}")
            conv, norm = ((place, *inner.split("/")) for inner in places)
            return self.take_unit((conv, norm), names, source, shape, stride)

        source, channels, out = self.output, self.channels, 4 * filters
        shortcut = source
        if first:
            places = ("shortcut/conv", "shortcut/norm")
            shortcut = take("1", places, source, (out, channels, 1, 1), max(strides))
        last = take("2a", ("conv1", "norm1"), source, (filters, channels, 1, 1), strides[0])
        last = take("2b", ("conv2", "norm2"), f"ReLU of {last}", (filters, filters, 3, 3), strides[1])
        last = take("2c", ("conv3", "norm3"), f"ReLU of {last}", (out, filters, 1, 1), 1)
        total = self.take(f"res{block}", "Eltwise", shortcut, last)
        total.check("operation", total.setting("operation", _SUM), _SUM)
        total.check("coeff", set(total.settings.get("eltwise.coeff", ())) or {1.0}, {1.0})
        self.output, self.channels = f"ReLU of {total.name}", out

    def take_unit(self, places: Places, names: Sequence[str], source: str, shape: Shape, stride: int) -> str:
        """A convolution, its kernel of (filters, channels, size, size), and its normalization; gives their output."""
        layer = self.take(names[0], "Convolution", source)
        sides = {"kernel": shape[-1], "pad": shape[-1] // 2, "stride": stride, "dilation": 1}
        for what, side in sides.items():
            layer.check(what, layer.sides(what, 0 if what == "pad" else 1), (side, side))
        for what, value in {"num_output": shape[0], "group": 1, "axis": 1}.items():
            layer.check(what, layer.setting(what, 1), value)
        layer.check_blobs(shape, *([shape[:1]] if layer.setting("bias_term", 1) else []))
        norm = self.take(names[1], "BatchNorm", names[0])
        norm.check("use_global_stats", norm.setting("use_global_stats", 1), 1)
        epsilon = norm.setting("eps", _EPSILON)
        if not 0 <= epsilon < math.inf:
            raise ValueError(f"layer {norm.name}: eps is {epsilon:g}, expected a finite number from 0 on")
        norm.check_blobs(shape[:1], shape[:1], (1,))
        scale = self.take(names[2], "Scale", names[1])
        scale.check("axis", scale.setting("axis", 1), 1)
        scale.check_blobs(shape[:1], shape[:1])
        self.units.append(_Unit(*places, layer, norm, scale))
        return scale.name

    def take_classifier(self) -> CaffeLayer:
        """The last average and the one layer of type InnerProduct, whatever its name."""
        pool = self.take("pool5", "Pooling", self.output)
        pool.check("pool", pool.setting("pool", _MAX), _AVERAGE)
        pool.check("pad", pool.sides("pad", 0), (0, 0))
        if not pool.setting("global_pooling", 0):
            for what, expected in {"kernel": 7, "stride": 1}.items():
                pool.check(what, pool.sides(what, 1), (expected, expected))
        names = [layer.name for layer in self.layers.values() if layer.type == "InnerProduct"]
        if len(names) != 1:
            raise ValueError(f"one layer of type InnerProduct is expected, after pool5; found {len(names)}")
        layer = self.take(names[0], "InnerProduct", "pool5")
        for what, expected in {"axis": 1, "transpose": 0}.items():
            layer.check(what, layer.setting(what, expected), expected)
        classes = layer.setting("num_output", 0)
        layer.check_blobs((classes, self.channels), (classes,))
        return layer


def _read_variables(units: Sequence[_Unit], classifier: CaffeLayer) -> dict:
    variables: dict = {"params": {}, "batch_stats": {}}

    def put(collection: str, place: tuple[str, ...], values: dict[str, np.ndarray]) -> None:
        inner = variables[collection]
        for name in place:
            inner = inner.setdefault(name, {})
        inner |= values

    for unit in units:
        shape, stem = unit.convolution.blobs[0].shape, unit.convolution_place[0] == "stem"
        kernel = _values(unit.convolution, 0, shape)[:, :: -1 if stem else 1]
        put("params", unit.convolution_place, {"kernel": np.ascontiguousarray(kernel.transpose(2, 3, 1, 0))})
        scale, bias = (_values(unit.scale, index, shape[:1]) for index in (0, 1))
        put("params", unit.norm_place, {"scale": scale, "bias": bias})
        put("batch_stats", unit.norm_place, _statistics(unit))
    classes, features = classifier.blobs[0].shape[-2:]
    kernel = np.ascontiguousarray(_values(classifier, 0, (classes, features)).T)
    put("params", ("classifier",), {"kernel": kernel, "bias": _values(classifier, 1, (classes,))})
    return variables


def _statistics(unit: _Unit) -> dict[str, np.ndarray]:
    """Mean and variance. Caffe stores sums, and as the third blob what they are to be divided by."""
    epsilon = unit.norm.setting("eps", _EPSILON)
    # Values that are not finite are the file's own and kept, a signalling NaN without a warning.
    with np.errstate(all="ignore"):
        mean, variance, weight = (_values(unit.norm, index, (-1,)).astype(np.float64) for index in range(3))
        factor = 1 / weight[0] if weight[0] else 0.0
        mean, variance = mean * factor, variance * factor + (np.float64(np.float32(epsilon)) - np.float32(_EPSILON))
        if len(unit.convolution.blobs) == 2:
            mean = mean - _values(unit.convolution, 1, mean.shape)
        statistics = {"mean": mean.astype(np.float32), "var": variance.astype(np.float32)}
        if (statistics["var"] + np.float32(_EPSILON) <= 0).any():
            raise ValueError(f"layer {unit.norm.name}: a variance and eps={epsilon:g} are not above 0 together")
        return statistics


def _values(layer: CaffeLayer, index: int, shape: Shape) -> np.ndarray:
    """One of a layer's blobs as float32."""
    stored = layer.blobs[index].read()
    with np.errstate(over="ignore"):
        values = stored.astype(np.float32, copy=False)
    if values is not stored and (np.isinf(values) & np.isfinite(stored)).any():
        raise ValueError(f"layer {layer.name}: a value of blob {index} is too large for float32")
    return values.reshape(shape)
