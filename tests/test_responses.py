"""Every 3x3 layer's responses are those the paper means, over all images; the figure shows them in two orders."""

import subprocess
import sys
from pathlib import Path

import jax
import jaxtyping
import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from random_variables import random_images, random_variables

from resnet_jax.analysis.responses import layer_responses, plot_responses
from resnet_jax.models.normalization import freeze_batch_norm
from resnet_jax.models.registry import create_model, initialize
from resnet_jax.models.stacking import stack_blocks

SHAPE = (8, 8, 3)
NETS = {
    "plain": ("cifar_plain8", {"stage_sizes": (1, 3)}),
    "A": ("cifar_resnet8", {"stage_sizes": (3, 1)}),
    "B": ("cifar_resnet8", {"stage_sizes": (1, 2), "shortcut": "B"}),
    "C": ("cifar_resnet8", {"stage_sizes": (2, 1), "shortcut": "C"}),
    "bottleneck": ("cifar_resnet8", {"stage_sizes": (2, 1), "block": "bottleneck", "shortcut": "B"}),
    "imagenet": ("resnet18", {"stage_sizes": (1, 1)}),
    "imagenet bottleneck": ("resnet50_v1_5", {"stage_sizes": (1, 2)}),
}


def make(kind, **options):
    name, named = NETS[kind]
    return create_model(name, **{"width": 4, **named, **options})


def shape_of(model):
    return (32, 32, 3) if model.stem == "imagenet" else SHAPE


@pytest.fixture(scope="module", params=NETS)
def net(request):
    """The kind of net, its model, variables, images of different contrast, and what is measured on them."""
    model = make(request.param)
    variables, images = random_variables(model, shape_of(model), train=False), random_images(7, shape_of(model))
    contrast = np.array([1, 1, 1, 9, 1, 1, 3], np.float32).reshape(-1, 1, 1, 1)
    images = np.asarray(images) * contrast
    return request.param, model, variables, images, layer_responses(model, variables, images)


def changed(variables, block, layer, **new):
    """The same variables with other values of one normalization layer."""
    params = variables["params"]
    values = {**params[block], layer: {**params[block][layer], **new}}
    return {**variables, "params": {**params, block: values}}


def stds(responses):
    return np.array([response.std for response in responses])


def assert_same(found, expected):
    """Equal but for the rounding of float32."""
    assert [response.layer for response in found] == [response.layer for response in expected]
    np.testing.assert_allclose(stds(found), stds(expected), rtol=1e-6)


class HandRun:
    """A net in float64 numpy, after the paper's text; keeps what leaves each batch normalization of a 3x3 layer."""

    def __init__(self, model, variables):
        self.model, self.variables, self.responses = model, variables, {}

    def layer(self, x, block, *path, stride=1):
        """Convolution and batch normalization; the last of the path is the convolution's name."""
        *parents, conv = path
        params, statistics = self.variables["params"][block], self.variables["batch_stats"][block]
        for parent in parents:
            params, statistics = params[parent], statistics[parent]
        norm = conv.replace("conv", "norm")
        kernel, affine, running = (
            {name: np.asarray(value, np.float64) for name, value in tree.items()}
            for tree in (params[conv], params[norm], statistics[norm])
        )
        x = self.convolve(x, kernel["kernel"], stride)
        x = (x - running["mean"]) / np.sqrt(running["var"] + 1e-5) * affine["scale"] + affine["bias"]
        if kernel["kernel"].shape[0] == 3:
            self.responses["/".join([block, *path])] = x
        return x

    @staticmethod
    def windows(x, size, stride, fill):
        pad = (size - 1) // 2
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=fill)
        return np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]

    def convolve(self, x, kernel, stride):
        return np.einsum("nhwcij,ijcf->nhwf", self.windows(x, kernel.shape[0], stride, 0.0), kernel)

    def block(self, x, name, stride):
        convolutions = ["conv1", "conv2", "conv3"] if self.model.block == "bottleneck" else ["conv1", "conv2"]
        strided = "conv2" if self.model.stride_in == "3x3" else "conv1"
        y = x
        for conv in convolutions:
            y = self.layer(y, name, conv, stride=stride if conv == strided else 1)
            if conv != convolutions[-1]:
                y = np.maximum(y, 0)
        if "shortcut" in self.variables["params"][name]:
            y = y + self.layer(x, name, "shortcut", "conv", stride=stride)
        elif self.model.shortcut is not None:
            y = y + np.pad(x[:, ::stride, ::stride], [(0, 0)] * 3 + [(0, y.shape[-1] - x.shape[-1])])
        return np.maximum(y, 0)

    def run(self, images):
        imagenet = self.model.stem == "imagenet"
        x = np.maximum(self.layer(np.asarray(images, np.float64), "stem", "conv", stride=2 if imagenet else 1), 0)
        if imagenet:
            x = self.windows(x, 3, 2, -np.inf).max((-2, -1))
        for stage, size in enumerate(self.model.stage_sizes, 1):
            for index in range(1, size + 1):
                x = self.block(x, f"stage{stage}_block{index}", 2 if stage > 1 and index == 1 else 1)
        return self.responses


