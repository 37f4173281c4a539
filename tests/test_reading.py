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
    (folder / "preprocessor_config.json").unlink()
    assert load_weights(folder).input is None
    assert "384" in caplog.messages[0] and "no preprocessor_config.json" in caplog.messages[1]


def changed(folder, name, content):
    (folder / name).write_bytes(content)


WRONG_FOLDERS = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "neither model.safetensors nor pytorch"),
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


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a file"):
        load_weights(tmp_path / "pipe")


def test_what_is_neither_file_nor_name_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="resnet50.tv_in2k: no such file, and no net of that name"):
        load_weights("resnet50.tv_in2k")
    with pytest.raises(ValueError, match="format='keras' is not one of resnet_jax, torchvision, timm"):
        load_weights(tmp_path, format="keras")


def test_a_name_brings_what_the_catalogue_says(monkeypatch, files):
    asked = []

    def fetch(name):
        asked.append(name)
        return files["torchvision, zip"]

    monkeypatch.setattr(reading, "fetch", fetch)
    file = load_weights("resnet18.tv_in1k")
    assert asked == ["resnet18.tv_in1k"]
    assert (file.name, file.license, file.metrics["error_top1"]) == ("resnet18", "BSD-3-Clause", 0.30242)
    assert file.source.endswith("https://download.pytorch.org/models/resnet18-f37072fd.pth")
    assert file.input.class_names[:2] == ("n01440764", "n01443537")


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
