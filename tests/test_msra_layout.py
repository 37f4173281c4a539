"""The authors' released nets compute what Caffe computes with them; any other net is refused by the name of a layer."""

import tracemalloc
from functools import partial

import jax
import numpy as np
import pytest
from caffe_files import UNPACKED, BlobProto, LayerParameter, MsraNet, blob, blob_values, layer_of, run_net

from resnet_jax.pretrained.caffe.msra_layout import read_msra
from resnet_jax.pretrained.layout import variable_shapes


@pytest.fixture
def written(tmp_path):
    def write(net):
        path = tmp_path / "net.caffemodel"
        path.write_bytes(net.SerializeToString())
        return path

    return write


def image_of(size, seed=1):
    """Pixels less a mean, red, green, blue."""
    return np.random.default_rng(seed).normal(0, 50, (size, size, 3)).astype(np.float32)


def difference(net, path, size):
    """The largest difference of the logits, in parts of the largest logit."""
    model, variables = read_msra(path)
    image = image_of(size)
    ours = jax.jit(partial(model.apply, train=False))(variables, image[None])[0]
    theirs = run_net(net, image[..., ::-1].transpose(2, 0, 1))
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


NETS = {
    "plain": {"conv1_bias": False, "split": False},
    "bias, weight, eps": {"weight": 3.7, "eps": 1e-2},
    "a smaller eps": {"eps": 1e-8},
    "weight 0": {"weight": 0.0, "eps": 1e-3},
    "3x3 takes the stride": {"stride_in": "3x3"},
    "deep names": {"stage_sizes": (1, 3, 2, 1), "letters": "a", "width": 1},
    "another width": {"width": 3, "classes": 7},
}


@pytest.mark.parametrize("size", [224, 223])
@pytest.mark.parametrize("name", NETS)
def test_logits_are_those_of_caffe(written, name, size):
    net = MsraNet(**NETS[name]).net
    assert difference(net, written(net), size) < 1e-5


def test_logits_of_50_layers(written):
    net = MsraNet((3, 4, 6, 3), width=1, weight=2.0).net
    path = written(net)
    assert difference(net, path, 224) < 1e-4
    assert read_msra(path)[0].stage_sizes == (3, 4, 6, 3)


@pytest.mark.parametrize("size", [221, 222])
def test_where_the_first_convolution_gives_an_odd_number_of_rows_caffe_pools_one_less(written, size):
    net = MsraNet().net
    assert 1e-4 < difference(net, written(net), size) < 0.1


@pytest.mark.parametrize("name", NETS)
def test_variables_are_the_nets(written, name):
    options = {"width": 2, "classes": 3, "stage_sizes": (1, 1, 1, 1), **NETS[name]}
    model, variables = read_msra(written(MsraNet(**NETS[name]).net))
    assert (model.width, model.num_classes, model.stage_sizes) == tuple(
        options[key] for key in ("width", "classes", "stage_sizes")
    )
    assert (model.block, model.shortcut, model.pool_padding) == ("bottleneck", "B", "end")
    assert model.stride_in == options.get("stride_in", "1x1")
    expected = variable_shapes(model, 3)
    assert jax.tree.map(lambda x: (x.shape, str(x.dtype)), variables) == jax.tree.map(
        lambda x: (x.shape, str(x.dtype)), expected
    )
    for leaf in jax.tree.leaves(variables):
        assert isinstance(leaf, np.ndarray) and leaf.flags.c_contiguous


