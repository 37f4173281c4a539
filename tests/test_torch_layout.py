"""Nets are recognised in others' tensors by names and shapes, and what is none of ours is refused by its first sign."""

import math
import time
import tracemalloc
import weakref

import jax
import ml_dtypes
import numpy as np
import parity_nets as nets
import pytest
from random_variables import random_variables

from resnet_jax.models.normalization import freeze_batch_norm
from resnet_jax.models.registry import create_model
from resnet_jax.models.stacking import unstack_blocks
from resnet_jax.pretrained.layout import tensor_name, variable_shapes
from resnet_jax.pretrained.pytorch.huggingface_layout import infer_huggingface
from resnet_jax.pretrained.pytorch.infer_torch import infer_timm, infer_torch
from resnet_jax.pretrained.pytorch.torch_layout import huggingface_spelling, places, torchvision_spelling
from resnet_jax.pretrained.pytorch.torch_variables import TorchNet, channel_orders, read_variables, torch_tensors
from resnet_jax.pretrained.stored_tensor import StoredTensor

SHAPE = (8, 8, 3)
CIFAR = torchvision_spelling(shortcut="shortcut", head="linear")
MIXED = torchvision_spelling(shortcut="downsample", head="linear", prefix="module._orig_mod.")
NETS = {
    "basic": ("resnet18", {}, torchvision_spelling()),
    "bottleneck": ("resnet50_v1_5", {}, torchvision_spelling()),
    "option A": ("cifar_resnet20", {}, torchvision_spelling(head="linear")),
    "option A, bottleneck": ("resnet50_v1_5", {"shortcut": "A"}, torchvision_spelling()),
    "option B": ("cifar_resnet20", {"shortcut": "B"}, CIFAR),
    "option C": ("cifar_resnet20", {"shortcut": "C"}, CIFAR),
    "mixed names": ("cifar_resnet20", {"shortcut": "B", "stage_sizes": (1, 1, 1, 2)}, MIXED),
    "one stage": ("resnet18", {"stage_sizes": (2,)}, torchvision_spelling()),
    "no head": ("resnet18", {"num_classes": None}, torchvision_spelling(prefix="module.")),
    "Hugging Face": ("resnet50", {}, huggingface_spelling(prefix="module.")),
}


def tiny(name="resnet18", **options):
    return create_model(name, **{"width": 2, "stage_sizes": (1, 2), "num_classes": 5, **options})


def shapes_of(model, spelling=None):
    return {place.name: place.shape for place in places(model, spelling or torchvision_spelling(), 3)}


def tensors_of(shapes, dtype=np.float32):
    return nets.stored({name: np.full(shape, 1, dtype) for name, shape in shapes.items()})


def with_shapes(changes, shapes):
    """The tensors, some of other shapes, some gone (None), some more."""
    return tensors_of({name: shape for name, shape in {**shapes, **changes}.items() if shape is not None})


def unread():
    raise AssertionError("a value is read")


def infer(shapes_or_tensors, model, spelling):
    if spelling.library == "huggingface":
        return infer_huggingface(config_of(model), shapes_or_tensors)
    return infer_torch(shapes_or_tensors)


def config_of(model):
    return {
        "depths": list(model.stage_sizes),
        "hidden_sizes": [8 * 2**stage for stage in range(len(model.stage_sizes))],
        "embedding_size": model.width,
        "downsample_in_bottleneck": True,
        "id2label": {str(number): "" for number in range(model.num_classes)},
    }


@pytest.mark.parametrize("kind", NETS)
def test_the_net_is_found_again(kind):
    name, options, spelling = NETS[kind]
    model = tiny(name, **options)
    found = infer(tensors_of(shapes_of(model, spelling)), model, spelling)
    assert found == TorchNet(model, spelling, 3)


