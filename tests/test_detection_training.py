"""Whole runs that train a detector: one training system, with what it promises of any other run."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from unittest import mock

import jax
import numpy as np
import pytest
from box_sets import CLASSES, write_voc_folder
from PIL import Image
from test_loop import StopAt, assert_same_run, everything

import resnet_jax.detection.parts as detection_parts
from resnet_jax import cli
from resnet_jax.config_files import load_config
from resnet_jax.data.input_description import InputDescription
from resnet_jax.detection.four_steps import NAMES, four_steps
from resnet_jax.detection.run import evaluate_detectors
from resnet_jax.detection.trained import TrainedDetector
from resnet_jax.distributed import data_mesh
from resnet_jax.models.registry import create_model, initialize
from resnet_jax.pretrained import reading
from resnet_jax.pretrained.weights import save_pretrained
from resnet_jax.records import read_metrics, read_record
from resnet_jax.training.loop import _Run, train
from resnet_jax.workdir import Workdir

SMALL = {
    "model.name": "cifar_resnet8",
    "model.width": 4,
    "data.short_side": 32,
    "data.long_side": 64,
    "data.max_boxes": 4,
    "detector.anchor_sizes": (12.0, 24.0),
    "detector.rpn_features": 8,
    "detector.roi_size": 4,
    "detector.freeze_at": 1,
    "sampling.proposals_before": 100,
    "sampling.proposals": 20,
    "sampling.anchors": 16,
    "sampling.regions": 8,
    "evaluate.proposals_before": 100,
    "evaluate.proposals": 10,
    "evaluate.detections": 8,
    "evaluate.score": 0.01,
    "evaluate.batch_size": 8,
    "evaluate.every": 3,
    "checkpoint.every": 3,
    "checkpoint.keep_latest": 3,
    "schedule.name": "constant",
    "schedule.warmup": "none",
    "schedule.warmup_duration": 0,
    "train.log_every": 2,
    "train.duration": 6,
    "train.batch_size": 8,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of both shapes, and a part of each split that has one alone, for which less is compiled."""
    wide = [index for index in range(31) if index % 11 > 1]
    splits = {"train": range(20), "val": range(20, 31), "wide": wide[:16], "wide_val": wide[16:]}
    return write_voc_folder(tmp_path_factory.mktemp("sets") / "voc", **splits)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Images of one shape, of two other classes."""
    wide = [index for index in range(31) if index % 11 > 1]
    folder = write_voc_folder(tmp_path_factory.mktemp("sets") / "others", wide=wide[:16], wide_val=wide[16:])
    for path in (folder / "Annotations").iterdir():
        text = path.read_text()
        for name, other in zip(CLASSES, ("ant", "bee", "bee"), strict=True):
            text = text.replace(f"<name>{name}</name>", f"<name>{other}</name>")
        path.write_text(text)
    return folder


@pytest.fixture(scope="module")
def small(folder):
    def make(**changes):
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        sets = {"data.train_sets": f"{folder}:train", "data.test_sets": f"{folder}:val"}
        return load_config("detection:small", {**SMALL, **sets, **changes})

    return make


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """A run's workdir, its record, and how often a step was compiled."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    with mock.patch.object(_Run, "compile", autospec=True, side_effect=_Run.compile) as compile:
        record = train(small(), workdir)
    return workdir, record, compile.call_count


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A weight file of the classification net, with statistics that are not those of no net."""
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    model = create_model("cifar_resnet8", width=4, num_classes=5)
    variables = initialize(model, jax.random.key(3), (32, 32, 3))
    variables["batch_stats"] = jax.tree.map(lambda leaf: leaf + 0.25, variables["batch_stats"])
    mean = np.full((32, 32, 3), 90, np.float32) + np.arange(3, dtype=np.float32)
    input = InputDescription((32, 32, 3), mean, np.full(3, 50, np.float32), tuple("abcde"))
    save_pretrained(path, model, variables, input=input)
    return path, variables


def variables_of(workdir):
    found = TrainedDetector.restore(Workdir(workdir), checkpoint="latest", mesh=data_mesh(jax.devices()[:1]))
    return jax.tree.map(np.asarray, found.variables)


def short(folder):
    """Two steps on images of one shape."""
    return {
        "data__train_sets": f"{folder}:wide",
        "data__test_sets": f"{folder}:wide_val",
        "train__duration": 2,
        "evaluate__every": 2,
        "checkpoint__every": 2,
    }


def box_loss(parts):
    """Of the first step's regions, whose boxes it depends on."""
    arguments = (parts.initial_state(), parts.initial_progress(), *parts.feed.arguments(0))
    _, progress = parts.make_call(1)(*arguments)
    parts.feed.close()
    return progress.sums.means()["region_boxes"]


