"""Saved scores give the same errors again, and an ensemble is the mean of its members' probabilities."""

import dataclasses

import numpy as np
import pytest

from resnet_jax.evaluation import scores as scores_module
from resnet_jax.evaluation.scores import Scores, ensemble

COUNT, CLASSES = 23, 7
RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, CLASSES, COUNT).astype(np.int32)


def member(name, *, seed=0, **changes):
    logits = np.random.default_rng(seed).normal(0, 3, (COUNT, CLASSES)).astype(np.float32)
    fields = {"protocol": "ten_crop", "dataset": "flowers", "split": "test", "step": 5}
    return Scores(**{"logits": logits, "labels": LABELS, "member": name, **fields, **changes})


def softmax(logits):
    powers = np.exp(np.float64(logits))
    return powers / powers.sum(-1, keepdims=True)


def test_errors_are_counted_in_parts_as_in_one(monkeypatch):
    scores = member("a")
    order = np.argsort(-scores.logits, axis=-1)
    for rows_at_once in (4096, 5):
        monkeypatch.setattr(scores_module, "_ROWS_AT_ONCE", rows_at_once)
        found = scores.errors()
        assert found["error_top1"] == np.mean(order[:, 0] != LABELS)
        assert found["error_top5"] == np.mean([y not in row[:5] for y, row in zip(LABELS, order, strict=True)])
        own = np.log(softmax(scores.logits))[np.arange(COUNT), LABELS]
        assert found["loss"] == pytest.approx(-own.mean(), rel=1e-5)
        assert found["count"] == COUNT


def test_ties_and_what_is_not_a_number_count_against_the_net():
    logits = np.zeros((COUNT, CLASSES), np.float32)
    assert member("a", logits=logits).errors()["error_top1"] == 1
    logits[np.arange(COUNT), LABELS] = 1
    assert member("a", logits=logits).errors()["error_top1"] == 0
    logits[3] = np.nan
    broken = member("b", logits=logits)
    assert broken.errors()["error_top1"] == 1 / COUNT
    # A member that fails at an image makes the ensemble fail there, and nowhere else.
    right = member("a", logits=np.nan_to_num(logits))
    assert ensemble([broken, dataclasses.replace(right, member="c")]).errors()["error_top1"] == 1 / COUNT


@pytest.mark.parametrize("step", [5, None])
def test_saved_scores_are_the_same_again(tmp_path, step):
    scores = member("a", step=step)
    path = tmp_path / "new" / "a.npz"
    scores.save(path)
    loaded = Scores.load(path)
    for field in dataclasses.fields(Scores):
        np.testing.assert_array_equal(getattr(loaded, field.name), getattr(scores, field.name))
    assert loaded.errors() == scores.errors()
    assert [file.name for file in path.parent.iterdir()] == ["a.npz"]
    with np.load(path, allow_pickle=False) as arrays:
        assert all(array.dtype != object for array in arrays.values())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_ensemble_is_the_mean_of_the_probabilities(count):
    members = [member(f"net{seed}", seed=seed, protocol="center" if seed else "ten_crop") for seed in range(count)]
    found = ensemble(members)
    mean = np.mean([softmax(scores.logits) for scores in members], axis=0)
    np.testing.assert_allclose(softmax(found.logits), mean, rtol=1e-5)
    np.testing.assert_allclose(found.logits, np.log(mean), rtol=1e-5, atol=1e-5)
    assert (found.member, found.dataset, found.split, found.step) == ("ensemble", "flowers", "test", None)
    assert found.protocol == ("ten_crop" if count == 1 else "ten_crop + center")


def test_a_probability_too_small_for_float32_counts_with_its_logarithm():
    logits = np.zeros((COUNT, CLASSES), np.float32)
    logits[np.arange(COUNT), LABELS] = -500
    found = ensemble([member("a", logits=logits), member("b", logits=logits)])
    assert found.errors()["loss"] == pytest.approx(500 + np.log(CLASSES - 1), rel=1e-5)


OTHER_LABELS = LABELS.copy()
OTHER_LABELS[[4, 9]] = (OTHER_LABELS[[4, 9]] + 1) % CLASSES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": OTHER_LABELS}, f"label of image 4 is {LABELS[4]} of the one, {OTHER_LABELS[4]} of the other"),
        ({"dataset": "trees"}, "dataset is 'flowers' of the one, 'trees' of the other"),
        ({"split": "train"}, "split is 'test' of the one, 'train' of the other"),
        (
            {"labels": LABELS[:9], "logits": np.zeros((9, CLASSES), np.float32)},
            "number of images is 23 of the one, 9 of the other",
        ),
        ({"logits": np.zeros((COUNT, 8), np.float32)}, "number of classes is 7 of the one, 8 of the other"),
    ],
)
def test_members_of_other_images_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=f"^'a' and 'c' were not tested on the same images: {message}"):
        ensemble([member("a"), member("b", seed=1), member("c", **changes)])


def test_an_ensemble_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one member"):
        ensemble([])


def test_another_file_is_refused_by_name(tmp_path):
    others = {name: tmp_path / f"{name}.npz" for name in ("text", "empty", "array", "arrays", "pickle", "cut", "rank")}
    others["text"].write_text("no scores")
    others["empty"].write_bytes(b"")
    with others["array"].open("wb") as file:
        np.save(file, LABELS)
    np.savez(others["arrays"], logits=np.zeros((2, 3), np.float32))
    with others["pickle"].open("wb") as file:
        np.save(file, np.asarray([{}], object), allow_pickle=True)
    member("a").save(tmp_path / "whole.npz")
    others["cut"].write_bytes((tmp_path / "whole.npz").read_bytes()[:-40])
    member("a").save(others["rank"])
    with np.load(others["rank"]) as file:
        np.savez(others["rank"], **{**file, "labels": LABELS[:5]})
    for path in others.values():
        with pytest.raises(ValueError, match=path.name):
            Scores.load(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Scores.load(tmp_path / "nowhere.npz")
    with pytest.raises(ValueError, match="NAME.npz, found 'scores.npy'"):
        member("a").save(tmp_path / "scores.npy")
