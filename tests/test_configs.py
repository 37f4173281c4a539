"""Every config and variant is possible, says what it is, and holds the recipe it claims to."""

import ast
import shlex
from pathlib import Path

import pytest

from resnet_jax import cli
from resnet_jax import config as configs
from resnet_jax.config_files import load_config

FOLDER = Path(__file__).resolve().parent.parent / "configs"
FILES = sorted(FOLDER.glob("*.py"))
CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)


def variants(path):
    """The keys of the file's dict of variants."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "VARIANTS":
            return list(ast.literal_eval(node.value))
    raise ValueError(f"{path} has no VARIANTS")


ALL = [(path, variant) for path in FILES for variant in variants(path)]
NAMES = [f"{path.stem}:{variant}" for path, variant in ALL]


def docstring(path):
    return ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("reference", NAMES)
def test_a_variant_resolves_and_names_a_net_that_can_be_made(reference):
    from resnet_jax.build import build_model

    config = load_config(reference)
    build_model(config, num_classes=10)
    # The digits' training split is the smallest set there is.
    configs.resolve(config, train_examples=1437, device_count=2)


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
    with pytest.raises(ValueError, match=f"'resnet21'; did you mean 'resnet20'.*{variants(path)[-1]}"):
        load_config(f"{path}:resnet21")


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
