"""What is written for torchvision, timm and Hugging Face has their names, loads there, and computes the same."""

import dataclasses
import json
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import parity_nets as nets
import pytest
from random_variables import random_variables
from safetensors import safe_open
from safetensors.numpy import load_file

from resnet_jax.data.input_description import InputDescription
from resnet_jax.models.normalization import freeze_batch_norm
from resnet_jax.models.registry import create_model
from resnet_jax.models.stacking import stack_blocks
from resnet_jax.pretrained.layout import variable_shapes
from resnet_jax.pretrained.pytorch import interchange
from resnet_jax.pretrained.pytorch.huggingface_layout import infer_huggingface
from resnet_jax.pretrained.pytorch.infer_torch import infer_torch
from resnet_jax.pretrained.pytorch.interchange import write_huggingface, write_timm, write_torchvision
from resnet_jax.pretrained.pytorch.torch_input import crop_fraction
from resnet_jax.pretrained.pytorch.torch_layout import huggingface_spelling, torchvision_spelling
from resnet_jax.pretrained.pytorch.torch_variables import read_variables, torch_tensors

SHAPE = (64, 64, 3)
TINY = {"width": 2, "stage_sizes": (1, 2), "num_classes": 5}
MEAN, STD = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
NAMES = ("cat", "dög", "a/b", "\N{FROG FACE}", "cat")
INPUT = InputDescription(SHAPE, MEAN, STD, NAMES, short_side=73, resize="pillow_bicubic", source="published")
# Small in everything but what torchvision and timm take for granted.
SMALL = {"num_classes": 5}


def make(name="resnet18", **options):
    model = create_model(name, **{**SMALL, **options})
    return model, random_variables(model, SHAPE, train=False)


def small_zeros(name, **options):
    model = create_model(name, **{**SMALL, **options})
    return model, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variable_shapes(model, 3))


@pytest.fixture(scope="module")
def basic():
    return make()


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("library", ["torchvision", "timm", "huggingface"])
@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_names_and_shapes_are_the_libraries_own(library, depth):
    model, variables = small_zeros(f"resnet{depth}" if depth < 50 else f"resnet{depth}_v1_5", num_classes=1000)
    spelling = huggingface_spelling() if library == "huggingface" else torchvision_spelling()
    tensors = torch_tensors(model, variables, spelling)
    assert {name: value.shape for name, value in tensors.items()} == nets.real_names(library, f"resnet{depth}")
    dtypes = {name: np.int64 if name.endswith("tracked") else np.float32 for name in tensors}
    assert {name: value.dtype for name, value in tensors.items()} == dtypes


def test_a_torchvision_file_gives_the_net_back(tmp_path, basic):
    model, variables = basic
    path = write_torchvision(tmp_path / "new" / "net.safetensors", model, variables)
    tensors = nets.stored(load_file(path))
    net = infer_torch(tensors)
    assert net.model == model
    jax.tree.map(np.testing.assert_array_equal, read_variables(net, tensors), jax.tree.map(np.asarray, variables))
    with safe_open(path, framework="np") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_huggingface_folder_gives_the_net_back(tmp_path):
    model, variables = make("resnet50", **TINY)
    folder = write_huggingface(tmp_path / "net", model, variables, input=INPUT)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    tensors = nets.stored(load_file(folder / "model.safetensors"))
    net = infer_huggingface(read_json(folder / "config.json"), tensors)
    assert net.model == model
    jax.tree.map(np.testing.assert_array_equal, read_variables(net, tensors), jax.tree.map(np.asarray, variables))


def test_huggingface_is_told_the_input_and_the_classes(tmp_path):
    model, variables = make(**TINY)
    folder = write_huggingface(tmp_path / "net", model, variables, input=INPUT)
    processor, config = read_json(folder / "preprocessor_config.json"), read_json(folder / "config.json")
    assert processor["size"] == {"shortest_edge": 64} and processor["resample"] == 3 and processor["do_resize"]
    assert int(64 / processor["crop_pct"]) == 73
    np.testing.assert_allclose(np.array(processor["image_mean"]) * 255, MEAN, rtol=1e-6)
    np.testing.assert_allclose(np.array(processor["image_std"]) * 255, STD, rtol=1e-6)
    assert config["id2label"] == {str(number): name for number, name in enumerate(NAMES)}


