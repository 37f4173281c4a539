"""Runs that are diagnosed: what they write, that they train as if they were not, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from colored_images import build_colored_images
from random_variables import random_variables

from resnet_jax.build import build
from resnet_jax.config import resolve
from resnet_jax.config_files import load_config
from resnet_jax.data.datasets import dataset_info
from resnet_jax.data.examples import Examples
from resnet_jax.data.prepare import prepare
from resnet_jax.data.statistics import measure
from resnet_jax.data.views import CenterView
from resnet_jax.diagnostics.diagnosis import make_diagnosis
from resnet_jax.diagnostics.probe import load_probe
from resnet_jax.distributed import data_mesh
from resnet_jax.models.resnet import ResNet
from resnet_jax.records import read_metrics
from resnet_jax.training.loop import train, train_seeds

SMALL = {
    "model.name": "cifar_resnet8",
    "model.width": 2,
    "train.batch_size": 32,
    "train.duration": 8,
    "train.unit": "steps",
    "train.log_every": 8,
    "evaluate.every": 8,
    "checkpoint.every": 8,
}
DIAGNOSED = {"diagnostics.every": 3, "diagnostics.images": 32}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepare("digits", data_dir=folder)

    def make(**changes):
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        return load_config("digits", {**SMALL, "data.data_dir": str(folder), **changes})

    return make


@pytest.fixture(scope="module")
def diagnosed(digits, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("diagnosed")
    return workdir, train(digits(**DIAGNOSED), workdir)


def one_block(config):
    """The parts of a run of a net that is compiled in no time, on one device."""
    parts = build(config)
    model = ResNet(stage_sizes=(1,), num_classes=10, stem="cifar", shortcut="A", width=2)
    variables = random_variables(model, parts.input.image_shape, train=False)
    mesh = data_mesh(jax.devices()[:1])
    return dataclasses.replace(parts, model=model, mesh=mesh, initialize=lambda key: variables)


def lines(workdir):
    """What a run wrote of its training and tests, without times."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    kept = [
        {k: v for k, v in row.items() if not k.startswith("diagnostics/") and "per_second" not in k} for row in rows
    ]
    return [row for row in kept if set(row) != {"step"}]


def test_a_run_trains_as_if_it_were_not_diagnosed(digits, diagnosed, tmp_path):
    record = train(digits(), tmp_path)
    assert lines(tmp_path) == lines(diagnosed[0])
    same = [("train", "loss"), ("test", "error_top1"), ("test", "count")]
    assert [record[a][b] for a, b in same] == [diagnosed[1][a][b] for a, b in same]
    assert "diagnostics_seconds" not in record
    assert not any(name.startswith("diagnostics/") for name in read_metrics(tmp_path / "metrics.jsonl"))


def test_everything_is_written_at_the_start_in_intervals_and_at_the_end(diagnosed):
    found = read_metrics(diagnosed[0] / "metrics.jsonl")
    stages = {"stem", "stage1", "stage2", "stage3"}
    by_stage = {
        *("gradient_norm", "gradient_zeros", "gradient_p10", "gradient_p50", "gradient_p90", "update_ratio"),
        *("activation_mean", "activation_std", "activation_zeros", "response_std"),
    }
    of_layers = {name for name in by_stage if not name.startswith(("activation", "response"))}
    expected = {"loss", "gradient_norm", "seconds"} | {f"{name}/{stage}" for name in by_stage for stage in stages}
    expected |= {f"{name}/classifier" for name in of_layers}
    assert {name.removeprefix("diagnostics/") for name in found if name.startswith("diagnostics/")} == expected
    for name in expected:
        steps, values = found[f"diagnostics/{name}"]
        assert list(steps) == [0, 3, 6, 8], name
        assert np.isfinite(values).all(), name
    seconds = found["diagnostics/seconds"][1]
    assert diagnosed[1]["diagnostics_seconds"] == pytest.approx(seconds.sum())
    assert seconds.min() > 0 and diagnosed[1]["diagnostics_seconds"] < diagnosed[1]["wall_seconds"]


def test_the_gradient_and_the_update_are_those_of_the_images(digits):
    """At the start, where the momentum is 0: the update is rate * (gradient + decay * weights)."""
    parts = one_block(digits(**DIAGNOSED, **{"optimizer.weight_decay": 0.0}))
    found = make_diagnosis(parts, {})(parts.initial_state())
    stages = [found[f"diagnostics/gradient_norm/{stage}"] for stage in ("stem", "stage1", "classifier")]
    assert found["diagnostics/gradient_norm"] == pytest.approx(np.linalg.norm(stages), rel=1e-5)
    classifier = parts.initial_variables()["params"]["classifier"]
    weights = np.linalg.norm(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(classifier)]))
    assert found["diagnostics/update_ratio/classifier"] == pytest.approx(0.1 * stages[-1] / weights, rel=1e-5)
    assert not any("hessian" in name or "singular" in name for name in found)


