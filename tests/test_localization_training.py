"""Whole runs that train a localizer: per-class proposals, then regions, with what the system promises of any run."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from experiment_modules import experiment_modules
from test_loop import StopAt, assert_same_run

from resnet_jax import cli
from resnet_jax.config_files import load_config
from resnet_jax.data.input_description import InputDescription
from resnet_jax.detection.data import open_boxes
from resnet_jax.evaluation.scores import Scores
from resnet_jax.localization import parts as localization_parts
from resnet_jax.localization.evaluator import true_labels
from resnet_jax.localization.ordered_views import Looking, OrderedViews
from resnet_jax.localization.run import evaluate_localizers, predicted_labels
from resnet_jax.models.registry import create_model, initialize
from resnet_jax.pretrained.weights import save_pretrained
from resnet_jax.records import read_metrics, read_record
from resnet_jax.training.loop import train
from resnet_jax.workdir import Workdir

SHAPES = Path(__file__).resolve().parent.parent / "experiments" / "shapes"
SMALL = {
    "model.name": "cifar_resnet8",
    "model.width": 4,
    "data.image_size": 32,
    "data.short_sides": (32, 40),
    "data.short_side": 32,
    "data.long_side": 64,
    "localizer.anchor_sizes": (12.0, 24.0),
    "sampling.proposals_before": 50,
    "sampling.proposals": 10,
    "sampling.regions": 4,
    "evaluate.short_side": 36,
    "evaluate.proposals_before": 50,
    "evaluate.proposals": 8,
    "evaluate.batch_size": 8,
    "evaluate.every": 2,
    "checkpoint.every": 2,
    "checkpoint.keep_latest": 2,
    "schedule.name": "constant",
    "schedule.warmup": "none",
    "schedule.warmup_duration": 0,
    "train.log_every": 2,
    "train.duration": 4,
    "train.batch_size": 8,
}
IMAGES = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of one object each: 12 to test, and those of landscape alone, for which less is compiled, for runs."""
    with experiment_modules(SHAPES) as module:
        shapes, place = module("make_shapes"), tmp_path_factory.mktemp("sets") / "shapes"
        shapes.make_shapes(place, images=60, seed=0, kind=shapes.Kind(most=1))
    for split in ("train", "test"):
        images = open_boxes(str(place), split)
        wide = [images[index].name for index in range(len(images)) if images.size(index)[0] <= images.size(index)[1]]
        names = "".join(f"{name.removesuffix('.png')}\n" for name in wide)
        (place / "ImageSets" / "Main" / f"wide_{split}.txt").write_text(names)
    return place


@pytest.fixture(scope="module")
def small(folder):
    def make(variant="small", **changes):
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        sets = {"data.train_sets": f"{folder}:wide_train", "data.test_sets": f"{folder}:wide_test"}
        return load_config(f"localization:{variant}", {**SMALL, **sets, **changes})

    return make


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """The workdir and the record of a run that trained proposals."""
    workdir = tmp_path_factory.mktemp("runs") / "proposals"
    return workdir, train(small(), workdir)


@pytest.fixture(scope="module")
def regions(small, finished, tmp_path_factory):
    """Those of one that trained regions on its proposals."""
    workdir = tmp_path_factory.mktemp("runs") / "regions"
    return workdir, train(small("small_regions", localizer__proposals_from=str(finished[0])), workdir)


@pytest.fixture(scope="module")
def source(folder):
    return open_boxes(str(folder), "test")


@pytest.fixture(scope="module")
def wide(folder):
    return open_boxes(str(folder), "wide_test")


def evaluated(workdirs, **changes):
    return evaluate_localizers(workdirs, changes={key.replace("__", "."): value for key, value in changes.items()})