def test_timm_is_told_the_input_and_the_classes(tmp_path, basic):
    input = dataclasses.replace(INPUT, resize="pillow_bilinear")
    folder = write_timm(tmp_path / "net", *basic, input=input)
    config = read_json(folder / "config.json")
    assert (config["architecture"], config["num_classes"]) == ("resnet18", 5)
    view = config["pretrained_cfg"]
    assert (view["input_size"], view["interpolation"], view["crop_mode"]) == ([3, 64, 64], "bilinear", "center")
    assert math.floor(64 / view["crop_pct"]) == 73 and view["label_names"] == list(NAMES)
    np.testing.assert_allclose(np.array(view["mean"]) * 255, MEAN, rtol=1e-6)
    np.testing.assert_allclose(np.array(view["std"]) * 255, STD, rtol=1e-6)


def test_images_that_are_taken_as_they_are_are_not_resized(tmp_path, basic):
    input = dataclasses.replace(INPUT, short_side=None, resize="area")
    folder = write_huggingface(tmp_path / "huggingface", *basic, input=input)
    assert read_json(folder / "preprocessor_config.json")["do_resize"] is False
    folder = write_timm(tmp_path / "timm", *basic, input=input)
    assert read_json(folder / "config.json")["pretrained_cfg"]["crop_pct"] == 1.0


@pytest.mark.parametrize(("side", "short_side"), [(224, 256), (224, 232), (224, 235), (288, 288), (224, 224)])
def test_the_crop_s_share_gives_back_the_side(side, short_side):
    share = json.loads(json.dumps(crop_fraction(side, short_side)))
    assert math.floor(side / share) == int(side / share) == short_side


def test_every_crop_s_share_gives_back_the_side():
    """side / share falls short of some sides (e.g. 224 of 235 it does not, 7 of 25 it would)."""
    pairs = [(side, short) for side in range(1, 300, 7) for short in range(side, 400)]
    assert any(math.floor(side / (side / short)) != short for side, short in pairs)
    assert all(math.floor(side / crop_fraction(side, short)) == short for side, short in pairs)


def test_a_crop_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="a crop of 224 pixels does not fit an image resized to 200"):
        crop_fraction(224, 200)


def test_stacked_and_frozen_nets_are_written_as_ordinary_ones(tmp_path, basic):
    model, variables = basic
    first = write_torchvision(tmp_path / "plain.safetensors", model, variables).read_bytes()
    stacked = write_torchvision(tmp_path / "stacked.safetensors", model.clone(scan=True), stack_blocks(variables))
    frozen = model.clone(norm="frozen")
    frozen = write_torchvision(tmp_path / "frozen.safetensors", frozen, freeze_batch_norm(variables))
    assert stacked.read_bytes() == first and frozen.read_bytes() == first


ALL = ("torchvision", "timm", "huggingface")
OPTIONS = [
    (ALL, "plain18", {}, "has no plain nets"),
    (ALL, "resnet18", {"activation_order": "pre"}, "no nets with activation_order='pre'; only 'post'"),
    (ALL, "resnet18", {"norm": "none"}, "no nets with norm='none'; only 'batch' and 'frozen'"),
    (ALL, "resnet18", {"shortcut": "A"}, "no nets with shortcut='A'; only 'B'"),
    (ALL, "resnet18", {"shortcut": "C"}, "no nets with shortcut='C'"),
    (ALL, "resnet18", {"pool_padding": "end"}, "no nets with pool_padding='end'"),
    (ALL, "resnet18", {"stem": "cifar"}, "no nets with stem='cifar'"),
    (ALL, "resnet18", {"num_classes": None}, "with a classifier; num_classes=None"),
    (ALL[:2], "resnet50", {}, "no nets with stride_in='1x1', only '3x3'; Hugging Face's can be written"),
    (ALL[:2], "resnet18", {"width": 32}, "only nets of four stages and width 64, found 4 and 32"),
    (ALL[:2], "resnet18", {"stage_sizes": (1, 1)}, "only nets of four stages and width 64, found 2 and 64"),
    (("timm",), "resnet18", {"stage_sizes": (1, 1, 1, 1)}, r"timm has no net of basic blocks with stage_sizes=\(1,"),
]


