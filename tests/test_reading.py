"""Every kind of weight file is recognised by its content, and comes with what its net expects of its input."""

import json
import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch_files
from caffe_files import MsraNet
from random_variables import random_images, random_variables
from safetensors.numpy import load_file, save_file

from resnet_jax.config_files import load_config
from resnet_jax.data.input_description import InputDescription
from resnet_jax.evaluation.run import evaluate
from resnet_jax.evaluation.scores import Scores
from resnet_jax.models.registry import create_model
from resnet_jax.pretrained import reading
from resnet_jax.pretrained.layout import variable_shapes
from resnet_jax.pretrained.pytorch.interchange import write_huggingface, write_timm, write_torchvision
from resnet_jax.pretrained.pytorch.torch_layout import torchvision_spelling
from resnet_jax.pretrained.pytorch.torch_variables import torch_tensors
from resnet_jax.pretrained.reading import load_weights
from resnet_jax.pretrained.weights import save_pretrained

NAMES = tuple("abcde")
INPUT = InputDescription(
    (224, 224, 3),
    np.float32([120, 110, 100]),
    np.float32([60, 50, 40]),
    NAMES,
    short_side=256,
    resize="pillow_bicubic",
    source="measured",
)
IMAGENET_MEAN = np.float32([123.675, 116.28, 103.53])


@pytest.fixture(scope="module")
def net():
    model = create_model("resnet18", num_classes=5)
    return model, random_variables(model, (32, 32, 3), train=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory, net):
    """The same net in every form that can hold it."""
    folder = tmp_path_factory.mktemp("files")
    tensors = torch_tensors(*net, torchvision_spelling())
    return {
        "resnet_jax": save_pretrained(folder / "own.safetensors", *net, input=INPUT),
        "torchvision": write_torchvision(folder / "torchvision.safetensors", *net),
        "torchvision, zip": write_pth(folder / "net.pth", tensors, "zip"),
        "torchvision, legacy": write_pth(folder / "legacy.pth", tensors, "legacy"),
        "timm": write_timm(folder / "timm", *net, input=INPUT),
        "huggingface": write_huggingface(folder / "huggingface", *net, input=INPUT),
    }


