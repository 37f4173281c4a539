"""An exported net gives the net's own logits in a process that has jax and nothing of this library."""

import dataclasses
import hashlib
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from random_variables import random_variables

from resnet_jax.data.device_augment import normalize
from resnet_jax.data.input_description import InputDescription
from resnet_jax.distributed import data_mesh, replicate
from resnet_jax.models.registry import create_model
from resnet_jax.pretrained.export import export_inference

SHAPE = (16, 24, 3)
RANDOM = np.random.default_rng(0)
INPUT = InputDescription(
    SHAPE,
    RANDOM.uniform(0, 255, 3).astype(np.float32),
    RANDOM.uniform(50, 99, 3).astype(np.float32),
    ("cat", "dög", "a/../b", "\N{FROG FACE}", ""),
    short_side=24,
    resize="bilinear",
)
MEAN_IMAGE = dataclasses.replace(INPUT, mean=RANDOM.uniform(0, 255, SHAPE).astype(np.float32))
NETS = {
    "cifar": ("cifar_resnet20", {}),
    "imagenet": ("resnet50", {"pool_padding": "end", "bn_group_size": 4, "dropout_rate": 0.5}),
    "scan": ("cifar_resnet20", {"scan": True, "remat": True, "stage_sizes": (1, 3)}),
    "bfloat16": ("resnet18", {"dtype": jnp.bfloat16}),
    "no head": ("cifar_resnet20", {"num_classes": None}),
    "pre-activation, frozen": ("resnet18", {"activation_order": "pre", "norm": "frozen"}),
}


def tiny(name="cifar_resnet20", options=None):
    model = create_model(name, **{"width": 2, "stage_sizes": (1, 2), "num_classes": 5, **(options or {})})
    return model, random_variables(model, SHAPE, train=False)


def images(count):
    return np.random.default_rng(count).integers(0, 256, (count, *SHAPE), np.uint8)


def apply(model, variables, input, batch):
    logits = jax.jit(lambda x: model.apply(variables, normalize(x, input.mean, input.std), train=False))
    return np.asarray(logits(batch))


def read(path):
    return export.deserialize(path.read_bytes())


def convolutions(exported):
    """What is said of each convolution but for the names of its operands."""
    return re.findall(r"stablehlo\.convolution\(.*?\) (.*) loc", exported.mlir_module())


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A file with all there can be beside it, the net and its variables."""
    model, variables = tiny()
    path = tmp_path_factory.mktemp("exported") / "new" / "tiny.v1.jax_export"
    about = {"name": "tiny", "metrics": {"error_top1": np.float32(0.25)}, "source": "here", "license": "Apache-2.0"}
    assert export_inference(path, model, variables, input=INPUT, **about) == path
    return path, model, variables


@pytest.mark.parametrize("net", NETS)
def test_the_function_is_the_net_for_every_batch(tmp_path, net):
    model, variables = tiny(*NETS[net])
    input = MEAN_IMAGE if net == "scan" else INPUT
    run = read(export_inference(tmp_path / "net.jax_export", model, variables, input=input)).call
    for count in (1, 3, 8):
        expected, found = apply(model, variables, input, images(count)), np.asarray(run(images(count)))
        assert (found.shape, found.dtype) == (expected.shape, np.float32)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_folded_it_is_the_same_but_for_rounding(tmp_path):
    model, variables = tiny()
    path = tmp_path / "net.jax_export"
    run = read(export_inference(path, model, variables, input=INPUT, fold_batch_norm=True)).call
    expected = apply(model, variables, INPUT, images(3))
    assert np.abs(np.asarray(run(images(3))) - expected).max() < 1e-5 * np.abs(expected).max()
    program = jax.jit(run).lower(images(3)).compile().as_text()
    assert not [line for line in program.splitlines() if " multiply(" in line and "norm" in line]


def test_it_runs_where_there_is_only_jax(exported, tmp_path):
    path, model, variables = exported
    np.save(tmp_path / "images.npy", images(3))
    code = f"""
import sys
# An import of a name that stands for None fails.
sys.modules.update(dict.fromkeys(["resnet_jax", "flax", "optax", "orbax", "jaxtyping", "safetensors"]))
import numpy
import jax.export
with open({str(path)!r}, "rb") as file:
    run = jax.jit(jax.export.deserialize(file.read()).call)