def moved(before, after):
    """Names of the detector's parts, and of the trunk's layers, whose parameters are not the same."""
    changed = set()
    for path, left in jax.tree_util.tree_leaves_with_path(before["params"]):
        right = after["params"]
        for part in path:
            right = right[part.key]
        if not np.array_equal(left, right):
            names = [part.key for part in path]
            changed.add("/".join(names[:2]) if names[0] == "trunk" else names[0])
    return changed


def test_a_run_leaves_record_metrics_curves_and_checkpoints(finished):
    workdir, record, _ = finished
    files = Workdir(workdir)
    assert read_record(files.record) == record
    assert record["config"]["task"] == "detection" and record["steps"] == 6
    assert record["test"]["count"] == 11 and record["test"]["error_ap"] == 1 - record["test"]["ap_50"]
    assert set(record["test"]["ap_50_of_classes"]) == set(CLASSES)
    assert "train" not in record
    assert record["unreadable_images"] == 0
    metrics = read_metrics(files.metrics)
    assert list(metrics["train/loss"][0]) == [2, 4, 6] and list(metrics["test/ap_50"][0]) == [3, 6]
    assert {"train/objectness", "train/anchor_boxes", "train/classes", "train/region_boxes"} <= set(metrics)
    assert files.curves.is_file()