@pytest.mark.parametrize(
    "options",
    [{}, {"block": "bottleneck"}, {"shortcut": "C"}, {"norm": "frozen"}, {"scan": True, "stage_sizes": (1, 3)}],
    ids=str,
)
def test_the_list_of_places_is_that_of_the_net(options):
    model = tiny(**options)
    shapes = {tensor_name(p): leaf.shape for p, leaf in jax.tree.leaves_with_path(variable_shapes(model, 3))}
    if not options.get("scan"):
        assert {"/".join(p.path): math.prod(p.shape) for p in places(model, CIFAR, 3)} == {
            name: math.prod(shape) for name, shape in shapes.items()
        }
    assert {"/".join(place.path) for place in places(model, CIFAR, 3)} == shapes.keys()


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16, "float32", "float64"])
def test_values_become_float32_in_our_layout(dtype):
    model = tiny("resnet50")
    values = {name: value.astype(dtype) for name, value in nets.fill(shapes_of(model))}
    variables = read_variables(infer_torch(nets.stored(values)), nets.stored(values))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    params, kernel = variables["params"], values["layer2.0.downsample.0.weight"].astype(np.float32)
    np.testing.assert_array_equal(params["stage2_block1"]["shortcut"]["conv"]["kernel"][0, 0], kernel[:, :, 0, 0].T)
    np.testing.assert_array_equal(params["classifier"]["kernel"], values["fc.weight"].astype(np.float32).T)
    np.testing.assert_array_equal(
        variables["batch_stats"]["stem"]["norm"]["var"], values["bn1.running_var"].astype(np.float32)
    )
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, variable_shapes(model, 3))


def test_a_value_beyond_float32_is_refused():
    values = dict(nets.fill(shapes_of(tiny())))
    values["layer1.0.bn1.bias"] = np.array([1.0, 1e300])
    net = infer_torch(nets.stored(values))
    with pytest.raises(ValueError, match=r"layer1.0.bn1.bias holds float64 values beyond"):
        read_variables(net, nets.stored(values))


@pytest.mark.parametrize("variance", [-1e-3, np.nan, np.inf])
def test_a_variance_that_is_none_is_refused(variance):
    values = dict(nets.fill(shapes_of(tiny())))
    values["layer1.0.bn1.running_var"][1] = variance
    net = infer_torch(nets.stored(values))
    with pytest.raises(ValueError, match=f"layer1.0.bn1.running_var has the variance {variance:g}; it must be finite"):
        read_variables(net, nets.stored(values))


def test_many_deep_names_cost_little():
    """Every part of a name but the last is a module, and the longest names could have a hundred."""
    tensors = dict.fromkeys(
        (f"{number:05}" + ".a" * 90 for number in range(20_000)), StoredTensor((0,), "float32", unread)
    )
    tracemalloc.start()
    with pytest.raises(ValueError, match="a name of 91 parts"):
        infer_torch(tensors)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 20_000_000


def test_infinite_values_are_kept():
    values = dict(nets.fill(shapes_of(tiny())))
    values["fc.bias"] = np.array([1.0, np.inf, -np.inf, np.nan, 0.0])
    bias = read_variables(infer_torch(nets.stored(values)), nets.stored(values))["params"]["classifier"]["bias"]
    np.testing.assert_array_equal(bias, values["fc.bias"].astype(np.float32))


def test_tensors_are_read_one_at_a_time():
    alive = []

    def reader(name, shape):
        def read():
            value = np.ones(shape, np.float64)
            alive.append(weakref.ref(value))
            assert sum(ref() is not None for ref in alive) == 1, name
            return value

        return read

    shapes = shapes_of(tiny())
    tensors = {name: StoredTensor(shape, "float64", reader(name, shape)) for name, shape in shapes.items()}
    read_variables(infer_torch(tensors), tensors)
    assert len(alive) == len(shapes)


def test_the_result_owns_its_memory():
    values = dict(nets.fill(shapes_of(tiny())))
    for value in values.values():
        value.flags.writeable = False
    leaves = jax.tree.leaves(read_variables(infer_torch(nets.stored(values)), nets.stored(values)))
    assert all(leaf.flags.writeable and leaf.flags.c_contiguous for leaf in leaves)


def test_blocks_are_stacked_where_a_stage_has_many():
    model = tiny(stage_sizes=(61, 1))
    values = dict(nets.fill(shapes_of(model)))
    net = infer_torch(nets.stored(values))
    assert net.model == tiny(stage_sizes=(61, 1), scan=True)
    kernels = read_variables(net, nets.stored(values))["params"]["stage1_blocks"]["conv2"]["kernel"]
    assert kernels.shape == (60, 3, 3, 2, 2)
    np.testing.assert_array_equal(kernels[57], values["layer1.58.conv2.weight"].transpose(2, 3, 1, 0))


