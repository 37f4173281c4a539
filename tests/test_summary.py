"""The table of a net: the known sizes of every net of the paper, and agreement with the net that is really built."""

import time

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from resnet_jax.models.registry import create_model
from resnet_jax.models.summary import summarize

# Exact counts, by enumeration of the layers: convolutions without bias, two values a channel of batch normalization,
# classifier with bias; multiply-adds of convolutions and classifier, in G. The paper's own roundings: parameters of
# CIFAR's nets, option A, 0.27M / 0.46M / 0.66M / 0.85M / 1.7M / 19.4M (Table 6); multiply-adds of ImageNet's nets
# 1.8 / 3.6 / 3.8 / 7.6 / 11.3 G for 18 / 34 / 50 / 101 / 152 layers (Table 1).
CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)
CIFAR = {
    # Section 4.2 and Table 6
    "A": (
        (269_722, 464_154, 658_586, 853_018, 1_727_962, 19_421_274),
        (0.04055, 0.06886, 0.09717, 0.12549, 0.25289, 2.82924),
    ),
    "B": (
        (272_474, 466_906, 661_338, 855_770, 1_730_714, 19_424_026),
        (0.04081, 0.06912, 0.09744, 0.12575, 0.25315, 2.82950),
    ),
    "C": (
        (283_962, 489_594, 695_226, 900_858, 1_826_202, 20_538_714),
        (0.04265, 0.07253, 0.10242, 0.13230, 0.26678, 2.98626),
    ),
}
IMAGENET = [
    ("plain18", {}, 11_515_688, 1.795, "Table 1: 1.8 G"),
    ("resnet18", {"shortcut": "A"}, 11_515_688, 1.795, "Table 1: 1.8 G"),
    ("resnet18", {}, 11_689_512, 1.814, "torchvision: 11,689,512, 1.81 G"),
    ("resnet18", {"shortcut": "C"}, 12_043_816, 1.878, "enumeration"),
    ("plain34", {}, 21_623_848, 3.644, "Figure 3: 3.6 G"),
    ("resnet34", {"shortcut": "A"}, 21_623_848, 3.644, "Table 1: 3.6 G"),
    ("resnet34", {}, 21_797_672, 3.664, "torchvision: 21,797,672, 3.66 G"),
    ("resnet34", {"shortcut": "C"}, 22_716_840, 3.831, "enumeration"),
    ("resnet50", {}, 25_557_032, 3.858, "Table 1: 3.8 G"),
    ("resnet50_v1_5", {}, 25_557_032, 4.089, "torchvision: 25,557,032, 4.09 G"),
    ("resnet101", {}, 44_549_160, 7.570, "Table 1: 7.6 G"),
    ("resnet101_v1_5", {}, 44_549_160, 7.801, "torchvision: 44,549,160, 7.80 G"),
    ("resnet152", {}, 60_192_808, 11.282, "Table 1: 11.3 G"),
    ("resnet152_v1_5", {}, 60_192_808, 11.514, "torchvision: 60,192,808, 11.51 G"),
    ("resnet50", {"shortcut": "A"}, 22_780_456, 3.498, "enumeration"),
    ("resnet101", {"shortcut": "A"}, 41_772_584, 7.211, "enumeration"),
    ("resnet152", {"shortcut": "A"}, 57_416_232, 10.923, "enumeration"),
    ("resnet50", {"shortcut": "C"}, 40_128_552, 6.324, "enumeration"),
    ("resnet101", {"shortcut": "C"}, 76_981_288, 13.530, "enumeration"),
    ("resnet152", {"shortcut": "C"}, 107_335_720, 20.736, "enumeration"),
]


def built(name, **options):
    """The net, and the shapes of what its own `init` makes."""
    model = create_model(name, **options)
    side = 224 if model.stem == "imagenet" else 32
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    shapes = jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), images)
    return model, images, shapes


@pytest.mark.parametrize("shortcut", CIFAR)
@pytest.mark.parametrize("row", range(len(CIFAR_DEPTHS)), ids=[str(depth) for depth in CIFAR_DEPTHS])
def test_cifar_nets_have_the_known_counts(row, shortcut):
    parameters, multiply_adds = (column[row] for column in CIFAR[shortcut])
    summary = summarize(f"cifar_resnet{CIFAR_DEPTHS[row]}", shortcut=shortcut)
    assert summary.parameters == parameters
    assert round(summary.multiply_adds / 1e9, 5) == multiply_adds


@pytest.mark.parametrize("row", range(len(CIFAR_DEPTHS)), ids=[str(depth) for depth in CIFAR_DEPTHS])
def test_cifar_default_shortcut_is_option_a_and_the_plain_twin_costs_the_same(row):
    parameters, multiply_adds = (column[row] for column in CIFAR["A"])
    for family in ("resnet", "plain"):
        summary = summarize(f"cifar_{family}{CIFAR_DEPTHS[row]}")
        assert summary.parameters == parameters, family
        assert round(summary.multiply_adds / 1e9, 5) == multiply_adds, family


