"""The picture of diagnoses: means over seeds, plain dashed, one colour a depth, and nothing where there is nothing."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from resnet_jax.analysis.diagnostics_plot import plot_diagnostics


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, which are saved as well."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: (figures.append(figure), save(figure, path)))
    return figures


def group(folder, model, *seeds):
    """A group of runs; each is its lines of metrics."""
    runs = []
    for seed, rows in enumerate(seeds):
        path = folder / f"{model}_{seed}.json"
        path.with_suffix(".metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        runs.append((path, {"model": model}))
    return runs


def line(step, **values):
    return {"step": step, **{f"diagnostics/{name.replace('__', '/')}": value for name, value in values.items()}}


def panels(figure):
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def test_a_line_is_the_mean_over_the_seeds_in_the_style_of_its_family_and_the_colour_of_its_depth(drawn, tmp_path):
    plain = group(tmp_path, "cifar_plain20", [line(0, gradient_norm__stage1=1.0), line(9, gradient_norm__stage1=2.0)])
    seeds = [[line(step, gradient_norm__stage1=value * (step + 1)) for step in (0, 9)] for value in (3.0, 5.0)]
    residual = group(tmp_path, "cifar_resnet20", *seeds)
    deep = group(tmp_path, "cifar_resnet56", [line(0, gradient_norm__stage1=7.0)])
    assert plot_diagnostics([plain, residual, deep], tmp_path / "picture.png") == tmp_path / "picture.png"
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    axes = panels(drawn[0])["gradient norm, stage1"]
    first, second, third = axes.lines
    np.testing.assert_allclose(first.get_ydata(), [1, 2])
    np.testing.assert_allclose(second.get_ydata(), [4, 40])
    assert [each.get_linestyle() for each in axes.lines] == ["--", "-", "-"]
    assert first.get_color() == second.get_color() != third.get_color()
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == [
        *("cifar_plain20", "cifar_resnet20", "cifar_resnet56")
    ]


def test_the_noise_scale_is_the_ratio_of_means_not_the_mean_of_ratios(drawn, tmp_path):
    seeds = [[line(0, noise_trace=t, noise_square=s, noise_scale=t / s)] for t, s in ((8.0, 1.0), (4.0, 3.0))]
    plot_diagnostics([group(tmp_path, "cifar_resnet20", *seeds)], tmp_path / "picture.png")
    (one,) = panels(drawn[0])["noise scale, examples"].lines
    np.testing.assert_allclose(one.get_ydata(), [6 / 2])


def test_without_a_diagnosis_nothing_is_drawn(tmp_path):
    groups = [group(tmp_path, "cifar_resnet20", [{"step": 0, "test/error_top1": 0.5}]), [(tmp_path / "none.json", {})]]
    assert plot_diagnostics(groups, tmp_path / "picture.png") is None
    assert not (tmp_path / "picture.png").exists()