def test_1202_layers_are_found_in_a_second():
    model = create_model("cifar_resnet1202", scan=True)
    tensors = tensors_of(shapes_of(model, CIFAR))
    start = time.perf_counter()
    assert infer_torch(tensors).model == model
    assert time.perf_counter() - start < 5


def test_option_a_fills_half_before_and_half_behind():
    orders = channel_orders(tiny("cifar_resnet20", stage_sizes=(1, 1, 1)))
    assert [order.tolist() for order in orders] == [[0, 1], [0, 1], [1, 2, 0, 3], [3, 4, 2, 5, 0, 1, 6, 7]]


def test_option_a_needs_even_numbers_of_new_channels():
    with pytest.raises(ValueError, match="stage 2 has no projections, and its 3 new channels have no two halves"):
        infer_torch(tensors_of(shapes_of(tiny("cifar_resnet20", width=3), CIFAR)))


def test_the_stride_is_the_callers_to_say():
    tensors = tensors_of(shapes_of(tiny("resnet50")))
    assert infer_torch(tensors, stride_in="1x1").model == tiny("resnet50")
    with pytest.raises(ValueError, match="stride_in=2x2 is not one of 1x1, 3x3"):
        infer_torch(tensors, stride_in="2x2")
    with pytest.raises(ValueError, match="basic blocks"):
        infer_torch(tensors_of(shapes_of(tiny())), stride_in="1x1")


@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_a_classifier_may_be_the_one_linear_layer_of_a_sequence(prefix):
    shapes = {name.replace("fc.", "fc.1."): shape for name, shape in shapes_of(tiny()).items()}
    net = infer_torch(tensors_of({prefix + name: shape for name, shape in shapes.items()}))
    assert net.model == tiny() and net.spelling.head == "fc.1"
    with pytest.raises(ValueError, match="fc.weight is missing|'fc.0.weight' of shape"):
        infer_torch(tensors_of(shapes | {"fc.0.weight": (8, 8), "fc.0.bias": (8,)}))


BASIC, BOTTLENECK = shapes_of(tiny(width=4)), shapes_of(tiny("resnet50", width=4))
VECTOR = (4,)


