"""Precision against recall: the points that average precision is taken from, and their picture."""

import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
from found_boxes import detected, random_case, truth
from matplotlib.figure import Figure
from matplotlib.text import Text

from resnet_jax.detection.drawing import class_colour
from resnet_jax.detection.pr_curves import plot_precision_recall
from resnet_jax.detection.voc_ap import METRICS, precision_recall, voc_ap

BOX, AWAY = [10, 10, 20, 20], [50, 50, 60, 60]
NAMES = ["a", "b", "c"]


@pytest.fixture
def drawn(monkeypatch):
    """The axes of every figure that is saved."""
    axes = []
    save = Figure.savefig

    def keep(figure, *arguments, **options):
        axes.extend(figure.axes)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return axes


def test_points_counted_by_hand():
    found = [detected([AWAY, BOX, BOX], [0.7, 0.9, 0.8])]
    curve = precision_recall(found, [truth([BOX, AWAY])], ["thing"])["thing"]
    assert (curve.right.tolist(), curve.objects) == ([True, False, True], 2)
    assert curve.recall.tolist() == [0.5, 0.5, 1]
    assert curve.precision.tolist() == [1, 0.5, pytest.approx(2 / 3)]
    # Above 0.5 but not above 0.7.
    near = [detected([[10, 10, 20, 16]], [0.5])]
    assert precision_recall(near, [truth([BOX])], ["thing"])["thing"].right.tolist() == [True]
    assert precision_recall(near, [truth([BOX])], ["thing"], threshold=0.7)["thing"].right.tolist() == [False]


@pytest.mark.parametrize("metric", METRICS)
def test_the_averages_are_those_of_the_measure(metric):
    found, known = random_case(3)
    curves = precision_recall(found, known, NAMES)
    assert {name: curve.average(metric) for name, curve in curves.items()} == voc_ap(
        found, known, NAMES, metric=metric
    )["ap"]


def test_a_class_without_objects_has_no_recall_and_one_without_detections_no_points():
    curves = precision_recall([detected([BOX], [0.9], [1])], [truth([BOX])], ["a", "b"])
    assert len(curves["a"].recall) == len(curves["a"].precision) == 0 and curves["a"].average("area") == 0
    assert np.isnan(curves["b"].recall).all() and np.isnan(curves["b"].average("area"))
    assert curves["b"].precision.tolist() == [0]


def test_wrong_arguments_are_refused(tmp_path):
    curves = precision_recall([detected([BOX], [0.9])], [truth([BOX])], ["a"])
    with pytest.raises(ValueError, match="metric='07'; allowed: eleven_points, area"):
        curves["a"].average("07")
    with pytest.raises(ValueError, match="metric='07'; allowed: eleven_points, area"):
        plot_precision_recall(curves, tmp_path / "curves.png", metric="07")
    with pytest.raises(ValueError, match="detections of 0 images for 1"):
        precision_recall([], [truth([BOX])], ["a"])
    nothing = precision_recall([detected([BOX], [0.9])], [truth([])], ["a"])
    with pytest.raises(ValueError, match="none of 1 classes has an object"):
        plot_precision_recall(nothing, tmp_path / "curves.png", metric="area")
    assert not (tmp_path / "curves.png").exists()


def test_each_class_has_its_line_colour_name_and_average(tmp_path, drawn):
    found, known = random_case(0)
    # One class more with an object and no detection, and one with neither.
    known[0] = truth([*known[0].boxes, BOX], [*known[0].labels, 4], [*known[0].ignored, False])
    names = [*NAMES, "none", "missed"]
    curves = precision_recall(found, known, names)
    output = plot_precision_recall(curves, tmp_path / "plots" / "curves.png", metric="area")
    (axes,) = drawn
    lines = axes.get_lines()
    assert len(lines) == 3
    for label, line in enumerate(lines):
        np.testing.assert_array_equal(line.get_xdata(), curves[NAMES[label]].recall)
        np.testing.assert_array_equal(line.get_ydata(), curves[NAMES[label]].precision)
        assert line.get_color() == "#" + bytes(class_colour(label)).hex()
    ap = voc_ap(found, known, names, metric="area")
    texts = [text.get_text() for text in axes.texts]
    assert texts == [f"{name} {ap['ap'][name]:.3f}" for name in (*NAMES, "missed")]
    assert axes.get_title() == f"mean average precision {ap['mean_ap']:.3f}, 4 classes"
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xlim()) == ("recall", "precision", (0, 1))
    assert axes.get_ylim()[0] == 0 and 1 <= axes.get_ylim()[1] < 1.05
    picture = matplotlib.image.imread(output)
    assert picture.shape[0] > 600 and picture.shape[1] > 900


@pytest.mark.parametrize(("classes", "place"), [(2, BOX), (20, BOX), (20, AWAY), (80, AWAY)])
def test_names_do_not_cover_each_other(classes, place, tmp_path, drawn):
    # All curves end at one point, above or below.
    known = [truth([BOX] * classes, range(classes))]
    found = [detected([place] * classes, np.ones(classes), range(classes))]
    curves = precision_recall(found, known, [f"class {label}" for label in range(classes)])
    plot_precision_recall(curves, tmp_path / "curves.png", metric="area")
    (axes,) = drawn
    # Of the words alone, without the lines to the curves' ends.
    frames = [Text.get_window_extent(text) for text in axes.texts]
    assert len(frames) == classes
    low, high = (np.sort([getattr(frame, end) for frame in frames]) for end in ("y0", "y1"))
    assert (low[1:] > high[:-1] - 1).all()
    assert low[0] >= 0 and high[-1] <= axes.figure.bbox.y1
    assert all(0 <= text.xyann[1] <= 1 for text in axes.texts)


def test_no_display_and_no_pyplot(tmp_path):
    code = "import sys, resnet_jax.detection.pr_curves; print('matplotlib.pyplot' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert finished.stdout.strip() == "False", finished.stderr