def write_pth(path, tensors, form):
    """A state dict as torch.save writes it, but for the counts of batches."""
    values = {name: value for name, value in tensors.items() if value.dtype == np.float32}
    body = torch_files.mapping({
        name: torch_files.tensor(str(key), value.size, value.shape, tuple(step // 4 for step in value.strides))
        for key, (name, value) in enumerate(values.items())
    })  # fmt: skip
    storages = {str(key): value.tobytes() for key, value in enumerate(values.values())}
    if form == "zip":
        return torch_files.write_zip(path, body, storages=storages)
    path.write_bytes(torch_files.legacy_bytes(body, storages=storages))
    return path


FORMS = ["resnet_jax", "torchvision", "torchvision, zip", "torchvision, legacy", "timm", "huggingface"]


@pytest.mark.parametrize("form", FORMS)
def test_the_same_net_comes_out_of_every_form(files, net, form):
    file = load_weights(files[form])
    model, variables = net
    assert (file.model, file.input.class_names[0] in "a0") == (model, True)
    jax.tree.map(np.testing.assert_array_equal, file.variables, variables)
    stated = form in ("resnet_jax", "timm", "huggingface")
    assert file.input.resize == ("pillow_bicubic" if stated else "pillow_bilinear")
    np.testing.assert_allclose(file.input.mean, INPUT.mean if stated else IMAGENET_MEAN, rtol=1e-6)
    np.testing.assert_allclose(file.input.std[0], 60 if stated else 58.395, rtol=1e-6)
    assert file.input.class_names == (NAMES if stated else tuple("01234"))
    assert file.name == (None if form == "resnet_jax" else "resnet18")


@pytest.mark.parametrize("form", FORMS)
def test_a_format_that_the_content_is_not_is_refused(files, form):
    found = form.split(",")[0]
    assert load_weights(files[form], format=found).model.num_classes == 5
    with pytest.raises(ValueError, match=f"{re.escape(str(files[form]))} .*: its format is {found}, not msra"):
        load_weights(files[form], format="msra")


def test_a_state_dict_can_be_said_to_be_timm_s(files):
    file = load_weights(files["torchvision, zip"], format="timm")
    assert (file.input.resize, file.input.short_side) == ("pillow_bicubic", 256)
    assert file.input.source.startswith("assumed: timm")
    assert load_weights(files["torchvision"]).input.resize == "pillow_bilinear"


def test_the_weights_in_a_folder_may_be_named_themselves(files):
    file = load_weights(files["huggingface"] / "model.safetensors")
    assert file.input.class_names == NAMES


def test_a_folder_s_weights_may_be_pytorch_s(tmp_path, files, net):
    shutil.copy(files["timm"] / "config.json", tmp_path)
    write_pth(tmp_path / "pytorch_model.bin", torch_tensors(*net, torchvision_spelling()), "zip")
    assert load_weights(tmp_path).input.class_names == NAMES


def test_the_authors_files_are_recognised(tmp_path):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(MsraNet().net.SerializeToString())
    file = load_weights(path)
    assert (file.model.pool_padding, file.model.stride_in, file.model.num_classes) == ("end", "1x1", 3)
    np.testing.assert_allclose(file.input.mean, [123.1516, 115.9029, 103.0626], rtol=1e-6)
    assert (file.input.std == 1).all() and file.input.class_names == ("0", "1", "2")


def test_where_the_stride_is_can_be_said(tmp_path):
    model = create_model("resnet50_v1_5", num_classes=5)
    variables = random_variables(model, (32, 32, 3), train=False)
    path = write_torchvision(tmp_path / "net.safetensors", model, variables)
    assert (load_weights(path).model.stride_in, load_weights(path).name) == ("3x3", "resnet50_v1_5")
    file = load_weights(path, stride_in="1x1")
    assert (file.model.stride_in, file.name) == ("1x1", "resnet50")


def test_a_backbone_has_an_input_and_no_classes(tmp_path, files):
    tensors = load_file(files["torchvision"])
    path = tmp_path / "net.safetensors"
    save_file({name: value for name, value in tensors.items() if not name.startswith("fc.")}, path)
    file = load_weights(path)
    assert (file.model.num_classes, file.input.class_names) == (None, ())
    again = load_weights(save_pretrained(tmp_path / "own.safetensors", file.model, file.variables, input=file.input))
    assert again.input.same_as(file.input)


def test_an_input_that_cannot_be_expressed_is_left_open(tmp_path, files, caplog):
    folder = shutil.copytree(files["huggingface"], tmp_path / "net")
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**processor, "size": {"shortest_edge": 384}}))
    assert load_weights(folder).input is None
    (folder / "preprocessor_config.json").write_text(json.dumps({**processor, "image_processor_type": "\x1b[2J"}))
    assert load_weights(folder).input is None
    (folder / "preprocessor_config.json").unlink()
    assert load_weights(folder).input is None
    assert "384" in caplog.messages[0] and r"\x1b[2J: of" in caplog.messages[1]
    assert "no preprocessor_config.json" in caplog.messages[2]


def changed(folder, name, content):
    (folder / name).write_bytes(content)


