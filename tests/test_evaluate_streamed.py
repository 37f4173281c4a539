"""Tests of images on disk: each image once in all its views, ensembles of runs, saved scores, averaged parameters."""

from functools import cache, partial

import jax
import numpy as np
import pytest
from PIL import Image
from random_variables import random_variables

from resnet_jax.build import build_state
from resnet_jax.checkpoints import Checkpoints
from resnet_jax.config import resolve
from resnet_jax.config_files import load_config
from resnet_jax.data.datasets import dataset_info
from resnet_jax.data.examples import Examples
from resnet_jax.data.input_description import InputDescription
from resnet_jax.data.prepare import prepare
from resnet_jax.data.statistics import PixelStatistics
from resnet_jax.data.streaming import ViewedExamples
from resnet_jax.distributed import data_mesh, replicate
from resnet_jax.evaluation import streamed_scores
from resnet_jax.evaluation.evaluator import make_evaluator, make_scorer, score_together
from resnet_jax.evaluation.predict import predict
from resnet_jax.evaluation.protocols import Center, MultiScale, make_protocol
from resnet_jax.evaluation.run import evaluate, evaluate_workdir, load_workdir
from resnet_jax.evaluation.scores import Scores, ensemble
from resnet_jax.models.registry import create_model
from resnet_jax.pretrained.weights import save_pretrained
from resnet_jax.training.state import Progress
from resnet_jax.workdir import Workdir

SIZE, SHORT_SIDE = 32, 40
CLASSES = tuple("abcdefg")
# Landscape, portrait, square, and smaller than the crop.
SHAPES = ((50, 70), (81, 64), (60, 60), (30, 41))
COUNT = 21
# The last two are padded to the same shapes.
SCALES = (32, 44, 48)
PROTOCOLS = (("center", {}), ("ten_crop", {}), ("ten_crop", {"average": "logits"}), ("multi_scale", {"scales": SCALES}))
OPTIONS = {"width": 4, "stage_sizes": (1, 1)}
STREAMED_KEYS = ("image_size", "short_sides", "statistics", "workers")
STREAMED_KEYS = (*(f"data__{key}" for key in STREAMED_KEYS), "evaluate__short_side")
MEAN, STD = np.full(3, 120, np.float32), np.full(3, 60, np.float32)


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """A folder of data sets with one of images of assorted sizes, prepared as a user would."""
    folder = tmp_path_factory.mktemp("flowers")
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for index in range(COUNT):
            height, width = SHAPES[index % len(SHAPES)]
            image = Image.fromarray(random.integers(0, 256, (6, 8, 3)).astype(np.uint8))
            path = folder / "source" / "flowers" / split / CLASSES[index % len(CLASSES)] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.resize((width, height), Image.Resampling.BICUBIC).save(path)
    prepare("image_folder", data_dir=folder / "sets", source=folder / "source" / "flowers")
    return folder / "sets"


@pytest.fixture(scope="module")
def examples(flowers):
    return Examples(dataset_info("flowers", data_dir=flowers), "test")


def description(class_names=CLASSES, size=SIZE):
    return InputDescription((size, size, 3), MEAN, STD, class_names, short_side=SHORT_SIDE)


@cache
def net(num_classes=7, seed=0):
    model = create_model("resnet18", num_classes=num_classes, **OPTIONS)
    return model, random_variables(model, (SIZE, SIZE, 3), train=False, seed=seed)


def one_by_one(protocol, examples, model, variables):
    """Each part of each image in a batch of its own."""
    score = jax.jit(partial(protocol.scores, model), compiler_options={"xla_backend_optimization_level": 0})
    rows = []
    for index in range(len(examples)):
        parts = protocol.view(examples[index].image)
        parts = parts if isinstance(parts, list) else [parts]
        scored = []
        for part in parts:
            image = np.zeros((1, *protocol.batch_shape(part.shape)), np.uint8)
            image[0][tuple(map(slice, part.shape))] = part
            scored.append(np.float64(score(variables, image, np.asarray([part.shape[-3:-1]], np.int32))[0]))
        mean = np.mean(scored, axis=0) if protocol.average == "logits" else np.log(np.mean(np.exp(scored), axis=0))
        rows.append(scored[0] if len(scored) == 1 else mean)
    return np.stack(rows)


