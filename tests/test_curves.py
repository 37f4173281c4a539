"""The picture shows each run's errors in %, on a scale that holds them, and is made without a display."""

import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from resnet_jax.analysis.curves import plot_curves
from resnet_jax.writers import JsonLinesWriter


def write_run(path: Path, level: float, *, test: bool = True) -> Path:
    """From chance to a level, with an evaluation at every fifth line."""
    writer = JsonLinesWriter(path)
    for step in range(10, 1001, 10):
        error = level + 0.9 * np.exp(-step / 20)
        writer.write_scalars(step, {"train/error_top1": min(0.9, error), "train/loss": 3 * error})
        if test and step % 50 == 0:
            writer.write_scalars(step, {"test/error_top1": min(0.9, error + 0.05), "test/error_top5": 0.0})
    writer.close()
    return path


@pytest.fixture
def drawn(monkeypatch):
    """The axes of every figure that is saved."""
    axes = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments, **options):
        axes.extend(figure.axes)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return axes


def test_one_run_is_a_thin_dashed_training_and_a_bold_test_curve_in_per_cent(tmp_path, drawn):
    output = plot_curves(write_run(tmp_path / "metrics.jsonl", 0.1), tmp_path / "plots" / "curves.png")
    (axes,) = drawn
    training, test = axes.get_lines()
    assert (training.get_linestyle(), test.get_linestyle()) == ("--", "-")
    assert training.get_linewidth() < 1 < 2 < test.get_linewidth()
    assert training.get_color() == test.get_color()
    np.testing.assert_array_equal(test.get_xdata(), np.arange(50, 1001, 50))
    np.testing.assert_allclose(test.get_ydata()[-1], 15.0)
    np.testing.assert_allclose(training.get_ydata()[-1], 10.0)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("steps", "error (%)")
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["training, 10.00 % at the end", "test, 15.00 % at the end"]
    picture = matplotlib.image.imread(output)
    assert picture.shape[0] > 600 and picture.shape[1] > 900
    assert np.ptp(picture) > 0.5


def test_the_scale_holds_all_but_the_beginning(tmp_path, drawn):
    plot_curves(write_run(tmp_path / "metrics.jsonl", 0.1), tmp_path / "curves.png")
    bottom, top = drawn[0].get_ylim()
    later = [line.get_ydata()[line.get_xdata() >= 110].max() for line in drawn[0].get_lines()]
    assert bottom == 0
    assert max(later) < top < 1.3 * max(later)


def test_a_run_that_stays_at_chance_is_shown(tmp_path, drawn):
    writer = JsonLinesWriter(tmp_path / "metrics.jsonl")
    for step in range(1, 11):
        writer.write_scalars(step, {"train/error_top1": 1.0})
    writer.close()
    plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert 100 < drawn[0].get_ylim()[1] < 110


def test_each_run_has_its_colour_and_label(tmp_path, drawn):
    runs = [(name, write_run(tmp_path / f"{name}.jsonl", level)) for name, level in (("a", 0.1), ("b", 0.2))]
    runs.append(("c", write_run(tmp_path / "c.jsonl", 0.3, test=False)))
    plot_curves(runs, tmp_path / "curves.svg")
    lines = drawn[0].get_lines()
    assert len({line.get_color() for line in lines}) == 3
    assert [line.get_label().split(",")[0] for line in lines] == [
        *["a training", "a test", "b training", "b test", "c training"]
    ]
    assert drawn[0].get_ylim()[1] > 30


def test_one_evaluation_is_a_visible_point_and_non_finite_errors_are_left_out(tmp_path, drawn):
    writer = JsonLinesWriter(tmp_path / "metrics.jsonl")
    writer.write_scalars(5, {"train/error_top1": float("nan"), "test/error_top1": 0.25})
    writer.close()
    plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.pdf")
    (line,) = drawn[0].get_lines()
    assert line.get_marker() == "o" and line.get_ydata() == 25.0
    assert drawn[0].get_ylim()[1] > 25


def test_a_run_without_errors_is_refused_by_name(tmp_path):
    writer = JsonLinesWriter(tmp_path / "metrics.jsonl")
    writer.write_scalars(5, {"train/loss": 1.0})
    writer.close()
    with pytest.raises(ValueError, match=r"metrics.jsonl holds none of .*test/error_top1.*\['train/loss'\]"):
        plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    with pytest.raises(FileNotFoundError):
        plot_curves(tmp_path / "absent.jsonl", tmp_path / "curves.png")
    with pytest.raises(ValueError, match="no run"):
        plot_curves([], tmp_path / "curves.png")


def test_no_display_and_no_pyplot_is_touched():
    program = "import sys, resnet_jax.analysis.curves; assert 'matplotlib.pyplot' not in sys.modules"
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)