def test_values_are_those_of_a_net_worked_through_by_hand(net):
    _, model, variables, images, found = net
    expected = HandRun(model, variables).run(images)
    assert [response.layer for response in found] == list(expected)
    np.testing.assert_allclose(stds(found), [values.std() for values in expected.values()], rtol=1e-5)


@pytest.mark.parametrize("net", ["plain", "bottleneck"], indirect=True)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_batch_size_changes_nothing(net, batch_size):
    _, model, variables, images, whole = net
    assert_same(layer_responses(model, variables, images, batch_size=batch_size), whole)


@pytest.mark.parametrize("net", ["plain", "A", "bottleneck"], indirect=True)
def test_a_net_that_loops_and_recomputes_gives_the_same_under_the_same_names(net):
    kind, _, variables, images, expected = net
    assert_same(layer_responses(make(kind, scan=True, remat=True), stack_blocks(variables), images), expected)


@pytest.mark.parametrize("net", ["B"], indirect=True)
def test_frozen_batch_normalization_gives_the_same(net):
    kind, _, variables, images, expected = net
    assert_same(layer_responses(make(kind, norm="frozen"), freeze_batch_norm(variables), images), expected)


@pytest.mark.parametrize("name", ["cifar_resnet14", "cifar_plain20"])
def test_a_cifar_net_of_6n_plus_2_layers_has_6n_plus_1(name):
    model = create_model(name, width=2)
    found = layer_responses(model, initialize(model, jax.random.key(0), SHAPE), random_images(2, SHAPE))
    blocks = [f"stage{stage}_block{index + 1}" for stage in (1, 2, 3) for index in range(model.stage_sizes[0])]
    assert [layer for layer, _ in found] == ["stem/conv", *(f"{block}/conv{n}" for block in blocks for n in (1, 2))]
    assert len(found) == int(name[-2:]) - 1


@pytest.mark.parametrize("net", ["A"], indirect=True)
def test_twice_the_gamma_and_beta_of_a_layer_are_twice_its_response_and_none_before_it_changes(net):
    _, model, variables, images, before = net
    last = variables["params"]["stage2_block1"]["norm2"]
    after = layer_responses(
        model, changed(variables, "stage2_block1", "norm2", scale=2 * last["scale"], bias=2 * last["bias"]), images
    )
    assert_same(after[:-1], before[:-1])
    assert after[-1].layer == "stage2_block1/conv2"
    assert after[-1].std == pytest.approx(2 * before[-1].std, rel=1e-6)


@pytest.mark.parametrize("net", ["plain"], indirect=True)
def test_responses_far_from_zero_lose_no_digits(net):
    _, model, variables, images, _ = net
    zeros = 0 * variables["params"]["stem"]["norm"]["bias"]
    near, far = (
        layer_responses(model, changed(variables, "stem", "norm", bias=zeros + mean), images, batch_size=2)[0]
        for mean in (0, 1000)
    )
    # Float32 holds numbers near 1000 to 3e-5; their squares, summed, would leave no correct digit of the variance.
    assert far.std == pytest.approx(near.std, rel=1e-5)


def test_a_layer_that_starts_at_zero_responds_with_zero():
    model = make("A", zero_init_residual=True)
    found = layer_responses(model, initialize(model, jax.random.key(0), SHAPE), random_images(3, SHAPE), batch_size=2)
    for layer, std in found:
        assert (std == 0) == layer.endswith("conv2"), layer


@pytest.mark.parametrize("net", ["A"], indirect=True)
def test_what_has_no_responses_is_refused(net, monkeypatch):
    _, model, variables, images, _ = net
    with pytest.raises(ValueError, match=r"activation_order='pre' .* addition.*activation_order='post'"):
        layer_responses(model.clone(activation_order="pre"), variables, images)
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        layer_responses(model, variables, images, batch_size=0)
    with pytest.raises(ValueError, match=r"images of shape \(0, .* hold no image"):
        layer_responses(model, variables, images[:0])
    # As for a user, whose arrays nothing else checks.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="images must be normalised floats, found uint8"):
        layer_responses(model, variables, images.astype(np.uint8))
    with pytest.raises(ValueError, match="add the batch axis"):
        layer_responses(model, variables, images[0])