@pytest.mark.parametrize(("name", "options"), PROTOCOLS, ids=str)
def test_every_image_counts_once_in_any_batch_and_on_any_devices(examples, name, options):
    model, variables = net()
    protocol = make_protocol(name, description(), **options)
    expected = one_by_one(protocol, examples, model, variables)
    labels = np.asarray([examples[index].label for index in range(COUNT)])
    order = np.argsort(-expected, axis=-1)
    for devices, batch_size in ((1, 4), (8, 40)):
        mesh = data_mesh(jax.devices()[:devices])
        score = make_scorer(model, mesh, protocol=protocol, batch_size=batch_size, workers=0)
        logits, found_labels = score(replicate(variables, mesh), examples)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found_labels, labels)
        errors = Scores(logits, found_labels, "a", name, "flowers", "test").errors()
        assert errors["count"] == COUNT
        assert errors["error_top1"] == np.mean(order[:, 0] != labels)
        assert errors["error_top5"] == np.mean([y not in row[:5] for y, row in zip(labels, order, strict=True)])


def test_an_evaluator_gives_the_scores_errors(examples):
    model, variables = net()
    mesh = data_mesh(jax.devices()[:2])
    variables = replicate(variables, mesh)
    for name in ("center", "ten_crop"):
        protocol = make_protocol(name, description())
        run = make_evaluator(model, mesh, protocol=name, batch_size=8, input=description(), workers=0)
        logits, labels = make_scorer(model, mesh, protocol=protocol, batch_size=8, workers=0)(variables, examples)
        assert run(variables, examples) == Scores(logits, labels, "a", name, "flowers", "test").errors()