def test_other_forms_of_the_same_net(written):
    net = MsraNet().net
    _, expected = read_msra(written(net))
    layer_of(net, "pool1").pooling_param.round_mode = 1
    layer_of(net, "pool1").pooling_param.pad = 1
    layer_of(net, "pool5").pooling_param.CopyFrom(
        type(layer_of(net, "pool5").pooling_param)(pool=1, global_pooling=True)
    )
    layer_of(net, "fc1000").name = "fc_of_mine"
    layer_of(net, "res3a").eltwise_param.operation = 1
    layer_of(net, "res3a").eltwise_param.coeff.extend([1, 1])
    param = layer_of(net, "conv1").convolution_param
    param.ClearField("pad")
    param.pad_h, param.pad_w = 3, 3
    param.dilation.extend([1, 1])
    for layer in net.layer:
        for index, one in enumerate(layer.blobs):
            shape = [*(1,) * (4 - len(one.shape.dim)), *one.shape.dim]
            old = dict(zip(("num", "channels", "height", "width"), shape, strict=True))
            values = blob_values(one).ravel()
            kind = "double_data" if index else "data"
            layer.blobs[index].CopyFrom(BlobProto(**old, **{kind: values}))
    net.layer.add(name="input", type="Input", top=["data"])
    net.layer.sort(key=lambda layer: layer.type != "Input")
    model, variables = read_msra(written(UNPACKED["NetParameter"].FromString(net.SerializeToString())))
    assert model.pool_padding == "both"
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_the_default_epsilon_changes_no_bit(written):
    net = MsraNet(conv1_bias=False, eps=1e-5).net
    _, variables = read_msra(written(net))
    for name, leaf in {"mean": 0, "var": 1}.items():
        found = variables["batch_stats"]["stage2_block1"]["norm2"][name]
        np.testing.assert_array_equal(found, blob_values(layer_of(net, "bn3a_branch2b").blobs[leaf]).astype(np.float32))


def test_values_that_are_not_finite_are_kept(written):
    net = MsraNet().net
    values = [np.nan, np.inf]
    layer_of(net, "bn2a_branch2a").blobs[1].CopyFrom(blob(values))
    _, variables = read_msra(written(net))
    np.testing.assert_array_equal(variables["batch_stats"]["stage1_block1"]["norm1"]["var"], values)


def test_a_value_of_64_bits_that_32_cannot_hold(written):
    net = MsraNet().net
    layer_of(net, "scale2a_branch2a").blobs[1].CopyFrom(BlobProto(double_data=[1e300, np.inf], shape={"dim": [2]}))
    with pytest.raises(ValueError, match="layer scale2a_branch2a: a value of blob 1 is too large for float32"):
        read_msra(written(net))


def remove(net, name):
    net.layer.remove(layer_of(net, name))


def set_param(net, name, kind, **values):
    param = getattr(layer_of(net, name), f"{kind}_param")
    for key, value in values.items():
        param.ClearField(key)
        if isinstance(value, list):
            getattr(param, key).extend(value)
        else:
            setattr(param, key, value)


def reshape(net, name, index, shape):
    layer_of(net, name).blobs[index].CopyFrom(blob(np.zeros(shape)))


def rewire(net, name, *bottoms):
    layer_of(net, name).ClearField("bottom")
    layer_of(net, name).bottom.extend(bottoms)


def swap(net, name, other):
    """Turns two layers of one array round."""
    names = [layer.name for layer in net.layer]
    index = names.index(name)
    copy = type(net.layer[index])()
    copy.CopyFrom(net.layer[index])
    net.layer[index].CopyFrom(layer_of(net, other))
    net.layer[names.index(other)].CopyFrom(copy)