numpy.save("logits.npy", run(numpy.load("images.npy")))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = apply(model, variables, INPUT, images(3))
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_one_file_is_for_all_platforms_and_one_device(tmp_path):
    model, variables = tiny()
    on_all_devices = replicate(variables, data_mesh())
    path = tmp_path / "net.jax_export"
    found = read(export_inference(path, model, on_all_devices, input=INPUT))
    assert (found.platforms, found.nr_devices, found.has_vjp()) == (("cpu", "cuda", "tpu"), 1, False)
    assert not found.ordered_effects and not found.unordered_effects and not found.disabled_safety_checks
    # jax writes each convolution once for every platform; no platform has one of its own, whatever machine exports.
    for platform in ("cpu", "cuda", "rocm", "tpu"):
        options = {"platforms": [platform], "overwrite": True}
        alone = read(export_inference(path, model, variables, input=INPUT, **options))
        assert alone.platforms == (platform,)
        assert len(convolutions(alone)) == 7
        assert set(convolutions(alone)) == set(convolutions(found))


def test_what_belongs_to_its_use_is_beside_it(exported):
    path, _, _ = exported
    assert sorted(file.name for file in path.parent.iterdir()) == ["tiny.v1.jax_export", "tiny.v1.jax_export.json"]
    about = json.loads((path.parent / "tiny.v1.jax_export.json").read_text())
    assert about["file"] == path.name
    assert about["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert about["class_names"] == list(INPUT.class_names)
    assert (about["image_shape"], about["short_side"], about["resize"]) == (list(SHAPE), 24, "bilinear")
    assert (about["takes"], about["gives"]) == ("uint8[b,16,24,3]: images, not normalised", "float32[b,5]: logits")
    assert (about["jax"], about["platforms"]) == (jax.__version__, ["cpu", "cuda", "tpu"])
    assert about["calling_convention_version"] == read(path).calling_convention_version
    assert (about["name"], about["source"], about["license"]) == ("tiny", "here", "Apache-2.0")
    assert about["metrics"] == {"error_top1": 0.25}
    assert (about["net"]["width"], about["fold_batch_norm"]) == (2, False)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (images(3).astype(np.float32), "expected uint8 and called with float32"),
        (images(3)[:, :15], r"expected \(b, 16, 24, 3\) and called with \(3, 15, 24, 3\)"),
        (images(3)[0], "Rank mismatch"),
        (images(3)[:0], "Expected value >= 1"),
    ],
    ids=["floats", "other size", "one image", "none"],
)
def test_other_images_are_refused(exported, wrong, message):
    with pytest.raises(ValueError, match=message):
        read(exported[0]).call(wrong)


def without_classifier(variables):
    return {**variables, "params": {key: value for key, value in variables["params"].items() if key != "classifier"}}


WRONG = {
    "ending": ({"path": "net.stablehlo"}, "NAME.jax_export, found 'net.stablehlo'"),
    "no platform": ({"platforms": ()}, "allowed are one or more of cpu, cuda, rocm, tpu"),
    "other platform": ({"platforms": ("cpu", "gpu")}, "gpu.*allowed are one or more of cpu, cuda, rocm, tpu"),
    "variables": ({"variables": without_classifier(tiny()[1])}, "was not written: tensor params/classifier/.* missing"),
    "class names": ({"input": dataclasses.replace(INPUT, class_names=("cat",))}, "class_names are 1, .* 5 classes"),
    "mean": ({"input": dataclasses.replace(INPUT, mean=np.float64([1, 2, 3]))}, "input/mean is float64"),
    "mean not finite": ({"input": dataclasses.replace(INPUT, mean=np.float32([1, np.nan, 3]))}, "mean must be finite"),
    "std": ({"input": dataclasses.replace(INPUT, std=np.float32([1, 0, 1]))}, "input/std must be finite and above 0"),
    "metrics": ({"metrics": {"error": float("nan")}}, "error=nan must be a finite number"),
}


@pytest.mark.parametrize("case", WRONG)
def test_nothing_is_written_of_what_is_wrong(tmp_path, case):
    change, message = WRONG[case]
    model, variables = tiny()
    arguments = {"path": "net.jax_export", "model": model, "variables": variables, "input": INPUT, **change}
    arguments["path"] = tmp_path / "new" / arguments["path"]
    with pytest.raises(ValueError, match=message):
        export_inference(**arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["net.jax_export", "net.jax_export.json"])
def test_what_is_there_is_replaced_only_if_that_is_wanted(tmp_path, monkeypatch, name):
    path, (model, variables) = tmp_path / "net.jax_export", tiny()
    (tmp_path / name).write_text("precious")
    (tmp_path / "net.json").write_text("precious")
    with monkeypatch.context() as patch, pytest.raises(FileExistsError, match=f"/{name} is there already; overwrite="):
        patch.setattr("jax.export.export", None)  # no work is done before
        export_inference(path, model, variables, input=INPUT)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(["net.json", name])
    assert (tmp_path / name).read_text() == "precious"
    export_inference(path, model, variables, input=INPUT, overwrite=True)
    about = json.loads((tmp_path / "net.jax_export.json").read_text())
    assert about["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (tmp_path / "net.json").read_text() == "precious"