def test_a_step_is_compiled_once_for_each_of_the_two_shapes(finished):
    assert finished[2] == 2


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(finished, small, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(small(), tmp_path / "run", writers=[StopAt(4)])
    assert not Workdir(tmp_path / "run").record.exists()
    record = train(small(), tmp_path / "run")
    assert record["resumed_from_step"] == 3
    assert_same_run(tmp_path / "run", finished[0])


@pytest.mark.slow
def test_one_device_learns_what_eight_do(finished, small, tmp_path):
    assert len(jax.devices()) == 8
    with mock.patch.object(detection_parts, "data_mesh", lambda slices: data_mesh(jax.devices()[:1])):
        record = train(small(), tmp_path)
    ours, theirs = everything(tmp_path), everything(finished[0])
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    assert record["test"]["count"] == 11


def test_constant_layers_stay_and_all_others_move(finished, small):
    before = detection_parts.build(small()).initial_variables()
    after = variables_of(finished[0])
    names = {name.partition("_")[0] for name in moved(before, after)}
    assert names == {"trunk/stage1", "trunk/stage2", "tail", "rpn", "classifier", "regressor"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(before["batch_stats"]):
        there = after["batch_stats"]
        for part in path:
            there = there[part.key]
        np.testing.assert_array_equal(leaf, there)


@pytest.mark.parametrize(
    ("trains", "parts"),
    [
        ("proposals", {"trunk/stage1", "trunk/stage2", "rpn"}),
        ("regions", {"trunk/stage1", "trunk/stage2", "tail", "classifier", "regressor"}),
    ],
)
def test_what_a_part_of_the_loss_does_not_train_stays(trains, parts, finished, folder, small, tmp_path):
    changes = {"detector__start_from": str(finished[0]), "detector__trains": trains}
    config = small(**changes, **short(folder), optimizer__weight_decay=0.1)
    record = train(config, tmp_path)
    assert {name.partition("_")[0] for name in moved(variables_of(finished[0]), variables_of(tmp_path))} == parts
    losses = read_metrics(Workdir(tmp_path).metrics)
    unused = {"proposals": "classes", "regions": "objectness"}[trains]
    assert losses[f"train/{unused}"][1][-1] == 0.0 and losses["train/loss"][1][-1] > 0
    assert record["test"]["count"] > 0


@pytest.fixture(scope="module")
def described(finished, tmp_path_factory):
    """The finished run, as if it had been trained with weights that brought statistics."""
    workdir = shutil.copytree(finished[0], tmp_path_factory.mktemp("runs") / "described")
    input = InputDescription.load(Workdir(workdir).input)
    replace(input, mean=np.float32([90, 91, 92]), std=np.full(3, 50, np.float32)).save(Workdir(workdir).input)
    return workdir


@pytest.mark.parametrize(("classes", "context"), [("others", False), ("others", True), ("same", False)])
def test_layers_of_classes_begin_anew_and_all_others_where_the_run_ended(
    classes, context, described, others, folder, small
):
    """A context makes the vectors longer that the layers of classes, and no others, look at."""
    data = {**short({"others": others, "same": folder}[classes]), "detector__context": context}
    own = {"detector__start_from": str(described), "detector__new_classes": True}
    parts, before = detection_parts.build(small(**data, **own)), variables_of(described)
    fresh = detection_parts.build(small(**data)).initial_variables()
    anew = {layer: fresh["params"][layer] for layer in ("classifier", "regressor")}
    expected = {**before, "params": {**before["params"], **anew}}
    jax.tree.map(np.testing.assert_array_equal, parts.initial_variables(), expected)
    names = {"others": ("ant", "bee"), "same": CLASSES}[classes]
    assert parts.input.same_as(replace(InputDescription.load(Workdir(described).input), class_names=names))


@pytest.mark.slow
def test_a_detector_of_other_classes_is_trained_further(finished, others, small, tmp_path):
    config = small(**short(others), detector__start_from=str(finished[0]), detector__new_classes=True)
    record = train(config, tmp_path)
    assert set(record["test"]["ap_50_of_classes"]) == {"ant", "bee"} and record["steps"] == 2
    assert InputDescription.load(Workdir(tmp_path).input).class_names == ("ant", "bee")
    assert variables_of(tmp_path)["params"]["classifier"]["bias"].shape == (3,)


@pytest.mark.slow
def test_regions_are_trained_on_the_proposals_of_another_detector(finished, folder, small):
    """Of the same variables the proposals are the same, wherever they are made; of others they are not."""
    # So low that proposals of nets that know nothing hit objects.
    shared = {**short(folder), "detector__trains": "regions", "sampling__region_positive": 0.1}
    own = {"detector__start_from": str(finished[0])}
    other = {"detector__proposals_from": str(finished[0])}
    losses = [box_loss(detection_parts.build(small(**shared, **keys))) for keys in (own, {**own, **other}, other, {})]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] != pytest.approx(losses[3], rel=0.01)


@pytest.mark.slow
def test_four_steps_train_what_they_say(folder, small, tmp_path):
    """Each starts where the one before ended, and what is shared is not touched any more once both use it."""
    words = {key.replace("__", "."): value for key, value in short(folder).items()}
    words = [f"--config.{key}={value}" for key, value in {**SMALL, **words}.items()]
    assert cli.main(["train", "--config=detection:small", "--four_steps", f"--workdir={tmp_path}", *words]) == 0
    after = [variables_of(tmp_path / name) for name in NAMES]
    first = {name.partition("/")[0] for name in moved(after[0], after[1])}
    assert first == {"trunk", "tail", "rpn", "classifier", "regressor"}
    assert moved(after[1], after[2]) == {"rpn"}
    assert moved(after[2], after[3]) == {"tail", "classifier", "regressor"}
    # All is done: nothing is trained anew.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("record.json")}
    assert len(before) == 4
    assert cli.main(["train", "--config=detection:small", "--four_steps", f"--workdir={tmp_path}", *words]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_four_steps_are_of_a_config_of_joint_training(small, tmp_path):
    with pytest.raises(ValueError, match="detector.trains=regions: must be all"):
        four_steps(small(detector__trains="regions"), tmp_path)
    with pytest.raises(ValueError, match="task=classification: four steps train a detector"):
        four_steps(load_config("digits"), tmp_path)


def test_weights_become_trunk_and_tail_and_bring_their_statistics(weights, small):
    path, variables = weights
    with mock.patch.object(reading, "_load", side_effect=reading._load) as load:
        parts = detection_parts.build(small(detector__weights=str(path)))
        own = parts.initial_variables()
    assert load.call_count == 1
    kernel = variables["params"]["stage3_block1"]["conv1"]["kernel"]
    np.testing.assert_array_equal(own["params"]["tail"]["stage3_block1"]["conv1"]["kernel"], kernel)
    np.testing.assert_array_equal(
        own["params"]["trunk"]["stem"]["conv"]["kernel"], variables["params"]["stem"]["conv"]["kernel"]
    )
    np.testing.assert_array_equal(
        own["batch_stats"]["trunk"]["stage1_block1"]["norm1"]["mean"],
        variables["batch_stats"]["stage1_block1"]["norm1"]["mean"],
    )
    np.testing.assert_array_equal(parts.input.mean, [90, 91, 92])
    np.testing.assert_array_equal(parts.input.std, [50, 50, 50])
    assert parts.input.class_names == CLASSES


def test_vgg16_s_weights_are_read_once_and_become_trunk_and_tail(small):
    """Of small arrays, since those of its fc6 are 400 MB."""
    trunk, tail = ({layer: {"kernel": np.full(2, value)}} for layer, value in (("conv1_1", 3.0), ("fc6", 4.0)))
    input = InputDescription((224, 224, 3), np.float32([90, 91, 92]), np.full(3, 50, np.float32), ())
    changes = {"model__name": "vgg16", "model__width": None, "detector__weights": "vgg16.safetensors"}
    random = {"params": {"trunk": {}, "tail": {}, "rpn": {"bias": np.ones(1)}}, "batch_stats": {}}
    with (
        mock.patch.object(detection_parts, "load_vgg16", return_value=(trunk, tail, input)) as load,
        mock.patch.object(detection_parts, "initial_variables", return_value=random),
    ):
        parts = detection_parts.build(small(**changes))
        own = parts.initial_variables()
    load.assert_called_once_with("vgg16.safetensors")
    assert own == {"params": {**random["params"], "trunk": trunk, "tail": tail}, "batch_stats": {}}
    np.testing.assert_array_equal(parts.input.mean, [90, 91, 92])


def test_images_of_several_scales_share_the_shapes(small):
    parts = detection_parts.build(small(data__train_short_sides=(16, 24, 32)))
    shapes, sides = set(), set()
    for step in range(6):
        examples, weight, _ = parts.feed.arguments(step)
        shapes.add(examples.image.shape)
        sides |= {int(size.min()) for size in np.asarray(examples.size)[np.asarray(weight) > 0]}
    parts.feed.close()
    assert shapes == {(8, 32, 64, 3), (8, 64, 32, 3)}
    assert sides >= {16, 24}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train__batch_size": 24}, "train.batch_size=24: more than the 20 images of data.train_sets="),
        ({"train__batch_size": 12}, "train.batch_size=12: not divisible by devices=8"),
        ({"detector__weights": "WEIGHTS", "model__width": 8}, "none of its"),
        ({"detector__start_from": "RUN", "model__width": 8}, "it is of another net than model.name=cifar_resnet8"),
        ({"detector__start_from": "nowhere"}, "is not the workdir of a run"),
        ({"detector__new_classes": True}, "detector.new_classes=True: needs detector.start_from"),
        (
            {"detector__start_from": "RUN", "data__train_sets": "OTHERS:wide", "data__test_sets": "OTHERS:wide_val"},
            "it is of other classes than those of the data; detector.new_classes=True begins",
        ),
        (
            {"detector__start_from": "RUN", "detector__anchor_sizes": (12.0,)},
            "; rpn would fit with detector.anchor_sizes=(12.0, 24.0)",
        ),
        (
            {"detector__start_from": "RUN", "detector__rpn_features": 16, "detector__context": True},
            "; classifier, regressor, rpn would fit with detector.context=False, detector.rpn_features=8",
        ),
        ({"detector__proposals_from": "RUN"}, "detector.proposals_from: needs detector.trains=regions, not all"),
        (
            {"detector__proposals_from": "RUN", "detector__trains": "regions", "data__short_side": 16},
            "it expects other images",
        ),
        ({"num_seeds": 2}, "num_seeds=2: must be 1 with task=detection"),
        ({"train__determinism": "topology"}, "train.determinism=topology: must be default or repeatable"),
        ({"data__train_short_sides": (32, 128)}, "at most data.long_side=64"),
        ({"data__test_sets": "FOLDER:train"}, "must share no image"),
        ({"data__train_sets": "FOLDER:nothing"}, "split='nothing'"),
        ({"evaluate__short_sides": (32, 16)}, "must rise"),
        ({"data__mixup": 0.2}, "config key data.mixup is of task=classification, and this config is of task=detection"),
        ({"task": "classification"}, "detection:small is of task=detection; name a config of that task"),
    ],
)
def test_what_cannot_be_is_refused(changes, said, finished, weights, folder, others, small, tmp_path):
    places = {"WEIGHTS": str(weights[0]), "RUN": str(finished[0]), "FOLDER": str(folder)}
    places["OTHERS"] = str(others)
    for name, place in places.items():
        changes = {
            key: value.replace(name, place) if isinstance(value, str) else value for key, value in changes.items()
        }
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        train(small(**changes), tmp_path / "run")
    assert said in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"evaluate.batch_size": 16, "data.workers": 0},
        {"evaluate.refinement": True, "evaluate.voting": 0.5},
        {"evaluate.short_sides": "16,32", "evaluate.flip": "true"},
    ],
    ids=str,
)
def test_a_test_of_a_run_counts_every_image_once_however_it_is_made(changes, finished, tmp_path):
    workdir, record, _ = finished
    result = evaluate_detectors(workdir, changes=changes, results=tmp_path / "found.json")
    (entry,) = result["members"]
    assert entry["count"] == 11 and entry["step"] == 6 and entry["member"] == "finished"
    if set(changes) <= {"evaluate.batch_size", "data.workers"}:
        # As the run's own test found.
        assert entry["ap_50"] == pytest.approx(record["test"]["ap_50"], abs=1e-3)
    found = json.loads((tmp_path / "found.json").read_text())
    assert {each["image_id"] for each in found} <= set(range(11)) and {each["category_id"] for each in found} <= {
        0,
        1,
        2,
    }
    assert all(0 < each["score"] <= 1 and len(each["bbox"]) == 4 for each in found)