MISMATCHES = {
    "no blocks": (lambda net: [remove(net, f"res{i}a_branch2a") for i in range(2, 6)], "res2a_branch2a is missing"),
    "no conv1": (lambda net: remove(net, "conv1"), "layer conv1 is missing"),
    "no scale": (lambda net: remove(net, "scale3a_branch1"), "layer scale3a_branch1 is missing"),
    "no pool": (lambda net: remove(net, "pool1"), "layer pool1 is missing"),
    "no sum": (lambda net: remove(net, "res4a"), "layer res4a is missing"),
    "no stage 3": (lambda net: remove(net, "res3a_branch2a"), "layer res4a_branch2a: stage 4 comes after stage 2"),
    "no projection": (lambda net: remove(net, "res5a_branch1"), "layer res5a_branch1 is missing"),
    "no classifier": (lambda net: remove(net, "fc1000"), "found 0"),
    "no relu": (lambda net: remove(net, "res3a_branch2a_relu"), r"res3a_branch2b: input is \['scale3a_branch2a'\]"),
    "no relu after a sum": (lambda net: remove(net, "res3a_relu"), r"res4a_branch1: input is \['res3a'\]"),
    "no relu after the stem": (lambda net: remove(net, "conv1_relu"), r"pool1: input is \['scale_conv1'\]"),
    "a leaky relu": (lambda net: set_param(net, "res2a_relu", "relu", negative_slope=0.1), "res3a_branch1: input"),
    "two classifiers": (
        lambda net: net.layer.add(name="fc2", type="InnerProduct", bottom=["pool5"]), "found 2",
    ),
    "a layer twice": (lambda net: net.layer.add().CopyFrom(layer_of(net, "res2a_branch2b")), "'res2a_branch2b' is"),
    "a layer more": (
        lambda net: net.layer.add(name="conv_x", type="Convolution", blobs=[blob([1])]), "layer conv_x has parameters",
    ),
    "a projection more": (
        lambda net: net.layer.add(name="res2b_branch1", type="Convolution", blobs=[blob([1])]), "layer res2b_branch1",
    ),
    "a preprocessing": (
        lambda net: net.layer.insert(0, LayerParameter(name="by255", type="Power", bottom=["data"], top=["data"])),
        r"conv1: input is \['by255'\]",
    ),
    "groups": (lambda net: set_param(net, "res2a_branch2b", "convolution", group=32), "res2a_branch2b: group is 32"),
    "dilation": (lambda net: set_param(net, "res5a_branch2b", "convolution", dilation=[1, 2]), r"dilation is \(1, 2\)"),
    "pad": (lambda net: set_param(net, "res3a_branch2b", "convolution", pad=[0]), r"res3a_branch2b: pad is \(0, 0\)"),
    "one pad": (lambda net: set_param(net, "conv1", "convolution", pad=[], pad_w=3), r"conv1: pad is \(0, 3\)"),
    "kernel": (lambda net: set_param(net, "conv1", "convolution", kernel_size=[3]), r"conv1: kernel is \(3, 3\)"),
    "stride": (lambda net: set_param(net, "res2a_branch2a", "convolution", stride=[2]), "res2a_branch2a: stride"),
    "no stride": (lambda net: set_param(net, "res3a_branch1", "convolution", stride=[1]), "res3a_branch1: stride"),
    "two strides": (lambda net: set_param(net, "res4a_branch2b", "convolution", stride=[2]), "res4a_branch2b: stride"),
    "mixed strides": (
        lambda net: (set_param(net, "res4a_branch2a", "convolution", stride=[1]),
                     set_param(net, "res4a_branch2b", "convolution", stride=[2])), "res4a_branch2a: stride",
    ),
    "no padding, rounded down": (lambda net: set_param(net, "pool1", "pooling", round_mode=1), r"pool1: .*\(0, 0, 1\)"),
    "padding, rounded up": (lambda net: set_param(net, "pool1", "pooling", pad=1), r"pool1: .*\(1, 1, 0\)"),
    "an average first": (lambda net: set_param(net, "pool1", "pooling", pool=1), "pool1: pool is 1"),
    "other windows last": (lambda net: set_param(net, "pool5", "pooling", kernel_size=4), r"pool5: kernel is \(4, 4\)"),
    "windows of one": (lambda net: set_param(net, "pool5", "pooling", kernel_size=1), r"pool5: kernel is \(1, 1\)"),
    "windows apart": (lambda net: set_param(net, "pool5", "pooling", stride=7), r"pool5: stride is \(7, 7\)"),
    "statistics of the batch": (
        lambda net: set_param(net, "bn2a_branch1", "batch_norm", use_global_stats=False),
        "bn2a_branch1: use_global_stats is 0, expected 1",
    ),
    **{
        f"eps {eps}": (partial(set_param, name="bn_conv1", kind="batch_norm", eps=eps), f"bn_conv1: eps is {eps:g}, ex")
        for eps in (float("nan"), float("inf"), -1.0)
    },
    "a maximum last": (lambda net: set_param(net, "pool5", "pooling", pool=0), "pool5: pool is 0"),
    "a product": (lambda net: set_param(net, "res3a", "eltwise", operation=0), "res3a: operation is 0"),
    "a difference": (lambda net: set_param(net, "res3a", "eltwise", coeff=[1, -1]), "res3a: coeff"),
    "a turned classifier": (lambda net: set_param(net, "fc1000", "inner_product", transpose=True), "fc1000: transp"),
    "a classifier without bias": (lambda net: layer_of(net, "fc1000").blobs.pop(), "fc1000: number of blobs is 1"),
    "no parameters": (lambda net: layer_of(net, "conv1").ClearField("blobs"), "conv1: number of blobs is 0"),
    "no bias": (lambda net: layer_of(net, "conv1").blobs.pop(), "conv1: number of blobs is 1, expected 2"),
    "no beta": (lambda net: layer_of(net, "scale3a_branch1").blobs.pop(), "scale3a_branch1: number of blobs is 1"),
    "no weight": (lambda net: layer_of(net, "bn_conv1").blobs.pop(), "bn_conv1: number of blobs is 2, expected 3"),
    "four channels": (lambda net: reshape(net, "conv1", 0, (2, 4, 7, 7)), r"shape of blob 0 is \(2, 4, 7, 7\)"),
    "a wider kernel": (
        lambda net: reshape(net, "res4a_branch2b", 0, (8, 16, 3, 3)),
        r"res4a_branch2b: shape of blob 0 is \(8, 16, 3, 3\), expected \(8, 8, 3, 3\)",
    ),
    "a scalar": (lambda net: reshape(net, "conv1", 0, ()), r"conv1: shape of blob 0 is \(\)"),
    "a longer mean": (lambda net: reshape(net, "bn2a_branch1", 0, 9), r"bn2a_branch1: shape of blob 0 is \(9,\)"),
    "a gamma for each example": (lambda net: reshape(net, "scale2a_branch1", 0, (2, 4)), "scale2a_branch1: shape"),
    "another width": (lambda net: set_param(net, "conv1", "convolution", num_output=64), r"expected \(64, 3, 7, 7\)"),
    "more classes": (lambda net: set_param(net, "fc1000", "inner_product", num_output=2**32 - 1), "4294967295, 64"),
    "a scale first": (lambda net: swap(net, "scale3a_branch1", "bn3a_branch1"), "bn3a_branch1: input"),
    "a norm first": (lambda net: swap(net, "bn3a_branch2a", "res3a_branch2a_relu"), "bn3a_branch2a: input"),
    "no shortcut": (lambda net: rewire(net, "res3a", "res3a_branch2c"), r"res3a: input is \['scale3a_branch2c'\]"),
    "another shortcut": (lambda net: rewire(net, "res3a", "pool1", "res3a_branch2c"), "res3a: input"),
    "a block left out": (lambda net: rewire(net, "pool5", "res4a"), r"pool5: input is \['ReLU of res4a'\]"),
    "two images": (lambda net: rewire(net, "conv1", "data", "data"), "conv1: input"),
    "no image": (lambda net: rewire(net, "conv1"), r"conv1: input is \[\]"),
    "another type": (lambda net: setattr(layer_of(net, "res2a"), "type", "Concat"), "res2a: type is Concat"),
    "a variance": (lambda net: layer_of(net, "bn2a_branch1").blobs[1].data.__setitem__(0, -1), "bn2a_branch1: a var"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISMATCHES)
def test_the_first_layer_that_differs_is_named(written, case):
    change, message = MISMATCHES[case]
    net = MsraNet(split=False).net
    change(net)
    with pytest.raises(ValueError, match=message):
        read_msra(written(net))


def test_an_epsilon_that_leaves_nothing_to_divide_by(written):
    net = MsraNet(weight=0.0, eps=0.0).net
    with pytest.raises(ValueError, match="layer bn_conv1: a variance and eps=0 are not above 0"):
        read_msra(written(net))


def test_cut_off_anywhere(written, tmp_path):
    content = MsraNet((1,), width=1).net.SerializeToString()
    path = tmp_path / "cut.caffemodel"
    path.write_bytes(content)
    read_msra(path)
    # The last layer is "prob", which has no parameters.
    for length in range(0, content.rindex(b"\n\x04prob") - 10, 19):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError):
            read_msra(path)


def test_memory_holds_the_result_and_one_tensor(written):
    path = written(MsraNet(width=32).net)
    read_msra(path)
    tracemalloc.start()
    _, variables = read_msra(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(variables)]
    assert peak < sum(sizes) + max(sizes) + 1_000_000
    assert sum(sizes) > 5_000_000