@pytest.mark.slow
@pytest.mark.parametrize("which", ["finished", "regions"])
def test_a_run_leaves_record_metrics_curves_and_checkpoints(which, wide, request):
    workdir, record = request.getfixturevalue(which)
    files = Workdir(workdir)
    assert read_record(files.record) == record
    assert record["config"]["task"] == "localization" and record["steps"] == 4
    assert record["test"]["count"] == len(wide) > 2 and 0 <= record["test"]["error_localization"] <= 1
    assert record["test"]["protocol"] == {"finished": "1-crop", "regions": "1-crop, 8 regions"}[which]
    metrics = read_metrics(files.metrics)
    assert list(metrics["train/loss"][0]) == list(metrics["test/error_localization"][0]) == [2, 4]
    assert {"train/classes", "train/boxes", "train/object_error"} <= set(metrics)
    assert files.curves.read_bytes().startswith(b"\x89PNG")


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(finished, small, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(small(), tmp_path / "run", writers=[StopAt(4)])
    assert train(small(), tmp_path / "run")["resumed_from_step"] == 2
    assert_same_run(tmp_path / "run", finished[0])


def test_regions_need_a_proposer_that_fits(small, finished, regions, tmp_path):
    wrong = [
        ({}, "localizer.proposals_from=None: with localizer.trains=regions it must be the workdir"),
        ({"localizer__proposals_from": str(regions[0])}, "must be of a run with localizer.trains=proposals"),
        (
            {"localizer__proposals_from": str(finished[0]), "data__image_size": 24, "data__short_sides": (32, 40)},
            "it expects other images",
        ),
    ]
    for changes, said in wrong:
        with pytest.raises(ValueError, match=said):
            train(small("small_regions", **changes), tmp_path / "run")
    with pytest.raises(ValueError, match="localizer.proposals_from: needs localizer.trains=regions, not proposals"):
        small(localizer__proposals_from=str(finished[0]))
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_meant_is_refused(small):
    wrong = [
        ({"evaluate__short_side": 31}, "evaluate.short_side=31: must be at least data.image_size=32"),
        ({"data__short_sides": (30, 40)}, r"data.short_sides=\(30, 40\): must be at least data.image_size=32"),
        ({"data__short_sides": (40, 32)}, "must be two whole numbers, the lower one first"),
        ({"localizer__anchor_sizes": ()}, r"localizer.anchor_sizes=\(\): needs at least one"),
        ({"train__accumulation_steps": 2}, "train.accumulation_steps=2: needs model.bn_group_size"),
        ({"num_seeds": 2}, "num_seeds=2: must be 1 with task=localization"),
        ({"detector__roi": "align"}, "config key detector.roi is of task=detection"),
        ({"data__crop": "scale"}, "config key data.crop is of task=classification"),
    ]
    for changes, said in wrong:
        with pytest.raises(ValueError, match=said):
            small(**changes)
    with pytest.raises(ValueError, match="counts regions here, and must be a multiple of sampling.regions=4"):
        small("small_regions", model__bn_group_size=6)
    with pytest.raises(ValueError, match="train.batch_size=9: not divisible by model.bn_group_size=2"):
        # Groups of 8 regions are 2 images.
        small("small_regions", model__bn_group_size=8, train__batch_size=9)


@pytest.mark.parametrize("which", ["finished", "regions"])
def test_a_test_of_a_run_finds_what_the_run_found(which, wide, request):
    workdir, record = request.getfixturevalue(which)
    (entry,) = evaluated(workdir, evaluate__batch_size=16, data__workers=0)["members"]
    assert entry["error_localization"] == record["test"]["error_localization"]
    assert (entry["count"], entry["step"]) == (len(wide), 4)
    assert entry["protocol"] == f"{record['test']['protocol']}, true class"


def test_dense_testing_counts_every_image(finished, folder):
    (entry,) = evaluated(
        finished[0],
        evaluate__short_sides="24,36",
        evaluate__batch_size="5",
        data__test_sets=f"{folder}:test",
    )["members"]
    assert entry["count"] == IMAGES and entry["protocol"] == "dense 24 36, true class"


def test_an_ensemble_of_a_localizer_with_itself_is_the_localizer(finished):
    workdir, _ = finished
    result = evaluated([workdir, workdir])
    first, second = result["members"]
    assert first == second
    assert result["ensemble"]["error_localization"] == first["error_localization"]
    assert result["ensemble"]["member"] == "ensemble"


def test_proposals_and_regions_are_no_ensemble(finished, regions):
    with pytest.raises(ValueError, match="must all have regions, or all none"):
        evaluated([finished[0], regions[0]])


def scores_of(labels, classes, *, first):
    """A classifier's that puts the image's own class first or second."""
    logits = np.zeros((len(labels), classes), np.float32)
    logits[np.arange(len(labels)), labels] = 2
    logits[np.arange(len(labels)), (labels + 1) % classes] = 1 if first else 3
    return Scores(logits, labels.astype(np.int32), "net", "center", "shapes", "test")


def test_predicted_classes_are_the_classifiers_best_and_of_the_same_images(source):
    labels = true_labels(list(source), source)
    own = labels[:, 0]
    right, near = scores_of(own, 3, first=True), scores_of(own, 3, first=False)
    np.testing.assert_array_equal(predicted_labels([right], labels, most=1), labels)
    np.testing.assert_array_equal(predicted_labels([near], labels, most=2), np.stack([(own + 1) % 3, own], 1))
    # Of the mean probabilities; five of three classes are three.
    assert predicted_labels([right, near], labels).shape == (IMAGES, 3)
    with pytest.raises(ValueError, match="scores of 11 images: the localizer's test sets have 12"):
        predicted_labels([scores_of(own[1:], 3, first=True)], labels)
    with pytest.raises(ValueError, match=r"scores of shapes test: image 0 has class . there and"):
        predicted_labels([scores_of((own + 1) % 3, 3, first=True)], labels)


def test_the_command_line_tests_a_localizer(finished, wide, tmp_path, capsys):
    workdir, record = finished
    scores_of(true_labels(list(wide), wide)[:, 0], 3, first=True).save(tmp_path / "scores.npz")
    words = ["evaluate", f"--workdir={workdir}", "--config.evaluate.batch_size=4"]
    assert cli.main([*words, "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)
    assert entry["error_localization"] == record["test"]["error_localization"]
    assert cli.main([*words, f"--scores={tmp_path / 'scores.npz'}"]) == 0
    out = capsys.readouterr().out
    # All three classes get a box, among them the true one.
    assert f"error_localization: {100 * entry['error_localization']:.2f} %" in out
    assert "protocol: 1-crop, 5 predicted classes" in out
    assert cli.main([*words, "--recall"]) == 2
    assert "--recall: not for a localizer" in capsys.readouterr().err
    assert cli.main([*words, "--config.data.image_size=16"]) == 2
    assert "data.image_size: is of the training; a test can change evaluate.*" in capsys.readouterr().err


def test_weights_become_the_trunk_and_say_what_input_they_take(small, tmp_path):
    path = tmp_path / "net.safetensors"
    model = create_model("cifar_resnet8", width=4, num_classes=5)
    variables = initialize(model, jax.random.key(3), (32, 32, 3))
    mean = np.full(3, 90, np.float32)
    save_pretrained(path, model, variables, input=InputDescription((32, 32, 3), mean, mean / 2, tuple("abcde")))
    parts = localization_parts.build(small(localizer__weights=str(path)))
    found = parts.initial_variables()
    parts.feed.close()
    for collection in ("params", "batch_stats"):
        own = {name: value for name, value in variables[collection].items() if name != "classifier"}
        jax.tree.map(np.testing.assert_array_equal, found[collection]["trunk"], own)
    np.testing.assert_array_equal(parts.input.mean, mean)
    np.testing.assert_array_equal(parts.input.std, mean / 2)
    with pytest.raises(ValueError, match="none of its 37 tensors fits the net"):
        localization_parts.build(small(localizer__weights=str(path), model__width=8))


@pytest.mark.parametrize(
    ("looking", "views"),
    [
        (Looking(32, 36, (), None, "area"), 1),
        (Looking(32, 36, (), 40, "area"), 2),
        (Looking(32, 36, (24, 36), 40, "area"), 3),
    ],
)
def test_every_image_comes_once_with_its_own_views(looking, views, source):
    labels = np.arange(2 * IMAGES, dtype=np.int32).reshape(IMAGES, 2)
    share = range(1, IMAGES)
    batches = OrderedViews(source, labels, looking, stride=4, batch_size=5, share=share)
    seen = []
    for number in range(len(batches)):
        batch = batches[number]
        assert len(batch.views) == views and batch.labels.shape == (5, 2)
        for row, index in enumerate(batch.image_index):
            if index < 0:
                continue
            seen.append(int(index))
            np.testing.assert_array_equal(batch.labels[row], labels[index])
            for view, own in zip(batch.views, looking.views(source[int(index)].image), strict=True):
                height, width = own.size
                np.testing.assert_array_equal(view.image[row, :height, :width], own.image)
                np.testing.assert_array_equal(view.size[row], own.size)
                assert all(side % 4 == 0 for side in view.image.shape[1:3])
    assert sorted(seen) == list(share)


def test_a_crop_is_not_padded_beyond_the_stride(source):
    batches = OrderedViews(
        source, np.zeros((IMAGES, 1), np.int32), Looking(30, 36, (), None, "area"), stride=4, batch_size=4
    )
    assert {batches[number].views[0].image.shape for number in range(len(batches))} == {(4, 32, 32, 3)}
