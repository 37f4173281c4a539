"""The examples of reuse run to their end, train what they say and nothing else, and publish what they measured."""

import importlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from random_variables import random_variables

from resnet_jax.data.input_description import InputDescription
from resnet_jax.models.registry import create_model
from resnet_jax.pretrained.reading import load_weights
from resnet_jax.pretrained.weights import save_pretrained

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
SIZE = 8
STARTS = (("head", 0), ("all", 1), ("scratch", 0), ("scratch", 1))


@pytest.fixture
def script(monkeypatch):
    """Imports an example."""

    def load(name):
        monkeypatch.syspath_prepend(EXPERIMENTS / name)
        return importlib.import_module(name)

    yield load
    for name in ("finetune", "decoder"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A net of three stages with random variables."""
    model = create_model("cifar_resnet8", width=4, num_classes=7)
    variables = random_variables(model, (SIZE, SIZE, 3), train=False)
    mean = np.asarray([100, 110, 120], np.float32)
    described = InputDescription((SIZE, SIZE, 3), mean, mean / 2, tuple("abcdefg"))
    return save_pretrained(tmp_path_factory.mktemp("weights") / "net.safetensors", model, variables, input=described)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


def same_bits(one, other):
    """By path, whether two trees hold the same bits."""
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(one)]
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return dict(zip(paths, (np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs), strict=True))


@pytest.mark.parametrize("way", ["head", "frozen", "all"])
def test_fine_tuning_moves_what_it_says_and_the_loss_falls(script, weights, data_dir, way):
    finetune = script("finetune")
    file = load_weights(weights)
    images, labels = finetune.load_digits("test", data_dir, file.input)
    assert images.shape == (359, SIZE, SIZE, 3)
    model, before = finetune.start(way, weights, file.input, seed=1)
    after, losses = finetune.fine_tune(way, model, before, (images, labels), steps=12, seed=1)
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    parameters = same_bits(before["params"], after["params"])
    statistics = same_bits(before["batch_stats"], after["batch_stats"])
    for path, same in parameters.items():
        assert same == (way == "head" and not path.startswith("classifier/")), path
    assert set(statistics.values()) == {way in ("head", "frozen")}


def test_fine_tuning_starts_from_the_file_but_for_the_seeds_classifier(script, weights):
    finetune, file = script("finetune"), load_weights(weights)
    starts = {(way, seed): finetune.start(way, weights, file.input, seed)[1]["params"] for way, seed in STARTS}
    stem = np.asarray(file.variables["params"]["stem"]["conv"]["kernel"])
    kernels = {place: np.asarray(params["classifier"]["kernel"]) for place, params in starts.items()}
    for (way, seed), params in starts.items():
        assert np.array_equal(params["stem"]["conv"]["kernel"], stem) == (way != "scratch")
        np.testing.assert_allclose(kernels[way, seed], kernels["scratch", seed], rtol=1e-5)
    assert not np.allclose(kernels["scratch", 0], kernels["scratch", 1])


@pytest.mark.slow
def test_a_frozen_backbone_keeps_every_bit_under_the_decoder(script, weights, data_dir, monkeypatch):
    decoder = script("decoder")
    monkeypatch.setattr(decoder, "BATCH_SIZE", 8)
    input = load_weights(weights).input
    scenes = decoder.normalized(decoder.make_scenes("train", data_dir, count=24, seed=0), input)
    backbone, before, statistics = decoder.start(True, weights, input, seed=0)
    for trained in (False, True):
        after, moved, losses = decoder.train(backbone, before, statistics, scenes, trained=trained, steps=12, seed=0)
        assert np.mean(losses[-3:]) < np.mean(losses[:3])
        for path, same in same_bits(before, after).items():
            # The logits of the net play no part.
            untouched = path.startswith("backbone/") and (not trained or "/classifier/" in path)
            assert same == untouched, path
        assert set(same_bits(statistics, moved).values()) == {not trained}


def test_a_scene_says_where_which_digit_is(script, data_dir):
    decoder = script("decoder")
    scenes, targets = decoder.make_scenes("test", data_dir, count=40, seed=0)
    again, _ = decoder.make_scenes("test", data_dir, count=40, seed=0)
    assert np.array_equal(scenes, again)
    assert sorted(set(targets.flat)) == list(range(decoder.CLASSES))
    assert 0.1 < targets.mean() < 0.5
    # Ink has one colour for each digit, so neighbours in it differ less than on the ground.
    steps = np.abs(np.diff(scenes, axis=2)).mean(-1)
    assert np.median(steps[targets[..., 1:] * targets[..., :-1] == 1]) < 0.7 * np.median(steps[targets[..., 1:] == 0])
    assert decoder.mean_iou(targets, targets) == 1
    assert decoder.mean_iou(1 - targets, targets) == 0
    assert decoder.mean_iou(np.asarray([[0, 1, 1, 1]]), np.asarray([[0, 0, 0, 1]])) == (1 / 3 + 1 / 3) / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["finetune", "decoder"])
def test_an_example_runs_to_its_end(script, weights, data_dir, tmp_path, monkeypatch, capsys, name):
    example = script(name)
    for constant, value in (("BATCH_SIZE", 8), ("TRAIN_SCENES", 16), ("TEST_SCENES", 9)):
        if hasattr(example, constant):
            monkeypatch.setattr(example, constant, value)
    path = tmp_path / "records" / f"{name}.json"
    output = ["--output", str(path)] if name == "finetune" else ["--folder", str(tmp_path)]
    example.main(["--weights", str(weights), "--data_dir", data_dir, "--steps=2", "--seeds=1", *output])
    record = json.loads(path.read_text())
    assert len(record["runs"]) == len(example.WAYS)
    assert record["config"]["weights"] == "net.safetensors" and str(tmp_path) not in json.dumps(record)
    assert {"commit", "versions", "cpu", "devices"} <= record.keys()
    table = example.table(record)
    assert table in capsys.readouterr().out
    for label in example.WAYS.values():
        assert table.count(f"| {label} |") == 1
    assert (tmp_path / "scenes.png").is_file() == (name == "decoder")


@pytest.mark.parametrize("name", ["finetune", "decoder"])
def test_what_is_published_is_what_the_record_says(script, name):
    record = json.loads((EXPERIMENTS / name / "records" / f"{name}.json").read_text())
    assert script(name).table(record) in (EXPERIMENTS / name / "README.md").read_text()
