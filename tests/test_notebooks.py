"""The notebooks: kept without outputs, complete by themselves, and each runs from top to bottom to a result."""

import configparser
import json
import os
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image
from sklearn.datasets import load_sample_image

import resnet_jax
from resnet_jax.data.input_description import InputDescription
from resnet_jax.evaluation.image_files import image_files
from resnet_jax.evaluation.protocols import make_protocol

CHECKOUT = Path(__file__).resolve().parent.parent
FOLDER = CHECKOUT / "experiments" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
BADGE = re.compile(r"colab[.]research[.]google[.]com/github/([^/]+/[^/]+)/blob/main/experiments/notebooks/(\w+)\.ipynb")
INSTALLED_FROM = re.compile(r'%pip install --quiet "git\+https://github\.com/([\w.-]+/[\w.-]+)"')
LINK = re.compile(r"\]\(([^)#]+)\)")
# Of three minutes on two cores.
MOST_CPU_SECONDS = 360
CELL_SECONDS = 900

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def readme_links() -> list[str]:
    return LINK.findall((FOLDER / "README.md").read_text())


def test_the_readme_lists_the_notebooks():
    assert sorted(link for link in readme_links() if link.endswith(".ipynb") and "://" not in link) == [
        path.name for path in NOTEBOOKS
    ]
    assert [path.stem for path in NOTEBOOKS] == sorted(RUNS)


@every_notebook
def test_a_notebook_is_valid_and_has_no_outputs(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in code if cell.outputs or cell.execution_count is not None] == []
    # What editors leave behind: one would see it in every difference.
    assert [cell.id for cell in notebook.cells if cell.metadata] == []
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert path.read_text() == nbformat.writes(notebook) + "\n"


@every_notebook
def test_cells_are_named_and_explained(path):
    cells = read(path).cells
    assert [cell.id for cell in cells if not re.fullmatch("[a-z][a-z-]+", cell.id)] == []
    assert len({cell.id for cell in cells}) == len(cells)
    # Title and installation, then a text before each piece of code.
    kinds = [cell.cell_type for cell in cells]
    assert kinds[:2] == ["markdown", "code"]
    unexplained = [
        cell.id
        for before, cell in zip(cells[1:], cells[2:], strict=False)
        if cell.cell_type == "code" and before.cell_type != "markdown"
    ]
    assert unexplained == []


@every_notebook
def test_the_first_cells_open_it_in_colab_and_install(path):
    title, install = read(path).cells[:2]
    assert re.search(r"^# \w.+", title.source, re.MULTILINE)
    ((_, name),) = BADGE.findall(title.source)
    assert name == path.stem
    assert 'find_spec("resnet_jax") is None' in install.source and INSTALLED_FROM.search(install.source)


def test_one_address_of_the_repository():
    sources = [cell.source for path in NOTEBOOKS for cell in read(path).cells]
    sources.append((FOLDER / "README.md").read_text())
    found = {address for text in sources for address, _ in BADGE.findall(text)}
    found |= {address for text in sources for address in INSTALLED_FROM.findall(text)}
    assert len(found) == 1
    metadata = configparser.ConfigParser()
    metadata.read(CHECKOUT / "setup.cfg")
    if url := metadata["metadata"].get("url"):
        assert url.rstrip("/").removesuffix(".git").endswith(f"github.com/{found.pop()}")


def test_links_lead_to_files():
    texts = [cell.source for path in NOTEBOOKS for cell in read(path).cells if cell.cell_type == "markdown"]
    links = readme_links() + [link for text in texts for link in LINK.findall(text)]
    local = [link for link in links if "://" not in link]
    assert len(local) > len(NOTEBOOKS)
    assert [link for link in local if not (FOLDER / link).exists()] == []


def describe(side: int, class_names: tuple[str, ...]) -> InputDescription:
    """What the stand-ins for public nets expect: squares, a little smaller than the scaled image."""
    mean, std = np.full(3, 127.5, np.float32), np.full(3, 60, np.float32)
    return InputDescription(
        (side, side, 3), mean, std, class_names, short_side=side + side // 8, resize="pillow_bilinear"
    )


def photo_net(folder: Path) -> Path:
    """A stand-in for a public net, in Hugging Face's form: random layers, a classifier fitted to two photographs."""
    names = ("china", "flower")
    input = describe(160, names)
    view = make_protocol("center", input).view
    for name in names:
        Image.fromarray(load_sample_image(f"{name}.jpg")).save(folder / f"{name}.png")
    crops = np.stack([view(Path(path).read_bytes()) for path in image_files([folder])])
    images = (np.concatenate([crops, crops[:, :, ::-1]]) - input.mean) / input.std
    model = resnet_jax.create_model("resnet18", num_classes=len(names), width=16)
    variables = resnet_jax.initialize(model, jax.random.key(0), input.image_shape)
    _, features = model.apply(variables, images, train=False, return_features=True)
    pooled = np.asarray(features["pooled"])
    wanted = 5 * (2 * np.eye(2, dtype=np.float32)[[0, 1, 0, 1]] - 1)
    variables["params"]["classifier"] = {
        "kernel": np.linalg.lstsq(pooled - pooled.mean(0, keepdims=True), wanted)[0],
        "bias": np.zeros(2, np.float32),
    }
    classifier = variables["params"]["classifier"]
    classifier["bias"] = (-pooled.mean(0) @ classifier["kernel"]).astype(np.float32)
    resnet_jax.save_pretrained(folder / "net.safetensors", model, variables, input=input)
    resnet_jax.convert(folder / "net.safetensors", folder / "huggingface", to="huggingface")
    return folder / "huggingface"


