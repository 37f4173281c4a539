"""The nets by name, the errors of a wrong request, and the values a net starts from."""

import math
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.models.registry import create_model, initialize, list_models

SHAPE = (8, 8, 3)


@pytest.fixture(scope="module")
def resnet20():
    model = create_model("cifar_resnet20")
    return model, initialize(model, jax.random.key(0), SHAPE)


def leaves(tree):
    """Path, as a tuple of names, and value of every leaf."""
    return [(tuple(key.key for key in path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)]


def norm_leaves(model, name):
    """Every initial `name` of a normalization layer, without drawing the kernels."""

    @jax.jit
    def select(key):
        variables = model.init(key, jnp.zeros((1, *SHAPE)), train=False)
        return {"/".join(path): leaf for path, leaf in leaves(variables["params"]) if path[-1] == name}

    return select(jax.random.key(0))


def test_every_listed_net_has_the_layers_of_its_name():
    names = list_models()
    assert len(names) == len(set(names))
    for name in names:
        model = create_model(name)
        depth = int(re.search(r"(?:resnet|plain)(\d+)", name)[1])
        layers_per_block = {"basic": 2, "bottleneck": 3}[model.block]
        assert layers_per_block * sum(model.stage_sizes) + 2 == depth, name
        assert (model.shortcut is None) == ("plain" in name), name
        assert model.stride_in == ("3x3" if "v1_5" in name else "1x1"), name


def test_nets_of_the_paper_are_all_listed():
    imagenet = {*(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)), "plain18", "plain34"}
    imagenet |= {f"resnet{depth}_v1_5" for depth in (50, 101, 152)}
    cifar = {f"cifar_{kind}{depth}" for kind in ("resnet", "plain") for depth in (20, 32, 44, 56, 110, 1202)}
    assert set(list_models()) == imagenet | cifar


@pytest.mark.parametrize("name", ["cifar_resnet8", "cifar_plain14", "cifar_resnet164"])
def test_any_cifar_depth_of_6n_plus_2(name):
    depth = int(re.search(r"\d+", name)[0])
    assert create_model(name).stage_sizes == ((depth - 2) // 6,) * 3


def test_a_cifar_net_of_bottlenecks_has_the_depth_of_its_name():
    model = create_model("cifar_resnet29", block="bottleneck")
    assert (model.block, model.stage_sizes) == ("bottleneck", (3, 3, 3))
    assert create_model("cifar_plain20", block="bottleneck").stage_sizes == (2, 2, 2)
    assert create_model("cifar_resnet8", block="bottleneck", stage_sizes=(1, 2)).stage_sizes == (1, 2)


def test_options_replace_what_the_name_says_and_none_keeps_it():
    model = create_model("resnet50", shortcut="C", stage_sizes=[1, 2], dtype=jnp.bfloat16, width=8)
    assert (model.shortcut, model.stage_sizes, model.width) == ("C", (1, 2), 8)
    assert model.dtype == create_model("resnet50", dtype="bfloat16").dtype == jnp.bfloat16
    assert create_model("resnet50", shortcut=None, width=None, dtype=None) == create_model("resnet50")
    assert create_model("resnet50", num_classes=None).num_classes is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet51", {}, "unknown model 'resnet51'; did you mean 'resnet50'"),
        ("cifar_resnt20", {}, "unknown model 'cifar_resnt20'; did you mean 'cifar_resnet20'"),
        ("", {}, "unknown model ''; .*Known: resnet18,"),
        ("cifar_resnet21", {}, "cifar_resnet21: .*6n . 2 layers; the nearest depths are 20 and 26"),
        ("cifar_plain2", {}, "cifar_plain2: .*the nearest depths are 8 and 14"),
        ("cifar_resnet32", {"block": "bottleneck"}, "of bottleneck blocks has 9n . 2 layers; .* are 29 and 38"),
        ("cifar_resnet20", {"block": "wide"}, "block=wide is not one of basic, bottleneck"),
        ("resnet50", {"shortcuts": "B"}, "unknown option 'shortcuts' of resnet50; did you mean 'shortcut'"),
        ("resnet50", {"parent": None}, "unknown option 'parent'"),
        ("resnet50", {"shortcut": "D"}, "resnet50: shortcut=D is not one of A, B, C"),
        ("resnet50", {"stride_in": "5x5"}, "stride_in=5x5 is not one of 1x1, 3x3"),
        ("resnet50", {"activation_order": "both"}, "activation_order=both is not one of post, norm_after_addition"),
        ("resnet50", {"norm": "layer"}, "norm=layer is not one of batch, frozen"),
        ("resnet50", {"block": "wide"}, "block=wide is not one of basic, bottleneck"),
        ("resnet50", {"stem": "vgg"}, "stem=vgg is not one of imagenet, cifar"),
        ("resnet50", {"dtype": "float16"}, "dtype=float16 is not one of float32, bfloat16"),
        ("resnet50", {"stage_sizes": (3, 0)}, r"stage_sizes=\(3, 0\) must be positive"),
        ("resnet50", {"stage_sizes": ()}, r"stage_sizes=\(\) must be positive"),
        ("resnet50", {"width": 0}, "width=0 must be a whole number, at least 1"),
        ("resnet50", {"num_classes": 0}, "num_classes=0 must be a whole number, at least 1"),
        ("resnet50", {"bn_group_size": -32}, "bn_group_size=-32 must be a whole number, at least 1"),
        ("resnet50", {"dropout_rate": 1.0}, r"dropout_rate=1.0 must be a number in \[0, 1\)"),
        ("plain34", {"shortcut": "A"}, "plain34 has no shortcuts, so shortcut='A' means nothing"),
        ("cifar_plain20", {"shortcut": "A"}, "cifar_plain20 has no shortcuts"),
        ("resnet34", {"stride_in": "3x3"}, "resnet34 has basic blocks"),
        ("cifar_resnet20", {"stride_in": "1x1"}, "cifar_resnet20 has basic blocks"),
        ("resnet18", {"activation_order": "pre", "zero_init_residual": True}, "zero_init_residual needs"),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else None,
)
def test_wrong_requests_are_refused_with_what_is_allowed(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **options)


