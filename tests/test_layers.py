"""Imports go one way: a module sees what lies below it, never what lies above or beside."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "resnet_jax"

# From the ground up; "models" stands for the modules in it too, unless they are named themselves.
# A module may import from the layers below its own, and from its own name.
LAYERS = {
    "ground": ["atomic_files", "distributed", "download", "environment", "models.names", "random_keys", "records"]
    + ["exit_codes", "training.determinism", "training.signal_actions", "training.steps_per_call", "xla_options"]
    + ["cache_folder", "compiled_programs", "models.arrangements", "training.start_times"],
    "parts": [
        *(
            "config_rules",
            "config_detection",
            "config_localization",
            "config_keys",
            "config_checks",
            "config",
            "config_files",
        ),
        *("models", "data"),
        *("training.losses", "evaluation.metrics", "training.objective", "training.schedules"),
    ],
    "detector": ["detection"],
    "localizer": ["localization"],
    "pretrained": ["pretrained"],
    "state": ["training.optimizers", "training.seeds", "training.state"],
    "step": ["training.ordered_sum", "training.sharding", "training.steps"],
    "parts of a run": ["parts"],
    "build": [
        *("build", "workdir", "detection.from_config", "detection.four_steps", "detection.vgg_weights"),
        "localization.from_config",
    ],
    "guards": [
        "checkpoint_files",
        "checkpoint_folder",
        "hosts",
        "training.preemption",
        "training.watchdog",
        "training.workdir_lock",
    ],
    "use": [
        *("evaluation", "checkpoints", "writers", "analysis", "diagnostics"),
        *("detection.trained", "detection.parts", "detection.evaluator", "detection.run"),
        *("detection.gathering", "detection.detect_files"),
        *("localization.trained", "localization.parts", "localization.evaluator", "localization.run"),
        *("training.batch_statistics", "training.metrics_log"),
    ],
    "tasks": ["tasks"],
    "run": ["training.member", "training.start", "training.saving", "benchmark"],
    "loop": ["training.loop"],
    "runs": ["sweep"],
    "command line": ["commands", "cli", "__main__"],
}

# What a module may import from its own layer.
BESIDE = {
    "config_keys": ["config_rules", "config_detection", "config_localization"],
    "config_detection": ["config_rules"],
    "config_localization": ["config_rules"],
    "config_checks": ["config_keys"],
    "config": ["config_rules", "config_keys", "config_checks"],
    "checkpoint_folder": ["checkpoint_files"],
    "compiled_programs": ["atomic_files", "cache_folder", "environment"],
    "config_files": ["config", "config_keys", "config_rules"],
    "detection.four_steps": ["detection.from_config"],
    "diagnostics": ["analysis"],
    "detection.trained": ["checkpoints"],
    "detection.parts": ["detection.trained"],
    "detection.evaluator": ["evaluation", "detection.gathering"],
    "detection.gathering": ["evaluation"],
    "detection.detect_files": ["detection.run", "detection.trained", "evaluation"],
    "detection.run": ["detection.trained", "detection.evaluator"],
    "localization.from_config": ["detection.from_config"],
    "localization.trained": ["detection.trained"],
    "localization.parts": ["localization.trained"],
    "localization.evaluator": ["evaluation", "detection.gathering"],
    "localization.run": [
        *("detection.run", "evaluation", "localization.evaluator", "localization.trained"),
    ],
    "evaluation.metrics": ["training.losses"],
    "models.names": ["models.arrangements"],
    "records": ["atomic_files", "training.start_times"],
    "training.determinism": ["xla_options"],
    "training.steps": ["training.ordered_sum", "training.sharding"],
    "training.objective": ["evaluation.metrics", "models", "training.losses"],
    "evaluation": ["checkpoints", "training.batch_statistics"],
    "cli": ["commands"],
    "__main__": ["cli"],
}

# Libraries that one module alone may import, or none.
RESERVED = {"orbax": ["checkpoints"], "tensorflow": [], "experiments": [], "tests": []}


def module_name(path: Path) -> str:
    """The name inside the package: "data.resident" for data/resident.py, "" for the package itself."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(source: str, module: str) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything imported, inside functions too."""
    is_package = module in MODULES and MODULES[module].name == "__init__.py"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            here = ["resnet_jax", *filter(None, module.split("."))]
            parents = here[: len(here) + is_package - node.level] if node.level else []
            origin = ".".join([*parents, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield node.lineno, inner if inner.removeprefix("resnet_jax.") in MODULES else origin


def listed(module: str) -> tuple[int, str]:
    """Layer and the longest name in LAYERS that covers the module."""
    places = [
        (number, name)
        for number, names in enumerate(LAYERS.values())
        for name in names
        if f"{module}.".startswith(f"{name}.")
    ]
    if not places:
        raise ValueError(f"resnet_jax.{module} has no place in LAYERS: give it one")
    return max(places, key=lambda place: len(place[1]))


def breaches(source: str, module: str) -> list[str]:
    """What the module imports and should not, one line each."""
    found = []
    for line, target in imports(source, module):
        root, _, inner = target.partition(".")
        allowed = module in RESERVED.get(root, [module])
        if root == "resnet_jax" and inner:
            layer, name = listed(module)
            target_layer, target_name = listed(inner)
            allowed = target_layer < layer or target_name in [name, *BESIDE.get(name, [])]
        if not allowed:
            found.append(f"resnet_jax/{module.replace('.', '/')}, line {line}: may not import {target}")
    return found


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_imports_go_one_way(module):
    assert breaches(MODULES[module].read_text(), module) == []


def test_the_package_itself_imports_none_of_its_modules():
    assert [name for _, name in imports(MODULES[""].read_text(), "") if name.startswith("resnet_jax")] == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("models.blocks", "import resnet_jax.data.resident"),
        ("models.blocks", "from resnet_jax import config as configs"),
        ("models.blocks", "from ..config import check"),
        ("models", "from .. import config"),
        ("models.registry", "from resnet_jax.config_keys import KEYS"),
        ("models.names", "from resnet_jax.models.resnet import ResNet"),
        ("config_keys", "from resnet_jax.config import check"),
        ("config", "from resnet_jax.config_files import load_config"),
        ("config", "from resnet_jax.models.registry import create_model"),
        ("data.resident", "from resnet_jax.models.registry import create_model"),
        ("training.state", "from resnet_jax.training.steps import make_train_step"),
        ("training.steps", "from resnet_jax.training import loop"),
        ("checkpoints", "from resnet_jax.evaluation.run import evaluate_workdir"),
        ("training.loop", "def train():\n    from resnet_jax import cli"),
        ("training.loop", "from orbax.checkpoint import v1"),
        ("records", "import tensorflow as tf"),
        ("records", "from experiments import degradation"),
    ],
)
def test_a_breach_is_found(module, line):
    assert len(breaches(line, module)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("checkpoints", "from orbax.checkpoint import v1"),
        ("data.datasets", "import tensorflow_datasets as tfds"),
        ("models.resnet", "from .blocks import Stem"),
        ("models.registry", "from resnet_jax.models.names import settings_of"),
        ("config", "from resnet_jax.models.names import settings_of"),
        ("models", "from .blocks import Stem"),
        ("evaluation.run", "from resnet_jax.checkpoints import Checkpoints"),
        ("training.loop", "from resnet_jax import __version__"),
    ],
)
def test_what_is_allowed_is_not_a_breach(module, line):
    assert breaches(line, module) == []


