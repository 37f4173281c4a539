"""Every config and variant is possible, says what it is, and holds the recipe it claims to."""

import ast
import importlib.util
import shlex
from pathlib import Path

import pytest

from resnet_jax import cli
from resnet_jax import config as configs
from resnet_jax.config_checks import learning_rate
from resnet_jax.config_files import load_config

FOLDER = Path(__file__).resolve().parent.parent / "configs"
FILES = sorted(FOLDER.glob("*.py"))
CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)


def variants(path):
    """The names in the file's VARIANTS."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.VARIANTS)


ALL = [(path, variant) for path in FILES for variant in variants(path)]
NAMES = [f"{path.stem}:{variant}" for path, variant in ALL]


def docstring(path):
    return ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("reference", NAMES)
def test_a_variant_resolves_and_names_a_net_that_can_be_made(reference):
    from resnet_jax.build import build_model
    from resnet_jax.detection.from_config import detector_of
    from resnet_jax.localization.from_config import localizer_of

    config = load_config(reference)
    of_task = {"classification": build_model, "detection": detector_of, "localization": localizer_of}
    of_task[config.task](config, num_classes=10)
    # The digits' training split is the smallest set there is.
    examples = 1437 if config.get("data").get("pipeline") == "resident" else 1_281_167
    configs.resolve(config, train_examples=examples, device_count=2)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_docstring_has_command_cost_and_result(path):
    lines = docstring(path).splitlines()
    assert [word for word in ("Command:", "Cost:", "Result:") if not any(line.startswith(word) for line in lines)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_commands_of_the_docstring_are_accepted(path, capsys):
    lines = [line.removeprefix("Command:").strip() for line in docstring(path).splitlines()]
    commands = [line for line in lines if line.startswith("resnet-jax train")]
    flags = [line[line.index("--config.") :] for line in lines if " --config." in line and "DIR" not in line]
    flags += [line for line in lines if line.startswith("'--config.")]
    assert commands
    for command in [*commands, *(f"{commands[0]} {more}" for more in flags)]:
        assert cli.main([*shlex.split(command)[1:], "--print_config"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_unknown_variant_is_answered_with_the_variants(path):
    first, last = variants(path)[0], variants(path)[-1]
    recipe, comma, net = first.rpartition(",")
    with pytest.raises(ValueError, match=f"{net}1'; did you mean '{net}'.*{last.rpartition(',')[2]}"):
        load_config(f"{path}:{recipe}{comma}{net}1")


def test_cifar10_has_every_net_of_table_6_and_the_plain_twins():
    nets = [f"resnet{depth}" for depth in CIFAR_DEPTHS] + [f"plain{depth}" for depth in CIFAR_DEPTHS[:-1]]
    assert variants(FOLDER / "cifar10.py") == nets
    assert {net: load_config(f"cifar10:{net}").model.name for net in nets} == {net: f"cifar_{net}" for net in nets}


@pytest.mark.parametrize("variant", variants(FOLDER / "cifar10.py"))
def test_cifar10_is_the_recipe_of_section_4_2(variant):
    config = configs.resolve(load_config(f"cifar10:{variant}"), train_examples=50_000, device_count=2)
    assert (config.steps.total, config.steps.boundaries) == (64_000, (32_000, 48_000))
    assert (config.schedule.name, config.schedule.learning_rate, config.schedule.factor) == (
        "piecewise",
        0.1,
        0.1,
    )
    assert (config.train.batch_size, config.model.bn_group_size) == (128, 64)
    assert config.optimizer.to_dict() == {
        "name": "sgd",
        "clip_norm": None,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 1e-4,
        "decay": "kernels",
    }
    assert (config.data.pad, config.data.flip, config.data.normalization) == (4, True, "pixel_mean")
    assert (config.data.train_split, config.data.validation_split, config.data.test_split) == (
        "train",
        None,
        "test",
    )
    # Section 4.2: 0.01 until the training error is below 80 %, for the 110-layer net and what is deeper.
    deep = variant.endswith(("110", "1202"))
    assert config.schedule.warmup == ("until_error" if deep else "none")
    assert (config.schedule.warmup_learning_rate, config.schedule.warmup_error) == (0.01, 0.8)
    assert (config.model.scan, config.model.remat) == (variant == "resnet1202",) * 2


@pytest.mark.parametrize("name", [name for name in NAMES if ":plain" in name])
def test_a_plain_twin_differs_in_its_net_alone(name):
    twin = load_config(name.replace(":plain", ":resnet"))
    assert configs.differing_keys(load_config(name), twin) == ["model.name"]


def test_digits_are_not_mirrored():
    config = load_config("digits")
    assert (config.data.flip, config.data.pad, config.data.data_dir) == (False, 1, None)


NETS = [f"plain{depth}" for depth in (18, 34)]
NETS += [f"resnet{depth}{option}" for depth in (18, 34, 50, 101, 152) for option in ("", "A", "B", "C")]
RECIPES = ("paper", "goyal90", "modern_short", "modern_long")


def imagenet(variant, **arguments):
    arguments = {"train_examples": 1_281_167, "device_count": 8} | arguments
    return configs.resolve(load_config(f"imagenet:{variant}"), **arguments)


def test_imagenet_has_every_net_and_shortcut_in_every_recipe():
    assert sorted(variants(FOLDER / "imagenet.py")) == sorted(f"{recipe},{net}" for recipe in RECIPES for net in NETS)
    assert load_config("imagenet:paper,resnet34C").model.shortcut == "C"
    assert load_config("imagenet:paper,resnet34").model.shortcut is None
    with pytest.raises(ValueError, match="recipe .*'papr'; did you mean 'paper'"):
        load_config("imagenet:papr,resnet18")


@pytest.mark.parametrize("net", ["plain18", "resnet34A", "resnet152"])
def test_imagenet_paper_is_the_recipe_of_section_3_4(net):
    config = imagenet(f"paper,{net}")
    data = config.data
    assert (data.crop, data.short_sides, data.image_size, data.flip) == ("scale", (256, 480), 224, True)
    assert (data.normalization, data.pca_std, data.policy, data.mixup, data.cutmix) == (
        "pixel_mean",
        0.1,
        "none",
        0.0,
        0.0,
    )
    assert (data.pipeline, data.train_split, data.test_split) == ("streamed", "train", "validation")
    assert (config.train.batch_size, config.model.bn_group_size, config.steps.total) == (256, 32, 600_000)
    assert (config.optimizer.name, config.optimizer.momentum, config.optimizer.weight_decay) == ("sgd", 0.9, 1e-4)
    assert (config.optimizer.nesterov, config.model.zero_init_residual) == (False, False)
    assert (config.schedule.name, config.schedule.learning_rate, config.schedule.factor) == ("plateau", 0.1, 0.1)
    assert (config.schedule.warmup, config.model.stride_in, config.train.label_smoothing) == ("none", None, 0.0)
    assert (config.evaluate.short_side, config.evaluate.image_size) == (256, None)


def test_imagenet_goyal90_scales_its_rate_with_the_batch():
    config = load_config("imagenet:goyal90,resnet50", {"train.batch_size": 8192})
    config = configs.resolve(config, train_examples=1_281_167, device_count=8)
    assert learning_rate(configs.flatten(config)) == pytest.approx(3.2)
    per_epoch = 1_281_167 / 8192
    assert config.steps.boundaries == tuple(round(epoch * per_epoch) for epoch in (30, 60, 80))
    assert (config.steps.warmup, config.steps.total) == (round(5 * per_epoch), round(90 * per_epoch))
    assert (config.schedule.warmup_start, config.data.crop, config.model.stride_in) == (0.1, "inception", "3x3")
    assert (config.model.zero_init_residual, config.train.label_smoothing) == (True, 0.0)
    assert not load_config("imagenet:goyal90,plain34").model.zero_init_residual


@pytest.mark.parametrize(("recipe", "epochs", "size"), [("modern_short", 100, 160), ("modern_long", 600, 176)])
def test_imagenet_modern_recipes(recipe, epochs, size):
    config = imagenet(f"{recipe},resnet50")
    assert (config.train.duration, config.train.unit, config.data.image_size) == (epochs, "epochs", size)
    assert (config.evaluate.image_size, config.schedule.name, config.data.cutmix) == (224, "cosine", 1.0)
    assert config.data.policy != "none" and config.data.mixup > 0
    assert (config.optimizer.name == "lamb") == (recipe == "modern_short")
    assert (config.train.ema_decay > 0) == (recipe == "modern_long")


def test_choices_that_two_layers_state_are_the_same():
    from resnet_jax import config_keys
    from resnet_jax.data import augment, input_description, resize, streaming
    from resnet_jax.training import losses, optimizers

    assert config_keys.RESIZES == resize.RESIZES
    assert config_keys.CROPS == augment.CROPS and config_keys.POLICIES == augment.POLICIES
    assert config_keys.NORMALIZATIONS == input_description.NORMALIZATIONS
    assert config_keys.UNREADABLE == streaming.UNREADABLE
    assert config_keys.LOSSES == tuple(losses.LOSSES) and config_keys.OPTIMIZERS == tuple(optimizers.OPTIMIZERS)
