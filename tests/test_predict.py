"""Predictions of many files: in order, batch by batch, the same as a test of the same images; bad files are named."""

import csv
import io
import json
import os
import threading

import jax
import numpy as np
import pytest
from PIL import Image
from random_variables import random_variables

from resnet_jax.data.decode import decode
from resnet_jax.data.input_description import InputDescription
from resnet_jax.data.resident import ResidentData
from resnet_jax.distributed import data_mesh, replicate
from resnet_jax.evaluation.evaluator import make_scorer
from resnet_jax.evaluation.image_files import image_files
from resnet_jax.evaluation.predict import Prediction, predict
from resnet_jax.evaluation.prediction import FORMATS, as_csv, as_json, as_text
from resnet_jax.evaluation.protocols import make_protocol
from resnet_jax.models.registry import create_model
from resnet_jax.pretrained.weights import save_pretrained

SIZE, CLASSES = 16, ("n01440764", "cat", 'dog, "wet"', "fünf")
COUNT = 7


def make_weights(path, *, channels=3, short_side=None, resize="area", input=True, num_classes=4, **changes):
    """A net with random variables, saved; returns the path, the net, its variables and its input."""
    model = create_model("cifar_resnet20", width=4, stage_sizes=(1, 1), num_classes=num_classes)
    variables = random_variables(model, (SIZE, SIZE, channels), train=False)
    variables |= changes
    mean = np.full(channels, 100, np.float32)
    described = InputDescription((SIZE, SIZE, channels), mean, mean / 2, CLASSES, short_side, resize)
    save_pretrained(path, model, variables, input=described if input else None)
    return path, model, variables, described


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return make_weights(tmp_path_factory.mktemp("weights") / "net.safetensors")


def write_images(folder, count=COUNT, *, size=(SIZE, SIZE), channels=3):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    paths = [folder / f"{index:05}.png" for index in range(count)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (*size, channels), np.uint8).squeeze()).save(path)
    return paths


def scores_of_a_test(model, variables, described, paths):
    images = np.stack([decode(path.read_bytes(), channels=described.image_shape[2]) for path in paths])
    mesh = data_mesh(jax.devices()[:1])
    protocol = make_protocol("center", described)
    score = make_scorer(model, mesh, protocol=protocol, batch_size=4, workers=0)
    data = ResidentData(replicate(images, mesh), replicate(np.zeros(len(images), np.int32), mesh))
    return score(replicate(variables, mesh), data)[0]


@pytest.mark.parametrize("channels", [1, 3])
def test_probabilities_are_those_of_a_test_of_the_same_images(tmp_path, channels):
    net, model, variables, described = make_weights(tmp_path / "net.safetensors", channels=channels)
    paths = write_images(tmp_path / "images", channels=channels)
    logits = scores_of_a_test(model, variables, described, paths)
    found = list(predict(paths, weights=net, top=9, batch_size=4))
    for path, row, prediction in zip(paths, np.asarray(jax.nn.softmax(logits)), found, strict=True):
        assert (prediction.path, prediction.error) == (str(path), None)
        assert dict(prediction.classes) == pytest.approx(dict(zip(CLASSES, row, strict=True)), rel=1e-4)
        assert [name for name, _ in prediction.classes] == [CLASSES[label] for label in np.argsort(-row)]
    for whole, cut in zip(found, predict(paths, weights=net, top=2), strict=True):
        assert [name for name, _ in cut.classes] == [name for name, _ in whole.classes[:2]]


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_how_files_fall_into_batches_changes_nothing(weights, tmp_path, batch_size):
    paths = write_images(tmp_path)
    paths.insert(2, tmp_path / "missing.png")
    expected, found = (predict(paths, weights=weights[0], batch_size=size) for size in (100, batch_size))
    for one, other in zip(expected, found, strict=True):
        assert (one.path, one.error) == (other.path, other.error)
        assert dict(one.classes) == pytest.approx(dict(other.classes), rel=1e-4)