@pytest.mark.parametrize("net", ["B"], indirect=True)
def test_the_first_layer_whose_responses_are_not_finite_is_named(net):
    _, model, variables, images, _ = net
    unknown = np.where(np.arange(len(images)).reshape(-1, 1, 1, 1) == 5, np.nan, images)
    with pytest.raises(ValueError, match=r"^stem/conv: its responses are not finite"):
        layer_responses(model, variables, unknown, batch_size=2)
    diverged = changed(variables, "stage1_block1", "norm2", bias=np.full(4, np.inf, np.float32))
    with pytest.raises(ValueError, match=r"^stage1_block1/conv2: its responses are not finite"):
        layer_responses(model, diverged, images)


# The figure

SERIES = {"plain-8": [2.0, 1.0, 1.5], "ResNet-8": [1.0, 0.25, 0.75], "ResNet-14": [0.5, 3.0, 0.1, 0.2]}


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that is saved."""
    figures = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments, **options):
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def test_the_upper_panel_has_the_layers_order_and_the_lower_one_falls(tmp_path, drawn):
    output = plot_responses(SERIES, tmp_path / "plots" / "responses.png")
    (figure,) = drawn
    upper, lower = figure.axes
    assert upper.get_position().y0 > lower.get_position().y1
    assert (upper.get_xlabel(), lower.get_xlabel()) == ("layer index (original)", "layer index (sorted by magnitude)")
    for line, below, values in zip(upper.get_lines(), lower.get_lines(), SERIES.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, len(values) + 1))
        np.testing.assert_array_equal(line.get_ydata(), values)
        np.testing.assert_array_equal(below.get_xdata(), np.arange(1, len(values) + 1))
        np.testing.assert_array_equal(below.get_ydata(), sorted(values)[::-1])
    for axes in figure.axes:
        assert axes.get_ylim()[0] == 0 and 3 < axes.get_ylim()[1] < 3.5
        assert axes.get_xlim()[0] < 1 and 4 < axes.get_xlim()[1] < 5
    picture = matplotlib.image.imread(output)
    assert picture.shape[0] > 900 and picture.shape[1] > 1200
    assert np.ptp(picture) > 0.5


def test_plain_nets_are_dashed_and_share_their_twins_colour(tmp_path, drawn):
    names = ["cifar_plain20", "cifar_resnet20", "cifar_resnet56", "residual-8 A", "residual-8 B", "Plain-8 A"]
    plot_responses({name: [1.0, 2.0] for name in names}, tmp_path / "responses.svg")
    for axes in drawn[0].axes:
        lines = {line.get_label(): line for line in axes.get_lines()}
        assert list(lines) == names
        assert [line.get_linestyle() for line in lines.values()] == ["--", "-", "-", "-", "-", "--"]
        colours = {name: line.get_color() for name, line in lines.items()}
        assert colours["cifar_plain20"] == colours["cifar_resnet20"]
        assert colours["Plain-8 A"] == colours["residual-8 A"]
        assert len(set(colours.values())) == 4
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == names


def test_the_legend_hides_no_curve_and_is_not_cut_off(tmp_path, drawn):
    long = {f"a net with a name that is as long as this one, number {number}": [1.0] * 30 for number in range(8)}
    plot_responses(long, tmp_path / "responses.png")
    box = drawn[0].legends[0].get_window_extent()
    assert drawn[0].bbox.x0 <= box.x0 and box.x1 <= drawn[0].bbox.x1
    for axes in drawn[0].axes:
        assert axes.get_window_extent().x1 <= box.x0


def test_values_that_are_no_deviations_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no net"):
        plot_responses({}, tmp_path / "responses.png")
    for values in ([], [1.0, float("nan")], [float("inf")], [1.0, -0.5]):
        with pytest.raises(ValueError, match=r"plain-8: \[.*\] must be standard deviations"):
            plot_responses({"ResNet-8": [1.0], "plain-8": values}, tmp_path / "responses.png")
    assert not list(tmp_path.iterdir())
    assert plot_responses({"zero": [0.0]}, tmp_path / "responses.pdf").is_file()


def test_no_display_and_no_pyplot_is_touched():
    program = "import sys, resnet_jax.analysis.responses; assert 'matplotlib.pyplot' not in sys.modules"
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)