@pytest.mark.parametrize(
    ("shapes", "changes", "message"),
    [
        (BASIC, {"conv1.weight": None, "conv1.0.weight": (2, 3, 3, 3)}, "conv1.0.weight of shape .* deep stem"),
        (BASIC, {"layer2.0.downsample.1.weight": (8, 4, 1, 1)}, "layer2.0.downsample.1.weight of shape .* pool"),
        (BASIC, {"layer1.0.se.fc1.weight": (1, 4, 1, 1)}, "layer1.0.se.fc1.weight .* squeeze"),
        (BASIC, {"layer2.0.conv2.1.filt": (8, 1, 3, 3)}, "layer2.0.conv2.1.filt .* anti-aliased"),
        (BASIC, {f"bn1.{part}": None for part in ("weight", "bias", "running_mean", "running_var")},
         "layer1.0.bn1.weight .* pre-activation"),
        (BASIC, {"stem.conv.weight": (4, 3, 7, 7), "stages.0.blocks.0.norm1.weight": VECTOR},
         "stem.conv.weight .* pre-activation"),
        (BOTTLENECK, {"layer1.0.conv2.weight": (4, 1, 3, 3)}, r"layer1.0.conv2.weight .* grouped convolutions"),
        (BOTTLENECK, {"layer1.0.conv1.weight": (8, 4, 1, 1), "layer1.0.conv2.weight": (8, 8, 3, 3)},
         r"layer1.0.conv1.weight of shape \(8, 4, 1, 1\) belongs to a net with wide bottlenecks"),
        (BASIC, {"layer2.1.conv2.weight": (8, 4, 3, 3)},
         r"layer2.1.conv2.weight is of shape \(8, 4, 3, 3\); the net needs \(8, 8, 3, 3\)"),
        (BASIC, {"layer2.1.bn1.running_var": None},
         r"layer2.1.bn1.running_var is missing; the net needs it of shape \(8,\)"),
        (BASIC, {"layer1.0.conv1.weight": None}, "layer1.0.conv1.weight is missing"),
        (BASIC, {name: None for name in BASIC if name.startswith("layer1.0.")}, "layer1.0.conv1.weight is missing"),
        (BASIC, {"layer2.0.downsample.0.weight": None}, "layer2.0.downsample.0.weight is missing"),
        (BASIC, {"fc.bias": None}, "fc.bias is missing"),
        (BASIC, {"fc.weight": (5, 9)}, r"fc.weight is of shape \(5, 9\); the net needs \(5, 8\)"),
        (BASIC, {"fc.weight": (0, 8)}, r"fc.weight is of shape \(0, 8\)"),
        (BASIC, {"conv1.bias": VECTOR}, r"'conv1.bias' of shape \(4,\) is none"),
        (BASIC, {"linear.weight": (5, 8), "linear.bias": (5,)}, "'fc.weight' of shape .* is none"),
        (BASIC, {"conv1.weight": (4, 3, 5, 5)}, r"conv1.weight is of shape \(4, 3, 5, 5\); .* 7x7 or 3x3"),
        (BASIC, {"conv1.weight": (4, 3, 7, 3)}, r"conv1.weight is of shape \(4, 3, 7, 3\)"),
        (BASIC, {"conv1.weight": (4,)}, r"conv1.weight is of shape \(4,\); the net needs 4 axes"),
        (BASIC, {"conv1.weight": (0, 3, 7, 7)}, "none of them empty"),
        ({"encoder.q.weight": VECTOR}, {}, "conv1.weight is missing; the first one here is 'encoder.q.weight'"),
        ({"conv1.weight": (4, 3, 7, 7)}, {}, "layer1.0.conv1.weight is missing"),
        ({}, {}, "there are no tensors"),
        ({"a" * 300: VECTOR}, {}, "a name of 300 characters"),
        ({f"module.{'a.' * 12}b": VECTOR}, {}, "tensor 'a.a.a.* has a name of 13 parts, more than 12"),
        (BASIC, {"bn1.num_batches_tracked": (1,)}, r"'bn1.num_batches_tracked' of shape \(1,\) is none"),
        (BASIC, {"bn2.num_batches_tracked": ()}, r"'bn2.num_batches_tracked' of shape \(\) is none"),
        (BASIC, {"layer1.0.conv1.num_batches_tracked": ()}, "'layer1.0.conv1.num_batches_tracked' of shape"),
        (BASIC, {"fc.weight": None, "fc.1.weight": (8,), "fc.1.bias": (8,), "fc.bias": None}, "fc.weight is missing"),
        (shapes_of(tiny("resnet50"), huggingface_spelling()), {}, "'resnet.embedder.* needs the config.json"),
    ],
)  # fmt: skip
def test_what_is_no_net_of_ours_is_refused(shapes, changes, message):
    with pytest.raises(ValueError, match=message):
        infer_torch(with_shapes(changes, shapes))


def test_counts_of_batches_are_left_out():
    shapes = {**BASIC, "bn1.num_batches_tracked": ()}
    assert infer_torch(tensors_of(shapes)).model == tiny(width=4)


def test_tensors_of_whole_numbers_are_refused():
    tensors = tensors_of(BASIC, np.int8)
    with pytest.raises(ValueError, match="conv1.weight is int8; allowed are float16"):
        infer_torch(tensors)


def test_a_huge_claim_is_refused_at_once():
    """Names are cheap: 5,000 stages would be a net whose last stage has 2^5000 filters."""
    shapes = {**BASIC, **{f"layer{stage}.0.conv1.weight": (1, 1, 1, 1) for stage in range(3, 5000)}}
    shapes |= {f"layer1.{block}.x": () for block in range(20_000)}
    tensors = {name: StoredTensor(shape, "float32", lambda: np.empty(0)) for name, shape in shapes.items()}
    start = time.perf_counter()
    with pytest.raises(ValueError, match="layer1.1.conv1.weight is missing"):
        infer_torch(tensors)
    assert time.perf_counter() - start < 5