def write(library, path, model, variables, input=INPUT):
    if library == "torchvision":
        return write_torchvision(path.with_suffix(".safetensors"), model, variables)
    return (write_timm if library == "timm" else write_huggingface)(path, model, variables, input=input)


@pytest.mark.parametrize(
    ("library", "name", "options", "message"), [(lib, *case) for libs, *case in OPTIONS for lib in libs]
)
def test_nets_that_a_library_cannot_express_are_refused(tmp_path, library, name, options, message):
    model = create_model(name, **{**SMALL, **options})
    with pytest.raises(ValueError, match=message):
        write(library, tmp_path / "net", model, {})
    assert list(tmp_path.iterdir()) == []


INPUTS = [
    (
        ("timm", "huggingface"),
        {"mean": np.zeros(SHAPE, np.float32)},
        "no place for a mean image.* 0,0,0, as --mean changes",
    ),
    (
        ("timm", "huggingface"),
        {"resize": "area"},
        "no resize='area'; --resize=pillow_bilinear or pillow_bicubic is near",
    ),
    (("timm", "huggingface"), {"resize": "bilinear"}, "no resize='bilinear'"),
    (("timm", "huggingface"), {"image_shape": (64, 32, 3)}, r"square images of three channels; found \(64, 32, 3\)"),
    (("timm", "huggingface"), {"image_shape": (64, 64, 1)}, "three channels"),
    (("timm", "huggingface"), {"short_side": 60}, "a crop of 64 pixels does not fit an image resized to 60"),
    (("timm", "huggingface"), {"class_names": ("a",)}, "1 class names, the net 5 classes"),
    (("huggingface",), {"image_shape": (384, 384, 3), "short_side": 400}, "cuts out no squares of 384 pixels"),
]


@pytest.mark.parametrize(("library", "changes", "message"), [(lib, *case) for libs, *case in INPUTS for lib in libs])
def test_inputs_that_a_library_cannot_express_are_refused(tmp_path, library, changes, message):
    with pytest.raises(ValueError, match=message):
        write(library, tmp_path / "net", create_model("resnet18", **SMALL), {}, dataclasses.replace(INPUT, **changes))
    assert list(tmp_path.iterdir()) == []


def test_variables_of_another_net_leave_nothing_behind(tmp_path, basic):
    model, variables = basic
    for library in ALL:
        with pytest.raises(ValueError, match="params/classifier/kernel is float32 of shape"):
            write(library, tmp_path / "net", model.clone(num_classes=4), variables, dataclasses.replace(
                INPUT, class_names=NAMES[:4]
            ))  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_ending_is_refused(tmp_path, basic):
    with pytest.raises(ValueError, match="called NAME.safetensors, found 'net.pth'"):
        write_torchvision(tmp_path / "net.pth", *basic)


def test_a_folder_that_is_not_empty_is_refused(tmp_path, basic):
    (tmp_path / "notes.txt").write_text("mine")
    for there in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(FileExistsError, match="is there already; choose a new folder or an empty one"):
            write_huggingface(there, *basic, input=INPUT)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("to", ["empty", "nothing"])
def test_a_link_is_refused(tmp_path, basic, to):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / to)
    with pytest.raises(FileExistsError, match="link is there already"):
        write_huggingface(tmp_path / "link", *basic, input=INPUT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "link"]
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_an_empty_folder_is_filled_with_the_permissions_of_any_other(tmp_path, mask):
    before = os.umask(mask)
    try:
        (tmp_path / "net").mkdir(mode=0o700)
        write_huggingface(tmp_path / "net", *make(**TINY), input=INPUT)
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "file").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "net").stat().st_mode == (tmp_path / "other").stat().st_mode
    modes = [path.stat().st_mode for path in (tmp_path / "net").iterdir()]
    assert modes == [(tmp_path / "other" / "file").stat().st_mode] * 3


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_nobody_else_s_unfinished_folder_is_touched(tmp_path, kind):
    mine = tmp_path / ("net.unfinished" if kind == "folder" else "mine")
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    if kind == "link":
        (tmp_path / "net.unfinished").symlink_to(mine)
    write_huggingface(tmp_path / "net", *make(**TINY), input=INPUT)
    assert {path.name for path in tmp_path.iterdir()} == {"net", "net.unfinished", mine.name}
    assert (tmp_path / "net.unfinished" / "thesis.txt").read_text() == "mine"
    assert len(list(mine.iterdir())) == 1 and len(list((tmp_path / "net").iterdir())) == 3