WRONG_FOLDERS = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "neither model.safetensors nor pytorch"),
    "shards": (
        lambda folder: changed(folder, "model.safetensors.index.json", b"{}"),
        "its tensors are in several files .* larger max_shard_size",
    ),
    "a run": (lambda folder: (folder / "checkpoints").mkdir(), "it is the workdir of a run: workdir="),
    "no JSON": (lambda folder: changed(folder, "config.json", b"{"), "config.json is not JSON"),
    "deep JSON": (lambda folder: changed(folder, "config.json", b"[" * 100_000), "config.json is not JSON"),
    "no object": (
        lambda folder: changed(folder, "config.json", b"[]"),
        "config.json must be a JSON object, found list",
    ),
    "long JSON": (lambda folder: changed(folder, "config.json", b" " * 5_000_000), "allowed are 4194304"),
    "other net": (lambda folder: changed(folder, "config.json", b'{"model_type": "vit"}'), "model_type='vit'"),
    "other weights": (lambda folder: changed(folder, "model.safetensors", b"text"), "the file has 4 bytes"),
}


@pytest.mark.parametrize("wrong", WRONG_FOLDERS)
def test_a_folder_that_is_no_net_is_refused(tmp_path, files, wrong):
    change, message = WRONG_FOLDERS[wrong]
    folder = shutil.copytree(files["huggingface"], tmp_path / "net")
    change(folder)
    with pytest.raises(ValueError, match=f"{re.escape(str(folder))} is no weight file that can be used: .*{message}"):
        load_weights(folder)


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", b"<html>", bytes(1000)])
def test_a_file_of_no_known_kind_is_refused(tmp_path, content):
    path = tmp_path / "net.h5"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="net.h5 is no weight file .*: the content is none of those known"):
        load_weights(path)


