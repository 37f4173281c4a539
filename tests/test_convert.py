"""From any weight file to one of four, with what the net expects of its input, and from a run."""

import hashlib
import logging
import re

import jax
import numpy as np
import pytest
from caffe_files import PACKED
from random_variables import random_variables

from resnet_jax import cli
from resnet_jax.data.input_description import InputDescription
from resnet_jax.models.registry import create_model
from resnet_jax.pretrained.convert import convert
from resnet_jax.pretrained.pytorch.interchange import write_torchvision
from resnet_jax.pretrained.reading import load_weights
from resnet_jax.pretrained.weight_file import WeightFile
from resnet_jax.pretrained.weights import save_pretrained


@pytest.fixture(scope="module")
def net():
    model = create_model("resnet18", num_classes=3)
    return model, random_variables(model, (32, 32, 3), train=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory, net):
    return write_torchvision(tmp_path_factory.mktemp("source") / "theirs.safetensors", *net)


def assert_same_net(path, net):
    file = load_weights(path)
    assert file.model == net[0]
    jax.tree.map(np.testing.assert_array_equal, file.variables, net[1])


@pytest.mark.parametrize("to", ["resnet_jax", "torchvision", "timm", "huggingface"])
def test_a_net_is_the_same_in_every_target(tmp_path, source, net, to):
    output = tmp_path / ("out" if to in ("timm", "huggingface") else "out.safetensors")
    convert(source, output, to=to)
    assert_same_net(output, net)


@pytest.mark.parametrize("to", ["timm", "huggingface"])
def test_what_the_net_expects_comes_back_from_the_target(tmp_path, source, to):
    file = convert(source, tmp_path / "out", to=to, class_names=("x", "y", "z"), std=(1.0, 20.0, 30.0))
    again = load_weights(tmp_path / "out").input
    np.testing.assert_allclose(again.mean, file.input.mean, rtol=1e-6)
    np.testing.assert_allclose(again.std, file.input.std, rtol=1e-6)
    assert (again.image_shape, again.short_side, again.resize) == ((224, 224, 3), 256, "pillow_bilinear")
    assert again.class_names == ("x", "y", "z")


def test_a_net_that_takes_images_as_they_are_does_so_after_hugging_face_s_form(tmp_path, net):
    input = InputDescription((64, 64, 3), np.ones(3, np.float32), np.ones(3, np.float32), ("x", "y", "z"))
    path = save_pretrained(tmp_path / "net.safetensors", *net, input=input)
    convert(path, tmp_path / "out", to="huggingface")
    assert (load_weights(tmp_path / "out").input.short_side, load_weights(tmp_path / "out").input.image_shape) == (
        None,
        (64, 64, 3),
    )


def test_the_description_says_where_the_net_is_from(tmp_path, source):
    convert(source, tmp_path / "out.safetensors", license="MIT")
    file = load_weights(tmp_path / "out.safetensors")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert (file.name, file.license, file.source) == ("resnet18", "MIT", f"theirs.safetensors, sha256 {digest}")
    assert file.input.source == "assumed: torchvision, IMAGENET1K_V1"


def test_what_is_said_of_the_input_counts(tmp_path, source):
    said = {"mean": (1.0, 2.0, 3.0), "std": (4.0, 5.0, 6.0), "image_size": 64, "short_side": 70, "resize": "area"}
    convert(source, tmp_path / "out.safetensors", **said, class_names=("x", "y", "z"), name="mine")
    file = load_weights(tmp_path / "out.safetensors")
    assert (file.name, file.input.image_shape, file.input.short_side, file.input.resize) == (
        "mine",
        (64, 64, 3),
        70,
        "area",
    )
    assert (file.input.mean.tolist(), file.input.std.tolist()) == ([1, 2, 3], [4, 5, 6])
    assert (file.input.class_names, file.input.source) == (("x", "y", "z"), "stated: who converted it")


def test_a_mean_image_is_read_from_caffe_s_file(tmp_path, source):
    image = np.random.default_rng(0).uniform(0, 255, (224, 224, 3)).astype(np.float32)
    blue_first = image[..., ::-1].transpose(2, 0, 1)
    message = PACKED["BlobProto"](num=1, channels=3, height=224, width=224, data=blue_first.ravel().tolist())
    (tmp_path / "mean.binaryproto").write_bytes(message.SerializeToString())
    convert(source, tmp_path / "out.safetensors", mean=tmp_path / "mean.binaryproto", std=(1, 1, 1))
    np.testing.assert_array_equal(load_weights(tmp_path / "out.safetensors").input.mean, image)