def test_of_two_writers_at_once_one_has_the_folder_whole_and_the_other_is_told(tmp_path, monkeypatch):
    model, variables = make(**TINY)
    others = jax.tree.map(np.zeros_like, variables)
    write_text = interchange.write_text_atomically

    def in_between(path, text):
        monkeypatch.setattr(interchange, "write_text_atomically", write_text)
        write_huggingface(tmp_path / "net", model, others, input=INPUT)
        return write_text(path, text)

    monkeypatch.setattr(interchange, "write_text_atomically", in_between)
    with pytest.raises(FileExistsError, match="is there already; choose a new folder or an empty one"):
        write_huggingface(tmp_path / "net", model, variables, input=INPUT)
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    names = {path.name for path in (tmp_path / "net").iterdir()}
    assert names == {"config.json", "preprocessor_config.json", "model.safetensors"}
    tensors = load_file(tmp_path / "net" / "model.safetensors")
    assert not any(tensor.any() for tensor in tensors.values())


def test_a_folder_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(path, text):
        raise OSError("disk full")

    monkeypatch.setattr(interchange, "write_text_atomically", fail)
    with pytest.raises(OSError, match="disk full"):
        write_huggingface(tmp_path / "net", *make(**TINY), input=INPUT)
    assert list(tmp_path.iterdir()) == []


# Against the libraries themselves, where they are installed.

PICTURES = nets.images("torchvision")


def assert_same_logits(module, model, variables):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        theirs = module.eval()(torch.from_numpy(PICTURES))
    theirs = getattr(theirs, "logits", theirs).numpy()
    ours = np.asarray(model.apply(variables, jnp.asarray(PICTURES.transpose(0, 2, 3, 1)), train=False))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


BOTH = pytest.mark.parametrize("name", ["resnet18", "resnet50_v1_5"])
FOREIGN = pytest.mark.filterwarnings("default")


@FOREIGN
@BOTH
def test_torchvision_loads_it(tmp_path, name):
    models = pytest.importorskip("torchvision").models
    load = pytest.importorskip("safetensors.torch").load_file
    model, variables = make(name)
    module = getattr(models, name.removesuffix("_v1_5"))(num_classes=5)
    module.load_state_dict(load(write_torchvision(tmp_path / "net.safetensors", model, variables)), strict=True)
    assert_same_logits(module, model, variables)


@FOREIGN
@BOTH
def test_timm_loads_it(tmp_path, name):
    timm = pytest.importorskip("timm")
    model, variables = make(name)
    folder = write_timm(tmp_path / "net", model, variables, input=INPUT)
    module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert_same_logits(module, model, variables)
    config = timm.data.resolve_data_config(model=module)
    resize, crop, *_ = timm.data.create_transform(**config).transforms
    assert (resize.size, resize.interpolation.value, tuple(crop.size)) == (73, "bicubic", (64, 64))
    np.testing.assert_allclose(np.array(config["mean"]) * 255, MEAN, rtol=1e-6)


@FOREIGN
@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet18", {}), ("resnet50_v1_5", {}), ("resnet50", {"width": 8, "stage_sizes": (1, 2, 1)})],
)
def test_huggingface_loads_it(tmp_path, name, options):
    transformers = pytest.importorskip("transformers")
    model, variables = make(name, **options)
    folder = write_huggingface(tmp_path / "net", model, variables, input=INPUT)
    module, report = transformers.ResNetForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert module.config.id2label == dict(enumerate(NAMES))
    assert_same_logits(module, model, variables)


@FOREIGN
def test_huggingface_prepares_images_as_we_do(tmp_path):
    transformers = pytest.importorskip("transformers")
    from PIL import Image

    folder = write_huggingface(tmp_path / "net", *make(**TINY), input=INPUT)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    theirs = np.asarray(processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"])[0]
    resized = np.asarray(Image.fromarray(pixels).resize((97, 73), Image.Resampling.BICUBIC), np.float32)
    ours = (resized[4:68, 16:80] - MEAN) / STD
    np.testing.assert_allclose(theirs.transpose(1, 2, 0), ours, atol=1e-4)