def test_initialize_is_init_bit_for_bit(resnet20):
    model, variables = resnet20
    expected = model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)), train=False)
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_the_key_alone_decides_the_parameters(resnet20):
    model, variables = resnet20
    again, other = (initialize(model, jax.random.key(seed), SHAPE) for seed in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, variables, again)
    kernels = [(a, b) for (path, a), (_, b) in zip(leaves(variables), leaves(other), strict=True) if "kernel" in path]
    assert all((a != b).all() for a, b in kernels)
    # No two layers of one shape share their draw.
    blocks = [leaf.tobytes() for path, leaf in leaves(jax.device_get(variables)) if path[-1] == "kernel"]
    assert len(set(blocks)) == len(blocks)


def test_kernels_are_he_normal_over_the_fan_in(resnet20):
    standard = []
    for path, kernel in leaves(resnet20[1]["params"]):
        if path[-1] == "kernel":
            fan_in = math.prod(kernel.shape[:-1])
            standard.append(np.ravel(kernel) / math.sqrt(2.0 / fan_in))
            # The sample's standard deviation has a relative error of 1 / sqrt(2 n); four of them.
            deviation = 4 / math.sqrt(2 * kernel.size)
            assert standard[-1].std() == pytest.approx(1.0, rel=deviation), path
    values = np.concatenate(standard)
    assert values.std() == pytest.approx(1.0, rel=0.01)
    assert abs(values.mean()) < 0.01
    # A Gaussian, not the truncated one, which ends at 2.27 of its standard deviations: of 270,000 draws
    # 0.27 % lie beyond 3.
    assert np.mean(np.abs(values) > 3) == pytest.approx(0.0027, rel=0.2)


def test_norms_start_as_the_identity(resnet20):
    for path, leaf in leaves(resnet20[1]):
        if path[-1] in ("scale", "var"):
            assert (leaf == 1).all(), path
        elif path[-1] in ("bias", "mean"):
            assert (leaf == 0).all(), path


@pytest.mark.parametrize(("block", "last"), [("basic", "norm2"), ("bottleneck", "norm3")])
def test_zero_init_residual_zeroes_the_last_gamma_of_each_block_only(block, last):
    options = {"block": block, "stage_sizes": (2, 2), "shortcut": "B"}
    for path, scale in norm_leaves(create_model("cifar_resnet8", zero_init_residual=True, **options), "scale").items():
        assert (scale == (0 if path.endswith(f"{last}/scale") else 1)).all(), path
    for path, scale in norm_leaves(create_model("cifar_resnet8", **options), "scale").items():
        assert (scale == 1).all(), path


COLD_START = """
import time
import jax
from resnet_jax.models.registry import create_model, initialize
model, key = create_model("cifar_resnet110"), jax.random.key(0)
start = time.process_time()
jax.block_until_ready(initialize(model, key, (32, 32, 3)))
print(time.process_time() - start)
"""


def test_a_fresh_process_initialises_110_layers_within_ten_seconds():
    # Without compiled programs of an earlier run. Processor time, since other tests may be running beside.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_COMPILATION_CACHE")}
    finished = subprocess.run(
        [sys.executable, "-c", COLD_START], env=environment, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    assert float(finished.stdout) < 10
