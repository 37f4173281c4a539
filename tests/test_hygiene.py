"""What the repository holds: small files, nothing of one machine, no loading that runs a stranger's code."""

import ast
import configparser
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for folder in ("resnet_jax", "configs") for path in (CHECKOUT / folder).rglob("*.py"))

LARGEST_BYTES = 1_000_000

# Paths that exist on one machine only (/home/someone is nobody's), and hosts that a package client finds
# by itself. Written so that this file does not contain them.
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(work/|root/|home/(?!someone\b))")
REGISTRY_HOST = re.compile(r"\b(pypi\.org|pythonhosted\.org|anaconda\.org|conda\.io)\b")

# Modules whose loading runs what the file says, and calls that do.
UNSAFE_MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch", "yaml"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
SAFE_VALUES = {"allow_pickle": "False", "weights_only": "True", "shell": "False"}
# A config is a Python file, and config_files.py alone runs it.
FILE_LOADERS = {"importlib.util", "importlib.machinery", "runpy"}


@pytest.fixture(scope="module")
def tracked_files() -> list[Path]:
    if not (CHECKOUT / ".git").exists():
        pytest.skip("not a git checkout, so there is no list of what is kept")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    files = [CHECKOUT / name for name in listing.stdout.split("\0") if name]
    assert files, "git tracks no file yet: add them first"
    # A file deleted and not yet committed is listed still.
    return [path for path in files if path.is_file()]


def matches(files: list[Path], pattern: re.Pattern) -> list[str]:
    """The lines of text files in which the pattern occurs."""
    return [
        f"{path.relative_to(CHECKOUT)}, line {number}: {line.strip()[:100]}"
        for path in files
        for number, line in enumerate(path.read_bytes().decode(errors="ignore").splitlines(), start=1)
        if pattern.search(line)
    ]


def unsafe_loading(source: str, *, runs_configs: bool = False) -> Iterator[str]:
    """Imports and calls that can run code held in a file."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in UNSAFE_CALLS:
            yield f"line {node.lineno}: {ast.unparse(node.func)}()"
        elif isinstance(node, ast.keyword) and ast.unparse(node.value) != SAFE_VALUES.get(
            node.arg, ast.unparse(node.value)
        ):
            yield f"line {node.lineno}: {node.arg}={ast.unparse(node.value)}"
        for name in names:
            if name.split(".")[0] in UNSAFE_MODULES or (name in FILE_LOADERS and not runs_configs):
                yield f"line {node.lineno}: imports {name}"


def test_files_are_small(tracked_files):
    sizes = {str(path.relative_to(CHECKOUT)): path.stat().st_size for path in tracked_files}
    assert {name: size for name, size in sizes.items() if size > LARGEST_BYTES} == {}


def test_no_path_of_one_machine(tracked_files):
    assert matches(tracked_files, MACHINE_PATH) == []


def test_no_host_of_a_package_registry(tracked_files):
    assert matches(tracked_files, REGISTRY_HOST) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_loading_runs_no_code(path):
    assert list(unsafe_loading(path.read_text(), runs_configs=path.name == "config_files.py")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import load",
        "numpy.load(path, allow_pickle=True)",
        "numpy.load(path, allow_pickle=flag)",
        "from yaml import load",
        "load(path, weights_only=False)",
        "subprocess.run(command, shell=True)",
        "eval(text)",
        "exec(text)",
        "yaml.load(text)",
        "import importlib.util",
        "from importlib import util",
    ],
)
def test_unsafe_loading_is_found(line):
    assert list(unsafe_loading(line)) != []


@pytest.mark.parametrize(
    "line",
    ["numpy.load(path, allow_pickle=False)", "re.compile(text)", "yaml.safe_load(text)", "import importlib"],
)
def test_safe_loading_passes(line):
    assert list(unsafe_loading(line)) == []


@pytest.mark.parametrize("line", ["cd /" + "work/main", "open('/" + "root/x')", "/" + "home/me/data"])
def test_a_machine_path_is_found(line):
    assert MACHINE_PATH.search(line)


def test_every_package_folder_is_shipped():
    """A wheel holds the folders that setup.cfg lists and no other."""
    metadata = configparser.ConfigParser()
    metadata.read(CHECKOUT / "setup.cfg")
    listed = set(metadata["options"]["packages"].split())
    folders = {path.parent.relative_to(CHECKOUT) for path in (CHECKOUT / "resnet_jax").rglob("*.py")}
    assert listed == {".".join(folder.parts) for folder in folders} | {"resnet_jax.configs"}