def test_timm_s_config_goes_with_its_tensors():
    assert infer_timm({"architecture": "resnet18", "num_classes": 1000}, real("resnet18")).model == create_model(
        "resnet18"
    )
    found = infer_timm({"architecture": "tv_resnet50"}, real("resnet50"), stride_in="1x1")
    assert found.model == create_model("resnet50")


def real(name, **options):
    """Tensors of a net's true size, which have no values."""
    shapes = shapes_of(create_model(name, **options))
    return {name: StoredTensor(shape, "float32", unread) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("architecture", "name", "options"),
    [
        ("resnet34", "resnet34", {}),
        ("resnet26", "resnet50", {"stage_sizes": (2, 2, 2, 2)}),
        ("resnet200", "resnet50", {"stage_sizes": (3, 24, 36, 3)}),
        ("gluon_resnet101_v1b", "resnet101", {}),
        ("ssl_resnet18", "resnet18", {}),
        ("swsl_resnet50", "resnet50", {"num_classes": None}),
        ("tv_resnet152", "resnet152", {}),
    ],
)
def test_timm_s_names_of_nets_like_ours(architecture, name, options):
    classes = options.get("num_classes", 1000) or 0
    arguments = {"in_chans": 3, "num_classes": classes, "global_pool": "avg"}
    config = {"architecture": architecture, "global_pool": "avg", "pretrained_cfg": {"global_pool": None}}
    config |= {"num_classes": classes, "model_args": arguments}
    assert infer_timm(
        config, real(name, **options), stride_in="1x1" if name != "resnet34" and "18" not in name else None
    )


@pytest.mark.parametrize(
    ("architecture", "name", "options"),
    [
        ("resnet50", "resnet18", {}),
        ("resnet34", "resnet18", {}),
        ("resnet34", "resnet50", {}),
        ("resnet18", "resnet18", {"width": 32}),
        ("resnet18", "resnet18", {"stem": "cifar"}),
        ("resnet18", "resnet18", {"shortcut": "C"}),
        ("resnet18", "resnet18", {"shortcut": "A"}),
    ],
)
def test_timm_s_architecture_must_be_that_of_the_tensors(architecture, name, options):
    with pytest.raises(ValueError, match=f"architecture='{architecture}'; the tensors are those of .* blocks"):
        infer_timm({"architecture": architecture}, real(name, **options))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "resnetaa50"}, "architecture='resnetaa50' is an anti-aliased net"),
        ({"architecture": "resnetblur18"}, "architecture='resnetblur18' is an anti-aliased net"),
        (
            {"architecture": "resnet18", "model_args": {"output_stride": 8}},
            "model_args={'output_stride': 8} may change",
        ),
        *(
            ({"architecture": name}, f"architecture='{name}' is none of ours: resnet18, ")
            for name in ("resnext50_32x4d", "vit_base", "resnet18d", "resnet10t", "gluon_resnet18", "resnet18_v1b", "")
        ),
        ({"architecture": "resnet18", "model_args": ["a"]}, r"model_args=\['a'\] may change"),
        ({"architecture": "resnet18", "model_args": {"in_chans": 1}}, "in_chans=1; the tensors have 3"),
        ({"architecture": "resnet18", "model_args": {"num_classes": 4}}, "num_classes=4; the tensors have 1000"),
        ({"architecture": "resnet18", "model_args": {"global_pool": "max"}}, "global_pool='max'; only 'avg'"),
        ({"architecture": "resnet18", "global_pool": "max"}, "global_pool='max'; only 'avg'"),
        ({"architecture": "resnet18", "pretrained_cfg": {"global_pool": ""}}, "global_pool=''; only 'avg'"),
        ({"architecture": "resnet18", "num_classes": 4}, "num_classes=4; the tensors have 1000"),
        ({}, "names no architecture"),
        (["resnet18"], "names no architecture"),
    ],
)
def test_timm_s_other_nets_of_the_same_tensors_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        infer_timm(config, real("resnet18"))