def test_what_is_not_known_of_the_input_has_to_be_said_together(tmp_path, net):
    path = save_pretrained(tmp_path / "net.safetensors", *net)
    with pytest.raises(ValueError, match="mean, std and image_size are needed together"):
        convert(path, tmp_path / "out.safetensors", mean=(1, 2, 3))
    with pytest.raises(ValueError, match="timm needs what the net expects of its input: give mean, std and image_size"):
        convert(path, tmp_path / "out", to="timm")
    convert(path, tmp_path / "out.safetensors", mean=(1, 2, 3), std=(1, 1, 1), image_size=32)
    assert load_weights(tmp_path / "out.safetensors").input.class_names == ("0", "1", "2")
    convert(path, tmp_path / "theirs.safetensors", to="torchvision")
    assert_same_net(tmp_path / "theirs.safetensors", net)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "onnx"}, "to='onnx' is not one of resnet_jax, torchvision, timm, huggingface"),
        ({"mean": (1.0, 2.0)}, "mean has shape (2,); the net's images have shape (224, 224, 3)"),
        ({"std": (1.0,)}, "std has shape (1,)"),
        ({"std": (1.0, 0.0, 1.0)}, "input/std must be finite and above 0"),
        ({"mean": (0.485, 0.456, 0.406)}, "mean=(0.485, 0.456, 0.406): it is of pixels from 0 to 255"),
        ({"std": (0.229, 0.224, 0.225)}, "std=(0.229, 0.224, 0.225): it is of pixels from 0 to 255"),
        ({"resize": "cubic"}, "resize='cubic'; allowed: area"),
        ({"class_names": ("x",)}, "input.class_names are 1, the net has 3 classes"),
        ({"image_size": 0}, "input.image_shape=[0, 0, 3]"),
        ({"image_size": 300}, "short_side=256 is below the image's 300 pixels"),
        ({"format": "msra"}, "its format is torchvision, not msra"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_is_written(tmp_path, source, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        convert(source, tmp_path / "out.safetensors", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_only_if_that_is_wanted(tmp_path, source, net):
    output = tmp_path / "precious.safetensors"
    output.write_text("precious")
    for to in ("resnet_jax", "torchvision"):
        # Before anything is read.
        with pytest.raises(FileExistsError, match=r"precious.safetensors is there already; overwrite=True \(--over"):
            convert(tmp_path / "no source", output, to=to)
    assert output.read_text() == "precious"
    convert(source, output, overwrite=True)
    assert_same_net(output, net)


def test_a_file_may_take_its_own_source_s_place_if_that_is_wanted(tmp_path, source, net):
    path = tmp_path / "net.safetensors"
    path.write_bytes(source.read_bytes())
    with pytest.raises(FileExistsError, match="net.safetensors is there already"):
        convert(path, path)
    assert path.read_bytes() == source.read_bytes()
    convert(path, path, overwrite=True)
    convert(path, path, overwrite=True, name="mine")
    assert_same_net(path, net)
    assert load_weights(path).name == "mine"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("to", ["timm", "huggingface"])
def test_a_folder_is_never_replaced(tmp_path, to):
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="is there already; choose a new folder or an empty one"):
            convert(tmp_path / "no source", tmp_path, to=to, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_a_state_dict_cannot_hold_is_said_once(tmp_path, source, net, caplog):
    with caplog.at_level(logging.WARNING, logger="resnet_jax"):
        convert(source, tmp_path / "own.safetensors", license="MIT")
        assert caplog.messages == []
        convert(tmp_path / "own.safetensors", tmp_path / "theirs.safetensors", to="torchvision")
        view = "image size, mean, std, resizing, class names"
        lost = f"a state dict cannot hold, and so it lacks: {view}, name, source, license"
        assert caplog.messages == [f"{tmp_path / 'theirs.safetensors'}: {lost}"]
        caplog.clear()
        convert(WeightFile(*net), tmp_path / "bare.safetensors", to="torchvision")
    assert caplog.messages == []


def test_the_command_line_converts(tmp_path, source, net, capsys):
    (tmp_path / "names.txt").write_text("ä\nb b\nc\n")
    words = ["--from=torchvision", "--mean=1,2.5,3", "--std=1,1,1", f"--class_names={tmp_path / 'names.txt'}"]
    assert cli.main(["convert", str(source), str(tmp_path / "out.safetensors"), *words]) == 0
    line = capsys.readouterr().out
    assert line.startswith("resnet18 with 3 classes; 224x224x3 pixels of 256") and line.endswith("out.safetensors\n")
    file = load_weights(tmp_path / "out.safetensors")
    assert (file.input.mean.tolist(), file.input.class_names) == ([1, 2.5, 3], ("ä", "b b", "c"))
    assert cli.main(["convert", str(tmp_path / "out.safetensors"), "--to=huggingface", str(tmp_path / "hf")]) == 0
    words = ["convert", str(source), str(tmp_path / "out.safetensors")]
    assert cli.main(words) == 2 and "overwrite=True (--overwrite) replaces it" in capsys.readouterr().err
    assert cli.main([*words, "--overwrite"]) == 0
    assert load_weights(tmp_path / "out.safetensors").input.class_names == ("0", "1", "2")
    assert_same_net(tmp_path / "hf", net)
    assert load_weights(tmp_path / "hf").input.class_names == ("ä", "b b", "c")