def test_programs_are_as_few_as_shapes_and_batches_hold_equal_work(examples):
    """At most one for each shape of the ladder, whatever the images; and none again in a second test."""
    traced = []

    class Counted(MultiScale):
        def scores(self, model, variables, images, sizes):
            traced.append(images.shape)
            return super().scores(model, variables, images, sizes)

    model, variables = net()
    protocol = Counted(description(), "probabilities", SCALES)
    score = make_scorer(model, data_mesh(jax.devices()[:1]), protocol=protocol, batch_size=40, workers=0)
    score(variables, examples)
    score(variables, examples)
    shapes = {
        protocol.batch_shape(part.shape) for index in range(COUNT) for part in protocol.view(examples[index].image)
    }
    # 40 views of 32 x 32 pixels; a batch is also seen mirrored.
    assert sorted(traced) == sorted((40 * 32 * 32 // (2 * h * w), h, w, c) for h, w, c in shapes)
    # Landscape and portrait with an aspect of 3/2, 32 and 64 pixels.
    assert len(shapes) == 4


def test_an_image_that_is_left_out_stops_the_test(examples, monkeypatch):
    model, variables = net()
    protocol = make_protocol("center", description())
    monkeypatch.setattr(Center, "images_per_part", 4)
    monkeypatch.setattr(streamed_scores.ViewedExamples, "__len__", lambda self: len(self.examples) // 4)
    score = make_scorer(model, data_mesh(jax.devices()[:1]), protocol=protocol, batch_size=8, workers=0)
    with pytest.raises(RuntimeError, match="1 of 21 images were not scored once"):
        score(variables, examples)


def test_worker_processes_give_the_same(examples):
    model, variables = net()
    protocol = make_protocol("multi_scale", description(), scales=SCALES[:1])
    mesh = data_mesh(jax.devices()[:1])
    here, there = (
        make_scorer(model, mesh, protocol=protocol, batch_size=8, workers=workers)(variables, examples)
        for workers in (0, 1)
    )
    np.testing.assert_array_equal(here[0], there[0])
    np.testing.assert_array_equal(here[1], there[1])


@pytest.mark.parametrize(("name", "options"), PROTOCOLS, ids=str)
def test_real_images_of_a_thousand_classes(real_data, name, options):
    examples = Examples(dataset_info("imagenet2012", data_dir=real_data), "validation")
    model, variables = net(num_classes=1000)
    input = description(examples.info.class_names)
    mesh = data_mesh(jax.devices()[:8])
    protocol = make_protocol(name, input, **options)
    score = make_scorer(model, mesh, protocol=protocol, batch_size=64, workers=0)
    logits, labels = score(replicate(variables, mesh), examples)
    assert logits.shape == (len(examples), 1000) and len(set(labels)) > 90
    assert np.isfinite(logits).all()
    if (name, protocol.average) != ("ten_crop", "logits") and name != "center":
        np.testing.assert_allclose(np.logaddexp.reduce(logits, axis=1), 0, atol=1e-4)


@pytest.fixture(scope="module")
def make_run(flowers, tmp_path_factory):
    """Makes the workdir of a run as training leaves it behind, with random parameters."""
    folder = tmp_path_factory.mktemp("runs")
    statistics = folder / "statistics.npz"
    PixelStatistics(None, MEAN, STD, np.ones(3), np.eye(3), count=COUNT, source="measured").save(statistics)

    def make(name, *, seed=0, steps=(3,), **changes):
        settings = {
            "model.name": "cifar_resnet8",
            "model.width": "4",
            "data.name": "flowers",
            "data.data_dir": str(flowers),
            "data.pipeline": "streamed",
            "data.image_size": str(SIZE),
            "data.short_sides": "(32,48)",
            "data.normalization": "channel_mean_std",
            "data.statistics": str(statistics),
            "data.workers": "0",
            "evaluate.short_side": str(SHORT_SIDE),
            "evaluate.batch_size": "8",
            "train.batch_size": "8",
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
        settings = {key: value for key, value in settings.items() if value is not None}
        config = resolve(load_config("digits", settings), train_examples=COUNT, device_count=8)
        files = Workdir(folder / name)
        files.path.mkdir(parents=True)
        files.claim(config, description(), "0")
        model = create_model("cifar_resnet8", num_classes=len(CLASSES), width=4)
        with Checkpoints(files.checkpoints) as checkpoints:
            for step in steps:
                variables = random_variables(model, (SIZE, SIZE, 3), train=False, seed=seed + step)
                state = build_state(config, variables)
                if state.ema:
                    state = state.replace(ema=jax.tree.map(lambda leaf: leaf * 0.5, state.ema))
                checkpoints.save(step, replicate((state, Progress.zero()), data_mesh()))
        return files.path

    return make


@pytest.fixture(scope="module")
def runs(make_run):
    return [make_run("first", seed=1, steps=(2, 3)), make_run("second", seed=7)]


def by_hand(workdir, protocol, examples):
    model, variables = load_workdir(workdir)
    score = make_scorer(model, data_mesh(jax.devices()[:1]), protocol=protocol, batch_size=5, workers=0)
    return Scores(*score(variables, examples), "net", protocol.label, "flowers", "test")


def test_an_ensemble_of_runs_and_saved_scores_is_the_average_of_its_members(runs, examples, tmp_path):
    options = {"protocol": "ten_crop", "average": "logits"}
    result = evaluate(runs, save_scores=tmp_path / "scores", **options)
    protocol = make_protocol("ten_crop", description(), average="logits")
    members = [by_hand(workdir, protocol, examples) for workdir in runs]
    for found, name, member in zip(result["members"], ("first", "second"), members, strict=True):
        assert (found["member"], found["protocol"], found["step"]) == (name, "ten_crop, mean of logits", 3)
        assert {key: found[key] for key in member.errors()} == pytest.approx(member.errors(), rel=1e-5)
    together = ensemble(members).errors()
    assert together["loss"] != pytest.approx(result["members"][0]["loss"], rel=1e-3)
    assert {key: result["ensemble"][key] for key in together} == pytest.approx(together, rel=1e-5)
    files = sorted((tmp_path / "scores").iterdir())
    assert [file.name for file in files] == ["first.npz", "second.npz"]
    assert evaluate([], scores=files) == result
    mixed = evaluate(runs[:1], scores=files[1:], **options)
    assert mixed == result


def test_weight_files_are_members_like_the_runs_they_were_saved_from(runs, tmp_path):
    paths = []
    for workdir in runs:
        input = InputDescription.load(Workdir(workdir).input)
        paths.append(save_pretrained(tmp_path / f"{workdir.name}.safetensors", *load_workdir(workdir), input=input))
    from_runs = evaluate(runs)
    mixed = evaluate(runs[:1], weights=paths[1:])
    assert [found["member"] for found in mixed["members"]] == ["first", "second"]
    assert mixed["ensemble"] == from_runs["ensemble"]
    assert "step" not in mixed["members"][1]
    # Without a workdir, a config says on what to test.
    config = Workdir(runs[0]).read_config()
    alone = evaluate([], weights=paths, config=config)
    assert alone["ensemble"] == from_runs["ensemble"]
    with pytest.raises(ValueError, match="does not say on what data to test it: name a config"):
        evaluate([], weights=paths)
    silent = save_pretrained(tmp_path / "silent.safetensors", *load_workdir(runs[0]))
    with pytest.raises(ValueError, match="silent.safetensors does not say what input its net expects"):
        evaluate(runs[:1], weights=[silent])
    with pytest.raises(ValueError, match="recompute_statistics needs the training's config"):
        evaluate(runs[:1], weights=paths, recompute_statistics=2)


def test_one_run_is_tested_alone(runs, tmp_path):
    found = evaluate_workdir(runs[0], checkpoint=2, split="train[:5]", save_scores=tmp_path / "a.npz", batch_size=3)
    assert (found["member"], found["step"], found["count"], found["protocol"]) == ("first", 2, 5, "center")
    assert evaluate([runs[0]], split="train[:5]")["members"][0]["loss"] != found["loss"]
    assert evaluate([], scores=[tmp_path / "a.npz"]) == {"members": [found]}


def test_members_of_the_same_name_are_told_apart(runs, tmp_path):
    twice = evaluate([runs[0], runs[0]], save_scores=tmp_path)
    assert [found["member"] for found in twice["members"]] == ["first", "first-2"]
    assert twice["ensemble"]["loss"] == pytest.approx(twice["members"][0]["loss"], rel=1e-5)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["first-2.npz", "first.npz"]


def test_averaged_parameters_are_the_ones_that_are_tested(make_run, examples):
    plain, averaged = make_run("plain"), make_run("averaged", train__ema_decay="0.9")
    (_, whole), (_, half) = load_workdir(plain), load_workdir(averaged)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a * 0.5, b), whole, half)
    found = evaluate([averaged])["members"][0]
    by_averages = by_hand(averaged, make_protocol("center", description()), examples).errors()
    assert found["loss"] == pytest.approx(by_averages["loss"], rel=1e-5)
    assert found["loss"] != pytest.approx(evaluate([plain])["members"][0]["loss"], rel=1e-3)


def test_recomputed_statistics_come_from_the_streamed_training_images(runs):
    kept, recomputed, again = (evaluate_workdir(runs[0], recompute_statistics=batches) for batches in (0, 2, 2))
    assert recomputed == again and recomputed["count"] == COUNT
    assert recomputed["loss"] != pytest.approx(kept["loss"], rel=1e-3)


def test_prediction_sees_the_centre_view(runs, examples, tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for index, path in enumerate(paths):
        path.write_bytes(examples[index].image)
    logits = by_hand(runs[0], make_protocol("center", description()), examples).logits[:3]
    probabilities = np.asarray(jax.nn.softmax(logits))
    (tmp_path / "cut.png").write_bytes(examples[0].image[:-30])
    *found, cut = predict([*paths, tmp_path / "cut.png"], workdir=runs[0], top=7)
    for row, prediction in zip(probabilities, found, strict=True):
        assert dict(prediction.classes) == pytest.approx(dict(zip(CLASSES, row, strict=True)), rel=1e-4)
    assert cut.error.startswith("not an image that can be read")


def test_what_is_wrong_is_found_before_anything_is_scored(runs, make_run, tmp_path, monkeypatch):
    monkeypatch.setattr("resnet_jax.evaluation.members.open_split", lambda *_: pytest.fail("a split was opened"))
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate([])
    with pytest.raises(FileNotFoundError, match="nowhere is not the workdir"):
        evaluate(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="config='digits' must be what resnet_jax.load_config makes"):
        evaluate(weights="net.safetensors", config="digits")
    with pytest.raises(ValueError, match="batch_size=0: must be at least 1"):
        evaluate(runs, batch_size=0)
    with pytest.raises(ValueError, match="name a folder for 2 workdirs"):
        evaluate(runs, save_scores=tmp_path / "a.npz")
    with pytest.raises(ValueError, match="each at least the net's input size of 32"):
        evaluate(runs, protocol="multi_scale", scales=[16])
    with pytest.raises(FileNotFoundError, match="not the workdir of a run"):
        evaluate([*runs, tmp_path])
    with pytest.raises(ValueError, match="checkpoint"):
        evaluate(runs, checkpoint=77)
    others = make_run("others", data__test_split="test[:9]")
    with pytest.raises(ValueError, match=r"found split 'test' of 'flowers', 'test\[:9\]' of 'flowers'"):
        evaluate([*runs, others])
    # Images of one size, which the config would keep in device memory.
    resident = make_run("resident", **dict.fromkeys(STREAMED_KEYS, None), data__pipeline="resident")
    with pytest.raises(ValueError, match="protocol='ten_crop' needs images of varying size"):
        evaluate([resident], protocol="ten_crop")


def test_members_that_see_the_same_pixels_share_the_decoding(runs, examples, monkeypatch):
    opened = []

    def counted(examples, view, **options):
        opened.append(view)
        return ViewedExamples(examples, view, **options)

    alone = [evaluate(run, protocol="ten_crop")["members"][0] for run in runs]
    monkeypatch.setattr(streamed_scores, "ViewedExamples", counted)
    together = evaluate([*runs, runs[0]], protocol="ten_crop")
    assert len(opened) == 1
    for found, member in zip(together["members"], (*alone, alone[0]), strict=True):
        assert found == {**member, "member": found["member"]}
    protocols = [make_protocol("center", description(size=size)) for size in (SIZE, SIZE // 2)]
    with pytest.raises(ValueError, match="see the same of an image"):
        score_together([load_workdir(run) for run in runs], examples, data_mesh(), protocols=protocols, batch_size=8)