def test_a_file_that_is_replaced_while_it_is_read_is_refused(tmp_path, files, monkeypatch):
    path = shutil.copy(files["torchvision"], tmp_path)
    read_variables = reading.read_variables

    def replaced(*arguments):
        shutil.copy(files["torchvision"], tmp_path / "new")
        (tmp_path / "new").replace(path)
        return read_variables(*arguments)

    monkeypatch.setattr(reading, "read_variables", replaced)
    with pytest.raises(ValueError, match="it was changed while it was read"):
        load_weights(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a file"):
        load_weights(tmp_path / "pipe")


def test_what_is_neither_file_nor_name_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="no net of that name; did you mean resnet50.tv_in1k"):
        load_weights("resnet50.tv_in2k")
    with pytest.raises(FileNotFoundError, match="no net of that name; see resnet_jax.list_pretrained"):
        load_weights(tmp_path / "absent")
    with pytest.raises(ValueError, match="format='keras' is not one of resnet_jax, torchvision, timm"):
        load_weights(tmp_path, format="keras")


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Makes a net of the given form the cached file of every name in the catalogue; the names that are asked for."""
    asked = []

    def put(model):
        variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variable_shapes(model, 3))
        path = write_torchvision(tmp_path / "cached.safetensors", model, variables)
        monkeypatch.setattr(reading, "fetch", lambda name: asked.append(name) or path)
        return asked

    return put


@pytest.mark.parametrize("options", [{}, {"format": "torchvision"}], ids=str)
def test_a_name_brings_what_the_catalogue_says(cached, options):
    asked = cached(create_model("resnet18"))
    file = load_weights("resnet18.tv_in1k", **options)
    assert asked == ["resnet18.tv_in1k"]
    assert (file.name, file.license, file.metrics["error_top1"]) == ("resnet18", "BSD-3-Clause", 0.30242)
    assert file.source.endswith("https://download.pytorch.org/models/resnet18-f37072fd.pth")
    assert file.input.class_names[:2] == ("n01440764", "n01443537")


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (
            ("resnet34", {}),
            {},
            "resnet18.tv_in1k: the catalogue says resnet18 with 1000 classes; .* resnet34 with 1000",
        ),
        (("resnet18", {"stage_sizes": (2, 2, 2, 1)}), {}, "the file holds a net without a name"),
        (("resnet18", {"num_classes": 5}), {}, "the file holds resnet18 with 5 classes"),
        (("resnet50_v1_5", {}), {}, "the file holds resnet50_v1_5 with"),
        (("resnet18", {}), {"format": "timm"}, "resnet18.tv_in1k: its format is torchvision, not timm"),
        (("resnet18", {}), {"stride_in": "3x3"}, "basic blocks"),
    ],
    ids=str,
)
def test_a_file_that_is_not_what_the_catalogue_says_is_refused(cached, model, options, message):
    name, changes = model
    cached(create_model(name, **changes))
    with pytest.raises(ValueError, match=message):
        load_weights("resnet18.tv_in1k", **options)


def test_the_catalogue_says_where_the_stride_is(cached):
    cached(create_model("resnet50_v1_5"))
    for stride_in in (None, "3x3"):
        assert load_weights("resnet50.tv_in1k", stride_in=stride_in).model.stride_in == "3x3"
    with pytest.raises(ValueError, match="the catalogue says resnet50_v1_5 .*; the file holds resnet50 "):
        load_weights("resnet50.tv_in1k", stride_in="1x1")


def test_what_lies_beside_a_cached_file_does_not_count(cached, tmp_path):
    cached(create_model("resnet18"))
    (tmp_path / "config.json").write_text('{"architecture": "resnet18", "pretrained_cfg": {"label_names": ["a"]}}')
    assert load_weights("resnet18.tv_in1k").input.class_names[0] == "n01440764"
    with pytest.raises(ValueError, match="label_names has 1 names"):
        load_weights(tmp_path / "cached.safetensors")


@pytest.mark.parametrize("form", ["torchvision", "torchvision, zip"])
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "resnetaa50"}, "'resnetaa50' is an anti-aliased net"),
        ({"architecture": "resnet50"}, "architecture='resnet50'; the tensors are those of basic blocks"),
        ({"model_type": "bert"}, "model_type='bert'"),
        ({"architectures": ["ResNetForImageClassification"]}, "is not named as in Hugging Face"),
        ("{", "config.json is not JSON"),
    ],
    ids=str,
)
def test_a_config_beside_a_state_dict_of_any_name_counts(tmp_path, files, form, config, message):
    path = Path(shutil.copy(files[form], tmp_path))
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    message = (
        f"{re.escape(str(path))} .*: config.json lies beside it .if another net's, move the file away.: .*{message}"
    )
    with pytest.raises(ValueError, match=message):
        load_weights(path)


def test_a_state_dict_of_any_name_has_what_its_config_says(tmp_path, files):
    folder = shutil.copytree(files["timm"], tmp_path / "net")
    path = (folder / "model.safetensors").rename(folder / "mine.safetensors")
    assert load_weights(path).input.class_names == NAMES
    assert load_weights(path, format="timm").input.class_names == NAMES
    with pytest.raises(ValueError, match="its format is timm, not torchvision"):
        load_weights(path, format="torchvision")


@pytest.mark.parametrize("form", ["resnet_jax", "torchvision, zip"])
def test_other_files_beside_a_net_do_not_count(tmp_path, files, form):
    path = shutil.copy(files[form], tmp_path)
    (tmp_path / "config.json").write_text('{"model": {"name": "resnet50"}}')
    assert load_weights(path).model.num_classes == 5


def test_a_file_that_says_all_itself_needs_no_config(tmp_path, files):
    path = shutil.copy(files["resnet_jax"], tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "resnet50"}')
    assert load_weights(path).input.same_as(INPUT)


@pytest.mark.parametrize("form", FORMS)
def test_a_stride_that_basic_blocks_do_not_have_is_refused(files, form):
    with pytest.raises(ValueError, match="stride_in='banana' is not one of 1x1, 3x3"):
        load_weights(files[form], stride_in="banana")
    with pytest.raises(ValueError, match=f"{re.escape(str(files[form]))} .*basic"):
        load_weights(files[form], stride_in="3x3")


def test_a_stride_that_contradicts_the_file_is_refused(tmp_path):
    model = create_model("resnet50", stage_sizes=(1, 1), num_classes=5)
    variables = random_variables(model, (32, 32, 3), train=False)
    written = [
        save_pretrained(tmp_path / "own.safetensors", model, variables),
        write_huggingface(
            tmp_path / "huggingface",
            create_model("resnet50", num_classes=5),
            random_variables(create_model("resnet50", num_classes=5), (32, 32, 3), train=False),
            input=INPUT,
        ),
        tmp_path / "net.caffemodel",
    ]
    written[-1].write_bytes(MsraNet().net.SerializeToString())
    for path in written:
        assert load_weights(path, stride_in="1x1").model.stride_in == "1x1"
        with pytest.raises(ValueError, match="stride_in='3x3': the file says '1x1'"):
            load_weights(path, stride_in="3x3")


@pytest.mark.parametrize("format", ["timm", None])
def test_the_input_of_a_net_for_grey_images_is_not_assumed(tmp_path, files, format, caplog):
    tensors = load_file(files["torchvision"])
    tensors["conv1.weight"] = tensors["conv1.weight"][:, :1].copy()
    save_file(tensors, tmp_path / "net.safetensors")
    assert load_weights(tmp_path / "net.safetensors", format=format).input is None
    assert caplog.messages == (
        []
        if format is None
        else ["what the net expects of its input is not known: images of 1 channels: no input_size is stated"]
    )
    config = {"architecture": "resnet18", "pretrained_cfg": {"input_size": [3, 224, 224]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"input_size=\[3, 224, 224\]; allowed: 1 channels"):
        load_weights(tmp_path / "net.safetensors", format=format)


@pytest.mark.parametrize("name", ["layer1.0.se.\x1b[2J", "layer1.0.se.\u202e", "layer1.0.se.a\nb"])
def test_a_message_has_nothing_that_a_terminal_obeys(tmp_path, name):
    save_file({name: np.zeros(1, np.float32)}, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="layer1.0.se.*squeeze-and-excitation") as error:
        load_weights(tmp_path / "net.safetensors")
    assert str(error.value).isprintable() and name.encode("unicode_escape").decode() in str(error.value)


def test_a_message_can_be_written_whatever_the_file_holds(tmp_path):
    path = torch_files.write_zip(
        tmp_path / "net.pth", b"}X\x0f\x00\x00\x00layer1.0.se.\xed\xa0\x80" + torch_files.tensor() + b"s"
    )
    with pytest.raises(ValueError, match=r"layer1.0.se.\\ud800") as error:
        load_weights(path)
    str(error.value).encode()


@pytest.mark.slow
def test_a_real_net_of_pytorch_predicts_as_there(real_data, tmp_path):
    weights = real_data.parent / "weights" / "cifar_resnet20.th"
    file = load_weights(weights)
    assert (file.model, file.name) == (create_model("cifar_resnet20"), "cifar_resnet20")
    # What PyTorch gives for the same images (experiments/pretrained/cifar10.py --fixture).
    with np.load(Path(__file__).parent / "fixtures" / "cifar_resnet20.npz") as expected:
        predictions, logits = expected["predictions"], expected["logits"]
    config = load_config("cifar10:resnet20", {"data.data_dir": str(real_data)})
    scores = tmp_path / "scores.npz"
    result = evaluate([], weights=[weights], config=config, save_scores=scores)["members"][0]
    assert (result["error_top1"], result["count"]) == (0.1897, 10_000)
    found = Scores.load(scores).logits
    np.testing.assert_array_equal(found.argmax(1), predictions)
    largest = np.abs(logits).max(1, keepdims=True)
    assert (np.abs(found[: len(logits)] - logits) / largest).max() < 1e-4


def test_what_was_read_can_be_applied_as_it_is(files, net):
    model, variables = net
    images = random_images(2, (64, 64, 3))
    file = load_weights(files["torchvision, zip"])
    np.testing.assert_array_equal(
        file.model.apply(file.variables, images, train=False), model.apply(variables, images, train=False)
    )