@pytest.mark.slow
def test_an_ensemble_of_a_detector_with_itself_is_the_detector(finished):
    workdir = finished[0]
    result = evaluate_detectors([workdir, workdir], changes={"evaluate.score": 0.2})
    first, second, both = *result["members"], result["ensemble"]
    assert first == second
    assert both["ap_50"] == pytest.approx(first["ap_50"], abs=1e-3) and both["count"] == 11


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"detector.context": True}, "detector.context: is of the training; a test can change evaluate.*"),
        ({"train.batch_size": 4}, "train.batch_size: is of the training"),
        ({"evaluate.voting": "2"}, "evaluate.voting=2.0: must be a finite number"),
        ({"evaluate.voted": "2"}, "unknown config key evaluate.voted; did you mean evaluate.voting?"),
        ({"data.test_sets": "nothing:test"}, "nothing"),
    ],
)
def test_what_a_test_cannot_change_is_refused(changes, said, finished):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        evaluate_detectors(finished[0], changes=changes)
    assert said in str(error.value)


def test_the_command_line_tests_a_detector(finished, capsys):
    assert cli.main(["evaluate", f"--workdir={finished[0]}", "--config.evaluate.score=0.1", "--json", "--recall"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["count"] == 11 and found["proposals"]["count"] == 11
    assert 0 <= found["proposals"]["recall_1"] <= found["proposals"]["recall_10"] <= 1
    assert cli.main(["evaluate", f"--workdir={finished[0]}", "--protocol=ten_crop"]) == 2
    assert "--protocol: not for a detector" in capsys.readouterr().err
    assert cli.main(["predict", f"--workdir={finished[0]}", "x.png"]) == 2
    assert "task=detection, not classification" in capsys.readouterr().err


def test_images_are_drawn_and_described_and_a_bad_one_is_named(finished, folder, capsys, tmp_path):
    images = [folder / "JPEGImages" / f"{index:06}.jpg" for index in (0, 5)]
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(images[0].read_bytes()[:300])
    words = [
        "detect",
        *map(str, [images[0], bad, images[1]]),
        f"--workdir={finished[0]}",
        f"--output={tmp_path / 'out'}",
    ]
    assert cli.main([*words, "--score=0.01"]) == 2
    out, err = capsys.readouterr()
    assert "1 of 3 images could not be read" in err and [line.split(":")[0] for line in out.splitlines()][1] == str(bad)
    entries = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [entry["image"] for entry in entries] == [str(images[0]), str(bad), str(images[1])]
    assert "error" in entries[1]
    for entry, path in zip(entries[::2], images, strict=True):
        with Image.open(tmp_path / "out" / entry["picture"]) as drawn, Image.open(path) as original:
            assert drawn.size == original.size == (entry["width"], entry["height"])
            pixels, before = np.asarray(drawn), np.asarray(original.convert("RGB"))
        # Something is found by a net that knows nothing, and drawn.
        assert entry["detections"] and (pixels != before).any()
        for each in entry["detections"]:
            x1, y1, x2, y2 = each["box"]
            assert -0.1 <= x1 < x2 <= entry["width"] + 0.1 and -0.1 <= y1 < y2 <= entry["height"] + 0.1
            assert each["class"] in CLASSES


@pytest.mark.slow
def test_two_hosts_learn_and_test_what_one_does(folder, tmp_path):
    """Every image is tested once, by one of them, and both go by the same numbers."""
    values = {**SMALL, "data.train_sets": f"{folder}:train", "data.test_sets": f"{folder}:val"}
    words = [f"--config.{key}={value}" for key, value in values.items()]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    found = []
    for hosts in ([], ["--simulate_hosts=2"]):
        workdir = tmp_path / str(len(hosts))
        command = [sys.executable, "-m", "resnet_jax", "train", "--config=detection:small", f"--workdir={workdir}"]
        subprocess.run([*command, *words, *hosts], check=True, env=environment, timeout=300)
        found.append(read_record(Workdir(workdir).record))
    assert [record["test"]["count"] for record in found] == [11, 11]
    assert found[0]["test"]["ap_50"] == pytest.approx(found[1]["test"]["ap_50"], abs=0.02)
    assert len(found[1]["devices"]) > 0