def untrained_net(folder: Path) -> Path:
    """A stand-in for a public net that knows nothing: what comes out was learnt in the notebook."""
    model = resnet_jax.create_model("resnet18", num_classes=10, width=16)
    input = describe(96, tuple("0123456789"))
    variables = resnet_jax.initialize(model, jax.random.key(0), input.image_shape)
    return resnet_jax.save_pretrained(folder / "net.safetensors", model, variables, input=input)


def numbers(pattern: str, text: str) -> list[float]:
    """The groups of a pattern that has to be in the text."""
    found = re.search(pattern, text)
    assert found, f"{pattern} is not in {text!r}"
    return [float(group) for group in found.groups()]


def check_training(text: str) -> None:
    counted, recorded = numbers(r"test error ([\d.]+) %, in the record ([\d.]+) %, of 359 images", text)
    assert counted == recorded < 10


def check_looking(text: str) -> None:
    assert text.startswith("china: china, flower: flower;")
    assert numbers(r"differ by ([\de.+-]+) of the largest logit", text)[0] < 1e-4


def check_fine_tuning(text: str) -> None:
    whole, classifier = numbers(r"test error ([\d.]+) % of 75 images; a new classifier alone ([\d.]+) %", text)
    assert whole < min(20, classifier)


def check_plain_and_residual(text: str) -> None:
    plain, residual = (numbers(rf"{name}: training error ([\d.]+) %", text)[0] for name in ("plain", "residual"))
    assert residual < 5 < 20 < plain


def check_detection(text: str) -> None:
    assert numbers(r"AP at 0.5: ([\d.]+) % of 60 pictures", text)[0] > 80


def check_hosts(text: str) -> None:
    assert numbers(r"at most ([\de.+-]+) apart; 2 hosts counted (\d+) test images", text)[0] < 1e-3
    assert "counted 359 test images once each" in text


class Run(NamedTuple):
    """How a notebook is run here, and what its last cell has to say.

    Attributes:
      check: of the text that the last cell prints.
      figures: pictures among the outputs.
      weights: makes what stands in for a net from the internet.
    """

    check: Callable[[str], None]
    figures: int
    weights: Callable[[Path], Path] | None = None


RUNS = {
    "detect_objects": Run(check_detection, 4),
    "fine_tune": Run(check_fine_tuning, 2, untrained_net),
    "load_and_look": Run(check_looking, 2, photo_net),
    "many_hosts": Run(check_hosts, 2),
    "plain_and_residual": Run(check_plain_and_residual, 2),
    "train_and_plot": Run(check_training, 2),
}


def with_weights(notebook: nbformat.NotebookNode, weights: Path) -> None:
    """Puts another file in place of the one net that the notebook names."""
    cells = [cell for cell in notebook.cells if re.search('^weights = ".*"$', cell.source, re.MULTILINE)]
    assert len(cells) == 1
    cells[0].source = re.sub('(?m)^weights = ".*"$', f"weights = {json.dumps(str(weights))}", cells[0].source)


def environment(folder: Path) -> dict[str, str]:
    """A user's: one device, no cache but in the folder; and this checkout."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("XLA_", "PYTEST_"))}
    places = {"TFDS_DATA_DIR": "tfds", "RESNET_JAX_CACHE": "cache", "IPYTHONDIR": "ipython"}
    return {
        **kept,
        **{key: str(folder / name) for key, name in places.items()},
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")])),
        "JAX_ENABLE_COMPILATION_CACHE": "0",
    }


# One of them is quick.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "load_and_look" else [pytest.mark.slow]) for name in RUNS]
)
def test_a_notebook_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    run, notebook = RUNS[name], read(FOLDER / f"{name}.ipynb")
    for folder in ("weights", "work", "jupyter"):
        (tmp_path / folder).mkdir()
    if run.weights is not None:
        with_weights(notebook, run.weights(tmp_path / "weights"))
    # Where the kernel's connection file is written.
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    before = cpu_seconds()
    place = {"metadata": {"path": str(tmp_path / "work")}}
    NotebookClient(notebook, timeout=CELL_SECONDS, kernel_name="python3", resources=place).execute(
        env=environment(tmp_path)
    )
    taken = cpu_seconds() - before
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == run.figures
    assert [output.text for output in outputs if output.output_type == "stream" and "Warning" in output.text] == []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    run.check("".join(output.text for output in code[-1].outputs))
    assert taken < MOST_CPU_SECONDS


def cpu_seconds() -> float:
    """Of all processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