def test_curvature_is_that_of_the_loss_around_the_parameters(digits):
    parts = one_block(digits(**DIAGNOSED, **{"diagnostics.curvature": True}))
    state = parts.initial_state()
    found = make_diagnosis(parts, {})(state)
    costly = {"hessian_largest", "hessian_smallest", "noise_scale", "noise_trace", "noise_square"}
    costly |= {f"singular_value/{stage}" for stage in ("stem", "stage1", "classifier")}
    found = {name.removeprefix("diagnostics/"): value for name, value in found.items()}
    assert costly <= set(found) and all(np.isfinite(found[name]) for name in costly)
    assert found["hessian_largest"] > 0 > found["hessian_smallest"]
    assert found["noise_scale"] == pytest.approx(found["noise_trace"] / found["noise_square"])
    kernel = np.asarray(state.params["classifier"]["kernel"])
    assert found["singular_value/classifier"] == pytest.approx(np.linalg.norm(kernel, 2), rel=1e-3)


@pytest.mark.slow
def test_each_of_several_seeds_has_its_own(digits, tmp_path):
    changes = {"num_seeds": 2, "train.duration": 2, "train.log_every": 2}
    train_seeds(digits(**{**DIAGNOSED, **changes, "schedule.name": "constant"}), tmp_path)
    losses = [read_metrics(tmp_path / f"seed_{seed}" / "metrics.jsonl")["diagnostics/loss"] for seed in (0, 1)]
    assert [list(steps) for steps, _ in losses] == [[0, 2], [0, 2]]
    assert (losses[0][1] != losses[1][1]).all()


def test_streamed_images_are_looked_at_as_in_a_test(tmp_path):
    build_colored_images(tmp_path, "broken", classes=4, broken=(3,), train=44, test=21)
    measure("broken", data_dir=tmp_path, split="test[4:]", image_size=32, short_side=36, workers=0)
    sizes = {"data.image_size": 32, "data.short_sides": (32, 48), "evaluate.image_size": 32, "evaluate.short_side": 36}
    config = load_config(
        "imagenet:paper,resnet18",
        {
            **{**sizes, "data.name": "broken", "data.data_dir": str(tmp_path), "data.workers": 0},
            **{"model.name": "cifar_resnet8", "model.width": 2, "model.bn_group_size": 8, "data.unreadable": "skip"},
            **{"train.batch_size": 32, "data.test_split": "test", "diagnostics.every": 1, "diagnostics.images": 16},
        },
    )
    parts = build(config)
    parts.feed.close()
    images, labels = load_probe(parts.config, parts.input, parts.mesh)
    # Example 3 cannot be decoded: those after it move up.
    examples, view = (
        Examples(dataset_info("broken", data_dir=tmp_path), "train"),
        CenterView(32, 36, resize=parts.input.resize),
    )
    places = [*range(3), *range(4, 17)]
    expected = [examples.decoded(place, view) for place in places]
    pixels = np.stack([image for image, _ in expected]) - parts.input.mean
    np.testing.assert_allclose(np.asarray(images) * parts.input.std, pixels, atol=1e-3)
    np.testing.assert_array_equal(labels, [label for _, label in expected])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diagnostics.every": -1}, "diagnostics.every=-1: must be a finite number at least 0"),
        ({"diagnostics.every": 0.5}, "diagnostics.every=0.5: must be whole in steps"),
        ({"diagnostics.curvature": True}, "diagnostics.curvature=True: needs diagnostics.every above 0"),
        (
            {**DIAGNOSED, "model.bn_group_size": 16, "diagnostics.images": 24},
            "diagnostics.images=24: must be a multiple of model.bn_group_size=16",
        ),
        (
            {**DIAGNOSED, "diagnostics.images": 18, "diagnostics.curvature": True},
            "diagnostics.images=18: must be a multiple of 4 with diagnostics.curvature=True",
        ),
        (
            {**DIAGNOSED, "model.bn_group_size": 32, "diagnostics.curvature": True},
            "diagnostics.images=32: must be a multiple of 2 x model.bn_group_size=32 with",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(digits, changes, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        digits(**changes)


@pytest.mark.parametrize(
    ("images", "examples", "message"),
    [
        (256, 200, "diagnostics.images=256: more than the 200 images of data.train_split='train'"),
        (36, 1438, "diagnostics.images=36: must be a multiple of the 8 devices"),
    ],
)
def test_images_that_are_not_there_or_not_shared_are_refused(digits, images, examples, message):
    config = digits(**{**DIAGNOSED, "diagnostics.images": images})
    with pytest.raises(ValueError, match=message):
        resolve(config, train_examples=examples, device_count=8)


def test_tasks_with_boxes_have_no_such_keys():
    with pytest.raises(
        ValueError, match=r"config key diagnostics\.every is of task=classification, and this config is of"
    ):
        load_config("detection", {"diagnostics.every": 5})