def test_images_that_vary_are_seen_as_protocol_center_does_and_others_whole(tmp_path):
    (path,) = write_images(tmp_path, 1, size=(2 * SIZE, 3 * SIZE))
    view = Image.open(path).resize((30, 20), Image.Resampling.BILINEAR).crop((7, 2, 23, 18))
    view.save(tmp_path / "view.png")
    Image.open(path).resize((SIZE, SIZE), Image.Resampling.BILINEAR).save(tmp_path / "whole.png")
    as_it_is = make_weights(tmp_path / "as_it_is.safetensors", resize="pillow_bilinear")[0]
    cropped = make_weights(tmp_path / "cropped.safetensors", resize="pillow_bilinear", short_side=20)[0]
    by_hand = list(predict([tmp_path / "view.png", tmp_path / "whole.png"], weights=as_it_is))
    for net, expected in ((cropped, by_hand[0]), (as_it_is, by_hand[1])):
        (found,) = predict(path, weights=net)
        assert dict(found.classes) == pytest.approx(dict(expected.classes), rel=1e-4)


def test_a_folder_stands_for_its_images_in_sorted_order(tmp_path, caplog):
    names = ("b/2.JPG", "b/10.jpeg", "a.png", "b.png", "B.gif", "c/d/e.bmp", ".hidden.png", ".git/x.png", "notes.txt")
    for name in (*names, "folder.png/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "c" / "photo.WEBP").touch()
    (tmp_path / "README").touch()
    found = [os.path.relpath(path, tmp_path) for path in image_files([tmp_path])]
    assert caplog.messages == [f"{tmp_path}: 4 files passed over (.txt, .webp, no ending)"]
    assert found == ["B.gif", "a.png", "b/10.jpeg", "b/2.JPG", "b.png", "c/d/e.bmp", "link.png"]
    named = [tmp_path / "notes.txt", str(tmp_path / "c"), tmp_path / "gone.png", str(tmp_path / "c")]
    assert image_files(named) == [str(tmp_path / name) for name in ("notes.txt", "c/d/e.bmp", "gone.png", "c/d/e.bmp")]
    with pytest.raises(ValueError, match="folder.png holds no image"):
        image_files([tmp_path / "a.png", tmp_path / "folder.png"])
    with pytest.raises(ValueError, match="nothing to predict"):
        image_files([])


def bad_files(folder):
    """A missing file, a text, an image that is cut off, an empty file and a folder's link that leads nowhere."""
    good = write_images(folder, 1, size=(40, 40))[0].read_bytes()
    for name, content in (("text.png", b"no image"), ("cut.png", good[:-200]), ("empty.jpg", b"")):
        (folder / name).write_bytes(content)
    (folder / "broken.png").symlink_to(folder / "nowhere")
    names = ("missing.png", "text.png", "cut.png", "empty.jpg", "broken.png")
    return [folder / name for name in names]


def test_a_bad_file_is_named_with_the_reason_and_does_not_stop_the_rest(weights, tmp_path):
    bad, good = bad_files(tmp_path / "bad"), write_images(tmp_path / "good", 5)
    mixed = [path for pair in zip(good, bad, strict=True) for path in pair]
    expected = [dict(prediction.classes) for prediction in predict(good, weights=weights[0], batch_size=4)]
    found = list(predict(mixed, weights=weights[0], batch_size=4))
    assert [prediction.path for prediction in found] == list(map(str, mixed))
    assert [prediction.error for prediction in found[::2]] == [None] * 5
    for prediction, classes in zip(found[::2], expected, strict=True):
        assert dict(prediction.classes) == pytest.approx(classes, rel=1e-4)
    reasons = [prediction.error for prediction in found[1::2]]
    assert reasons[0] == reasons[4] == "No such file or directory"
    assert all(reason.startswith("not an image that can be read: ") for reason in reasons[1:4])
    assert "truncated" in reasons[2]
    assert not any(prediction.classes for prediction in found[1::2])


def test_all_files_may_be_bad(weights, tmp_path):
    bad = bad_files(tmp_path)
    assert all(prediction.error for prediction in predict(bad, weights=weights[0], batch_size=2))


def test_files_are_read_no_more_than_a_batch_ahead(weights, tmp_path):
    (image,) = write_images(tmp_path / "source", 1)
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(100):
        (folder / f"{index:03}.png").hardlink_to(image)
    running = threading.active_count()
    predictions = predict(folder, weights=weights[0], batch_size=4)
    assert next(predictions).error is None
    # What is not read yet may still disappear.
    for path in sorted(folder.iterdir())[8:]:
        path.unlink()
    errors = [prediction.error for prediction in predictions]
    assert errors[:7] == [None] * 7 and errors[7:] == ["No such file or directory"] * 92
    stopped = predict([image] * 100, weights=weights[0], batch_size=4)
    next(stopped)
    stopped.close()
    assert threading.active_count() == running


def test_what_is_wrong_is_said_before_the_first_image(weights, tmp_path):
    net, _, variables, _ = weights
    image = write_images(tmp_path, 1)
    for options, message in (
        ({}, "name either a workdir or weights"),
        ({"weights": net, "workdir": tmp_path}, "name either a workdir or weights"),
        ({"weights": net, "top": 0}, "top=0: must be at least 1"),
        ({"weights": net, "batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"weights": net, "checkpoint": "best"}, "checkpoint='best': weights are one net"),
    ):
        with pytest.raises(ValueError, match=message):
            predict(image, **options)
    with pytest.raises(FileNotFoundError, match="not the workdir of a run"):
        predict(image, workdir=tmp_path)
    silent = make_weights(tmp_path / "silent.safetensors", input=False)[0]
    with pytest.raises(ValueError, match="silent.safetensors does not say what input"):
        predict(image, weights=silent)
    headless = make_weights(tmp_path / "headless.safetensors", num_classes=None)[0]
    with pytest.raises(ValueError, match="no classes"):
        predict(image, weights=headless)


def test_scores_that_are_not_finite_end_it(tmp_path):
    model = create_model("cifar_resnet20", width=4, stage_sizes=(1, 1), num_classes=4)
    variables = random_variables(model, (SIZE, SIZE, 3), train=False)
    params = {
        **variables["params"],
        "classifier": jax.tree.map(lambda x: x * np.nan, variables["params"]["classifier"]),
    }
    net = make_weights(tmp_path / "net.safetensors", params=params)[0]
    (image,) = write_images(tmp_path, 1)
    with pytest.raises(FloatingPointError, match="00000.png are not finite"):
        list(predict(image, weights=net))


GOOD = Prediction("a.png", (("n01440764", 0.75), ("fünf", 0.25)))
BAD = Prediction("b.png", (), "No such file or directory")


def test_text_shows_readable_names_and_errors():
    assert as_text(GOOD) == "a.png\n   75.00 %  tench\n   25.00 %  fünf"
    assert as_text(BAD) == "b.png\n  error: No such file or directory"
    assert FORMATS["text"].header is None


def test_csv_gives_back_odd_names():
    path, name = 'folder, of "odd"\nnames/ü;=1.png', 'dog, "wet"'
    odd = Prediction(path, ((name, 1 / 3), ("n01440764", 0.25)))
    text = "\n".join((FORMATS["csv"].header, as_csv(odd), as_csv(BAD))) + "\n"
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    first = {"path": path, "rank": "1", "class": name, "name": name, "probability": str(1 / 3), "error": ""}
    second = {**first, "rank": "2", "class": "n01440764", "name": "tench", "probability": "0.25"}
    assert rows == [first, second, {**dict.fromkeys(first, ""), "path": "b.png", "error": BAD.error}]


def test_json_is_one_document_a_line():
    for prediction in (GOOD, BAD, Prediction("line\nfeed \udcff", ())):
        (line,) = as_json(prediction).splitlines()
        found = json.loads(line)
        assert list(found) == ["path", "classes", "error"]
        assert (found["path"], found["error"]) == (prediction.path, prediction.error)
        assert tuple((entry["class"], entry["probability"]) for entry in found["classes"]) == prediction.classes
    assert json.loads(as_json(GOOD))["classes"][0] == {"class": "n01440764", "name": "tench", "probability": 0.75}