def test_names_in_the_table_exist():
    named = {name for names in LAYERS.values() for name in names}
    assert named - set(MODULES) == set()
    assert {*BESIDE, *(name for names in BESIDE.values() for name in names)} - named == set()


def test_no_module_is_called_utils():
    assert [name for name in MODULES if name.rpartition(".")[2] in ("util", "utils")] == []


def run_python(code: str) -> str:
    """Runs the code as a user's Python would, without what these tests set for themselves."""
    environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    finished = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def test_importing_the_package_imports_neither_jax_nor_tensorflow():
    code = "import sys, resnet_jax; print(*sorted({'jax', 'flax', 'tensorflow', 'numpy'} & set(sys.modules)))"
    assert run_python(code) == ""


def test_importing_the_command_line_imports_the_standard_library_alone():
    code = """
import sys
before = set(sys.modules)
import resnet_jax.cli
names = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(names - set(sys.stdlib_module_names) - {"resnet_jax"}))"""
    assert run_python(code) == ""


def test_training_begins_without_what_only_data_sets_and_other_programs_need():
    heavy = {"matplotlib.pyplot", "pandas", "scipy", "sklearn", "tensorflow", "torch"}
    assert run_python(f"import sys, resnet_jax.training.loop; print(*sorted({heavy} & set(sys.modules)))") == ""


def test_commands_alone_change_where_compiled_programs_are_kept():
    callers = {name for name, path in MODULES.items() if "keep_compiled_programs()" in path.read_text()}
    commands = {f"commands.{name}" for name in ("train", "evaluate", "predict", "detect")}
    assert callers == {"compiled_programs"} | commands


def test_importing_every_module_starts_no_device_and_imports_no_tensorflow():
    names = [f"resnet_jax.{name}" for name in MODULES if name not in ("", "__main__")]
    # jax refuses a new number of devices once it has started one.
    code = f"import sys, importlib, jax; [importlib.import_module(name) for name in {names}]; \
jax.config.update('jax_num_cpu_devices', 3); print('tensorflow' in sys.modules)"
    assert run_python(code) == "False"