@pytest.mark.parametrize(
    ("name", "options", "parameters", "multiply_adds"),
    [row[:4] for row in IMAGENET],
    ids=[f"{name}{options.get('shortcut', '')} ({source})" for name, options, _, _, source in IMAGENET],
)
def test_imagenet_nets_have_the_known_counts(name, options, parameters, multiply_adds):
    summary = summarize(name, **options)
    assert summary.parameters == parameters
    assert round(summary.multiply_adds / 1e9, 3) == multiply_adds


def test_resnet50_v1_5_has_the_known_activations():
    # 11.11 M values from convolutions and classifier at 224 pixels: timm's table of models.
    assert round(summarize("resnet50_v1_5").activation_bytes / 4 / 1e6, 2) == 11.11


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cifar_resnet20", {}),
        ("cifar_resnet20", {"shortcut": "C", "scan": True, "remat": True}),
        ("cifar_resnet32", {"shortcut": "B", "activation_order": "pre", "width": 24}),
        ("cifar_resnet20", {"norm": "frozen"}),
        ("cifar_resnet20", {"activation_order": "norm_after_addition", "shortcut": "B"}),
        ("resnet50", {"stage_sizes": (2, 1), "activation_order": "relu_only_pre", "norm": "skipinit"}),
        ("cifar_resnet20", {"norm": "fixup", "scan": True}),
        ("cifar_plain20", {"num_classes": 7}),
        ("cifar_resnet1202", {"scan": True}),
        ("resnet18", {"shortcut": "C"}),
        ("resnet50", {"scan": True}),
        ("resnet50", {"shortcut": "A", "stage_sizes": (1, 2, 1, 1), "activation_order": "pre"}),
        ("resnet50_v1_5", {"stage_sizes": (2, 1)}),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value,
)
def test_table_agrees_with_the_net_that_is_built(name, options):
    model, images, shapes = built(name, **options)
    summary = summarize(name, **options)
    assert summary.parameters == sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))

    def features_of(variables, images):
        return model.apply(variables, images, train=False, return_features=True)[1]

    features = jax.eval_shape(features_of, shapes, images)
    outputs = {row.name: row.output for row in summary.rows}
    stages = [f"stage{stage}" for stage in range(1, len(model.stage_sizes) + 1)]
    for name in ("stem", *stages):
        assert outputs[name] == features[name].shape[1:], name
    assert tuple(row.blocks for row in summary.rows if row.name in stages) == model.stage_sizes


def test_multiply_adds_equal_those_of_the_traced_program():
    model, images, shapes = built("resnet50_v1_5", stage_sizes=(1, 2), shortcut="C", activation_order="pre")
    program = jax.make_jaxpr(lambda variables, x: model.apply(variables, x, train=False))(shapes, images)

    def multiply_adds(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "conv_general_dilated":
                kernel = equation.invars[1].aval.shape
                yield equation.outvars[0].aval.size * kernel[0] * kernel[1] * kernel[2]
            elif equation.primitive.name == "dot_general":
                yield equation.outvars[0].aval.size * equation.invars[0].aval.shape[-1]
            else:
                for inner in jaxprs_in_params(equation.params):
                    yield from multiply_adds(inner)

    expected = sum(multiply_adds(program.jaxpr))
    summary = summarize("resnet50_v1_5", stage_sizes=(1, 2), shortcut="C", activation_order="pre")
    assert summary.multiply_adds == expected


def test_half_the_activation_bytes_in_bfloat16_but_for_the_classifier():
    wide, narrow = (summarize("cifar_resnet20", dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert wide.rows[-1].activation_bytes == narrow.rows[-1].activation_bytes == 4 * 10
    assert wide.activation_bytes - 40 == 2 * (narrow.activation_bytes - 40)


@pytest.mark.parametrize("name", ["resnet152", "cifar_resnet1202"])
def test_deepest_nets_are_summarized_within_five_seconds(name):
    start = time.perf_counter()
    summarize(name)
    assert time.perf_counter() - start < 5


def test_image_size_and_classes_change_what_they_should():
    usual, other = summarize("resnet18"), summarize("resnet18", image_size=448, num_classes=7)
    assert other.image_shape == (448, 448, 3)
    assert other.rows[-1].parameters == 512 * 7 + 7
    assert sum(row.multiply_adds for row in other.rows[:-1]) == 4 * sum(row.multiply_adds for row in usual.rows[:-1])
    with pytest.raises(ValueError, match="image_size=0"):
        summarize("resnet18", image_size=0)


def test_printed_table_has_every_stage_and_the_totals():
    summary = summarize("resnet50")
    lines = str(summary).splitlines()
    assert lines[0] == "resnet50, one image of 224x224x3"
    names = [line.split()[0] for line in lines[1:] if not line.startswith("-")]
    assert names == ["stage", "stem", "stage1", "stage2", "stage3", "stage4", "classifier", "total"]
    assert "56x56x256" in next(line for line in lines if line.startswith("stage1"))
    totals = [f"{number:,}" for number in (25_557_032, summary.multiply_adds, summary.activation_bytes)]
    assert lines[-1].split() == ["total", "16", *totals]