HUGGINGFACE = shapes_of(tiny("resnet50"), huggingface_spelling())
CONFIG = config_of(tiny("resnet50"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": [1, 3]}, r"depths=\[1, 3\]; the tensors are those of \[1, 2\]"),
        ({"hidden_sizes": [8, 32]}, r"hidden_sizes=\[8, 32\]; the tensors are those of \[8, 16\]"),
        ({"embedding_size": 4}, "embedding_size=4; the tensors are those of 2"),
        ({"layer_type": "basic"}, "layer_type='basic'; the tensors are those of 'bottleneck'"),
        ({"num_channels": 1}, "num_channels=1; the tensors are those of 3"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'; only 'relu'"),
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage=True; only False"),
        ({"downsample_in_bottleneck": "yes"}, "downsample_in_bottleneck='yes', not true or false"),
        ({"model_type": "regnet"}, "model_type='regnet'; only 'resnet'"),
        ({"id2label": {"0": "a"}}, "id2label has 1 classes; the tensors have 5"),
        ({"id2label": None}, "num_labels has 2 classes; the tensors have 5"),
        ({"id2label": None, "num_labels": 4}, "num_labels has 4 classes; the tensors have 5"),
        ({"id2label": ["a"]}, "id2label must be a JSON object, found list"),
    ],
)
def test_a_config_must_agree_with_the_tensors(changes, message):
    with pytest.raises(ValueError, match=message):
        infer_huggingface({**CONFIG, **changes}, tensors_of(HUGGINGFACE))


def test_huggingface_tells_where_the_stride_is():
    tensors = tensors_of(HUGGINGFACE)
    assert infer_huggingface(CONFIG, tensors).model == tiny("resnet50")
    assert infer_huggingface({**CONFIG, "downsample_in_bottleneck": False}, tensors).model == tiny("resnet50_v1_5")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resnet.embedder.embedder.convolution.weight": (2, 3, 3, 3)}, "the net needs kernels of 7x7$"),
        (
            {
                f"resnet.encoder.stages.1.layers.0.shortcut.{part}": None
                for part in ("convolution.weight", *(f"normalization.{p}" for p in ("weight", "bias", "running_mean")))
            },
            "stages.1.layers.0.shortcut.convolution.weight is missing",
        ),
    ],
)
def test_huggingface_has_no_other_stems_and_shortcuts(changes, message):
    with pytest.raises(ValueError, match=message):
        infer_huggingface(CONFIG, with_shapes(changes, HUGGINGFACE))


def test_a_config_without_its_tensors_is_refused():
    with pytest.raises(ValueError, match="'conv1.weight' is not named as in Hugging Face"):
        infer_huggingface(CONFIG, tensors_of(BASIC))
    with pytest.raises(ValueError, match="must be a JSON object, found list"):
        infer_huggingface([], tensors_of(HUGGINGFACE))


@pytest.mark.parametrize("options", [{}, {"scan": True, "stage_sizes": (3, 1)}, {"norm": "frozen"}], ids=str)
@pytest.mark.parametrize("spelling", [torchvision_spelling(), huggingface_spelling()], ids=lambda s: s.library)
def test_what_is_written_is_read_again(options, spelling):
    model = tiny("resnet50_v1_5", **options)
    variables = random_variables(model, SHAPE, train=False)
    tensors = nets.stored(torch_tensors(model, variables, spelling))
    if spelling.library == "torchvision":
        net = infer_torch(tensors)
    else:
        net = infer_huggingface({**config_of(model), "downsample_in_bottleneck": False}, tensors)
    found = read_variables(net, tensors)
    assert net.model == model.clone(scan=False, norm="batch")
    found = freeze_batch_norm(found) if model.norm == "frozen" else found
    jax.tree.map(np.testing.assert_array_equal, found, unstack_blocks(variables))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("stem", {}, r"params/stem/conv/kernel is missing; the net has it as float32 of shape \(7, 7, 3, 2\)"),
        ("classifier", {"kernel": np.zeros((5, 16))}, r"params/classifier/kernel is float64 of shape \(5, 16\)"),
        ("other", {"kernel": np.zeros(1)}, "params/other/kernel is none that the net has"),
    ],
)
def test_variables_of_another_net_are_refused(path, value, message):
    model = tiny()
    variables = random_variables(model, SHAPE, train=False)
    changed = {**variables, "params": {**variables["params"], path: value}}
    with pytest.raises(ValueError, match=message):
        torch_tensors(model, changed, torchvision_spelling())
