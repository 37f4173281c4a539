"""The PyTorch yardstick of CIFAR-10 does what this library does, and the difference of two sets of runs is Welch's."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiment_modules import experiment_modules
from random_variables import random_variables

from resnet_jax import create_model, load_config
from resnet_jax.data.arrays import ImageArrays
from resnet_jax.data.batch import Batch
from resnet_jax.parts import build_optimizer
from resnet_jax.training.objective import classification
from resnet_jax.training.schedules import constant
from resnet_jax.training.state import Progress, TrainState
from resnet_jax.training.steps import make_train_step

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "cifar10"
# Table 6 by enumeration: convolutions without biases, gammas, betas, the classifier.
PARAMETERS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962, 1202: 19_421_274}


@pytest.fixture(scope="module")
def modules():
    """Imports the experiment's modules by name."""
    with experiment_modules(FOLDER) as imported:
        yield imported


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="the yardstick is PyTorch's, which is not installed")


@pytest.fixture
def reference(torch, modules):
    return modules("pytorch_reference")


def their_names(name):
    """Path of ours and name of theirs of every tensor of a net."""
    layers = [(("stem", ""), ("conv", "norm"))]
    size = create_model(name).stage_sizes[0]
    for index in range(3 * size):
        stage, block = divmod(index, size)
        layers.append(
            ((f"stage{stage + 1}_block{block + 1}", f"blocks.{index}."), ("conv1", "norm1", "conv2", "norm2"))
        )
    for (ours, theirs), parts in layers:
        for part in parts:
            if part.startswith("conv"):
                yield ("params", ours, part, "kernel"), f"{theirs}{part}.weight"
                continue
            yield ("params", ours, part, "scale"), f"{theirs}{part}.weight"
            yield ("params", ours, part, "bias"), f"{theirs}{part}.bias"
            yield ("batch_stats", ours, part, "mean"), f"{theirs}{part}.running_mean"
            yield ("batch_stats", ours, part, "var"), f"{theirs}{part}.running_var"
    yield ("params", "classifier", "kernel"), "classifier.weight"
    yield ("params", "classifier", "bias"), "classifier.bias"


def to_theirs(name, variables):
    """Our variables as arrays under their names."""
    found = {}
    for path, theirs in their_names(name):
        value = variables
        for key in path:
            value = value[key]
        value = np.asarray(value)
        found[theirs] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    return found


def load(torch, net, arrays):
    state = {name: torch.tensor(np.ascontiguousarray(value)) for name, value in arrays.items()}
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)


def noise(count, side=32, channels=3, seed=0):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, side, side, channels), np.uint8)
    return ImageArrays(images, random.integers(0, 10, count).astype(np.int32))


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_plain14"])
def test_the_forward_pass_is_ours(torch, reference, name):
    model = create_model(name)
    variables = random_variables(model, (32, 32, 3), train=False)
    images = np.random.default_rng(0).normal(0, 60, (4, 32, 32, 3)).astype(np.float32)
    ours = np.asarray(model.apply(variables, images, train=False))
    net = reference.Net(name).eval()
    load(torch, net, to_theirs(name, variables))
    with torch.no_grad():
        theirs = net(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(theirs, ours, atol=1e-5 * np.abs(ours).max(), rtol=0)


# With these seeds no activation of either step comes so near 0 that rounding could decide whether a ReLU passes its
# gradient: the nearest are 4e-5 and 5e-5 away, the differences of activations below 1e-6.
STEP_SEEDS = {"cifar_resnet8": 34, "cifar_plain8": 30}
SIDE = 4


@pytest.mark.parametrize("name", STEP_SEEDS)
def test_a_training_step_is_ours(torch, reference, name):
    """Two steps on one batch: statistics of groups of 64, loss, gradients, L2 on kernels alone, momentum."""
    config = load_config("cifar10:resnet20")
    model = create_model(name, bn_group_size=config.model.bn_group_size)
    variables = random_variables(model, (SIDE, SIDE, 3), train=False)
    arrays = noise(128, side=SIDE, seed=STEP_SEEDS[name])
    settings = {"net": name, "seed": 0, "steps": 10, "bf16": False, "compile": None}
    training = reference.make_training(settings, arrays, classes=10, device=torch.device("cpu"))
    load(torch, training.net, to_theirs(name, variables))
    images, labels = training.batches.at(0)
    batch = Batch(
        jnp.asarray(images.permute(0, 2, 3, 1).numpy()), jnp.asarray(labels.numpy(), jnp.int32), jnp.ones(128)
    )
    optimizer, schedule = build_optimizer(config), constant(config.schedule.learning_rate)
    step = jax.jit(make_train_step(classification(model), optimizer, schedule, seed=0))
    state, initial = TrainState.create(variables, optimizer, schedule), to_theirs(name, variables)
    for number in (1, 2):
        state, progress = step(state, Progress.zero(), batch)
        training.done = 0  # the same batch again, now with momentum
        assert float(training.step()) == pytest.approx(float(progress.sums.loss) / 128, rel=2e-6)
        theirs = {key: value.numpy() for key, value in training.net.state_dict().items()}
        for key, ours in to_theirs(name, state.variables).items():
            found = biased(key, theirs[key], initial[key], number)
            # Of the update, and of the last bits of what it is added to; the decay alone is 1e-5 of a kernel.
            tolerance = 1e-5 * np.abs(ours - initial[key]).max() + 3e-7 * np.abs(ours).max()
            np.testing.assert_allclose(found, ours, atol=tolerance, rtol=0, err_msg=f"step {number}, {key}")


def biased(name, value, initial, steps):
    """A running variance as we keep it: PyTorch corrects each batch's by n / (n - 1)."""
    if not name.endswith("running_var"):
        return value
    # The groups' values, in an 8-layer net's three stages.
    side = SIDE // 2 ** (int(name.split(".")[1]) if name.startswith("blocks") else 0)
    count, kept = 64 * side**2, 0.9**steps * initial
    return kept + (value - kept) * (count - 1) / count


@pytest.mark.parametrize("depth", PARAMETERS)
@pytest.mark.parametrize("family", ["resnet", "plain"])
def test_parameters_are_those_of_table_6(torch, reference, family, depth):
    with torch.device("meta"):
        net = reference.Net(f"cifar_{family}{depth}")
    assert sum(value.numel() for value in net.parameters()) == PARAMETERS[depth]


def test_initial_kernels_have_he_s_variance_in_fan_in(torch, reference):
    net = reference.Net("cifar_resnet8")
    net.initialize(torch.Generator().manual_seed(0))
    for name, value in net.named_parameters():
        if value.ndim > 1:
            assert float(value.detach().var()) == pytest.approx(2 / value[0].numel(), rel=0.2), name
        else:
            assert value.eq(1 if "norm" in name and name.endswith("weight") else 0).all(), name


def test_the_recipe_is_the_config_s(reference):
    config = load_config("cifar10:resnet110")
    assert (reference.BATCH, reference.STEPS) == (config.train.batch_size, config.train.duration)
    assert (reference.GROUP, reference.PAD) == (config.model.bn_group_size, config.data.pad)
    optimizer, schedule = config.optimizer, config.schedule
    assert (optimizer.name, optimizer.nesterov, optimizer.decay) == ("sgd", False, "kernels")
    assert (reference.MOMENTUM, reference.WEIGHT_DECAY) == (optimizer.momentum, optimizer.weight_decay)
    assert (reference.RATE, reference.DROP) == (schedule.learning_rate, schedule.factor)
    assert tuple(part * reference.STEPS for part in reference.DROPS) == schedule.boundaries
    warmup = (schedule.warmup_learning_rate, schedule.warmup_error, schedule.warmup_window)
    assert (reference.WARMUP_RATE, reference.WARMUP_ERROR, reference.WARMUP_STEPS) == warmup
    assert config.data.flip and config.data.normalization == "pixel_mean"


def test_the_rate_falls_after_a_half_and_three_quarters_of_the_steps(reference):
    steps = (0, 31_999, 32_000, 47_999, 48_000, 63_999)
    assert [reference.rate_at(step, 64_000) for step in steps] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert [reference.rate_at(step, 8) for step in (3, 4, 6)] == pytest.approx([0.1, 0.01, 0.001])


def test_batches_are_crops_of_every_image_once_an_epoch(torch, reference):
    arrays = noise(200, side=8)
    device = torch.device("cpu")
    mean = reference.pixel_mean(arrays, device)
    np.testing.assert_allclose(mean.numpy(), arrays.images.mean(0), rtol=1e-6)
    batches = reference.Batches(arrays, mean, seed=3, device=device)
    padded = np.pad(arrays.images - mean.numpy(), ((0, 0), (4, 4), (4, 4), (0, 0)))
    seen = []
    for step in range(25):  # 16 epochs
        images, labels = batches.at(step)
        assert images.is_contiguous(memory_format=torch.channels_last)
        first, last = divmod(step * 128, 200)[0], divmod(step * 128 + 127, 200)[0]
        draws = np.concatenate([batches.draws(epoch).numpy() for epoch in range(first, last + 1)], 1)
        draws = draws[:, step * 128 - 200 * first :][:, :128]
        for image, label, (row, top, left, mirrored) in zip(images, labels, draws.T, strict=True):
            expected = padded[row, top : top + 8, left : left + 8]
            expected = expected[:, ::-1] if mirrored else expected
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)
            assert label == arrays.labels[row]
        seen.append(draws)
    rows, tops, lefts, mirrored = np.concatenate(seen, 1)
    for epoch in range(16):
        assert sorted(rows[200 * epoch : 200 * (epoch + 1)]) == list(range(200))
    assert len({tuple(rows[200 * epoch : 200 * (epoch + 1)]) for epoch in range(16)}) == 16
    assert set(tops) == set(lefts) == set(range(9)) and 0.45 < mirrored.mean() < 0.55
    assert not np.array_equal(tops, lefts)


def test_deep_nets_begin_at_the_low_rate_until_the_error_is_below_the_mark(torch, reference, monkeypatch):
    settings = {"seed": 0, "steps": 100, "bf16": False, "compile": None}
    make, arrays, device = reference.make_training, noise(128, side=8), torch.device("cpu")

    def low(name):
        return make(settings | {"net": name}, arrays, classes=10, device=device).low

    assert [low(f"cifar_{name}") for name in ("resnet110", "plain110", "resnet104", "plain8")] == [True] * 2 + [
        False
    ] * 2
    monkeypatch.setattr(reference, "WARMUP_DEPTH", 8)
    monkeypatch.setattr(reference, "WARMUP_STEPS", 2)
    for mark, expected in ((1.01, [0.01, 0.01, 0.1, 0.1]), (0.0, [0.01] * 4)):
        monkeypatch.setattr(reference, "WARMUP_ERROR", mark)
        training = make(settings | {"net": "cifar_resnet8"}, arrays, classes=10, device=device)
        rates = []
        for _ in range(4):
            training.step()
            rates.append(training.optimizer.param_groups[0]["lr"])
        assert rates == pytest.approx(expected)


def test_errors_count_ties_against_the_net(torch, reference):
    logits = torch.tensor([[3.0, 1, 2], [1, 1, 0], [0, 1, 2], [float("nan")] * 3])
    labels = torch.tensor([0, 0, 0, 0])
    assert int(reference.wrong(logits, labels)) == 3
    assert int(reference.wrong(logits, labels, 2)) == 2


def test_an_evaluation_counts_every_image(torch, reference, monkeypatch):
    monkeypatch.setattr(reference, "TEST_BATCH", 48)
    settings = {"net": "cifar_resnet8", "seed": 0, "steps": 1, "bf16": False, "compile": None}
    arrays, device = noise(130, side=8), torch.device("cpu")
    training = reference.make_training(settings, arrays, classes=10, device=device)
    found = training.evaluate(*reference.on_device(arrays, device))
    assert training.net.training
    logits = training.net.eval()((torch.tensor(arrays.images) - training.batches.mean).permute(0, 3, 1, 2))
    expected = (logits.argmax(1).numpy() != arrays.labels).mean()
    assert found["count"] == 130 and found["error_top1"] == pytest.approx(expected)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def run(reference, torch, data_dir, monkeypatch):
    """Runs 12 steps of small batches of the digits, with a checkpoint every 5."""
    monkeypatch.setattr(reference, "BATCH", 32)
    return partial(_run, reference, torch, data_dir)


def _run(reference, torch, data_dir, workdir, **changes):
    config = {"net": "cifar_resnet8", "seed": 1, "steps": 12, "dataset": "digits", "bf16": False, "compile": None}
    options = {"data_dir": str(data_dir), "device": torch.device("cpu"), "every": 5}
    return reference.run(config | changes, workdir, **options)


@pytest.fixture
def in_the_warmup(reference, monkeypatch):
    """The window of the warm-up has begun where the checkpoint is made, and the sum in it decides what follows."""
    for name, value in {"WARMUP_DEPTH": 8, "WARMUP_STEPS": 7, "WARMUP_ERROR": 0.5}.items():
        monkeypatch.setattr(reference, name, value)


def test_a_killed_run_goes_on_to_the_same_end(torch, reference, run, tmp_path, monkeypatch, in_the_warmup):
    whole = run(tmp_path / "whole")
    step = reference.Training.step

    def killed(training):
        if training.done == 8:
            raise KeyboardInterrupt
        return step(training)

    monkeypatch.setattr(reference.Training, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed")
    assert not (tmp_path / "killed" / "record.json").exists()
    monkeypatch.setattr(reference.Training, "step", step)
    resumed = run(tmp_path / "killed")
    assert (whole["resumed_from_step"], resumed["resumed_from_step"]) == (None, 5)
    same = ("train", "test", "steps", "config", "parameters", "model", "seed")
    assert {key: resumed[key] for key in same} == {key: whole[key] for key in same}
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["net"] for name in ("whole", "killed")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    # A finished run is not run again.
    monkeypatch.setattr(reference.Training, "step", None)
    assert run(tmp_path / "killed") == json.loads((tmp_path / "killed" / "record.json").read_text())


def test_a_checkpoint_of_another_run_is_refused(run, tmp_path):
    run(tmp_path / "run", steps=1)
    (tmp_path / "run" / "record.json").unlink()
    with pytest.raises(ValueError, match="another seed, steps; choose another --workdir"):
        run(tmp_path / "run", steps=2, seed=2)


def test_a_loss_that_is_not_finite_is_never_saved(torch, reference, run, tmp_path, monkeypatch):
    step = reference.Training.step
    monkeypatch.setattr(
        reference.Training, "step", lambda training: step(training) * (float("nan") if training.done > 5 else 1)
    )
    with pytest.raises(FloatingPointError, match="step 10"):
        run(tmp_path / "run")
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["done"] == 5


def test_the_command_writes_a_record_that_can_be_compared(torch, reference, modules, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "BATCH", 32)
    words = ["--net=cifar_plain8", "--steps=3", "--seed=4", "--dataset=digits", "--device=cpu"]
    reference.main([*words, f"--data_dir={data_dir}", f"--workdir={tmp_path}"])
    record = json.loads((tmp_path / "record.json").read_text())
    assert (record["framework"], record["versions"]["torch"]) == ("pytorch", torch.__version__)
    assert (record["model"], record["seed"], record["steps"]) == ("cifar_plain8", 4, 3)
    assert (record["train"]["count"], record["test"]["count"]) == (1438, 359)
    assert record["images_per_second"] > 0 and str(data_dir) not in json.dumps(record)
    assert modules("difference").compare([record], [record])["test"]["difference"] == 0


def test_welch_s_interval_by_hand(modules):
    welch = modules("difference").welch
    # Both variances 1: 4 degrees, t = 2.776445, standard error sqrt(2 / 3).
    found = welch([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    assert found["difference"] == pytest.approx(-3) and found["degrees"] == pytest.approx(4)
    assert found["interval"] == pytest.approx([-3 - 2.266958, -3 + 2.266958], abs=1e-5)
    assert found["ours"] == {"n": 3, "mean": 2, "std": pytest.approx(1)}
    # All of the scatter is in the first two: 1 degree and not 3, t = 12.70620, standard error 1.
    found = welch([1.0, 3.0], [5.0, 5.0, 5.0])
    assert found["degrees"] == pytest.approx(1)
    assert found["interval"] == pytest.approx([-3 - 12.70620, -3 + 12.70620], abs=1e-4)
    assert welch([2.0, 2.0], [1.0, 1.0])["interval"] == [1, 1]


def test_one_run_has_no_interval(modules):
    difference = modules("difference")
    found = difference.welch([8.5], [8.1, 8.3])
    assert found["difference"] == pytest.approx(0.3) and found["interval"] is None and found["ours"]["std"] is None
    assert "no interval: a set is one run" in difference.sentence("test", found)
    with pytest.raises(ValueError, match="theirs: no values"):
        difference.welch([1.0], [])


def a_record(seed, error, **changes):
    whole = {"model": "cifar_resnet20", "seed": seed, "steps": 64_000}
    split = {"train": {"error": 0.001 * seed, "count": 50_000}, "test": {"error_top1": error, "count": 10_000}}
    return whole | split | changes


def test_records_are_compared_in_percent(modules, tmp_path, capsys):
    difference = modules("difference")
    sets = {"ours": [0.085, 0.087, 0.089], "theirs": [0.084, 0.086, 0.088]}
    words = []
    for name, errors in sets.items():
        words.append(f"--{name}")
        for seed, error in enumerate(errors):
            path = tmp_path / f"{name}{seed}.json"
            path.write_text(json.dumps(a_record(seed, error)))
            words.append(str(path))
    difference.main([*words, "--json"])
    found = json.loads(capsys.readouterr().out)
    # Standard deviations 0.2: t(4) * 0.2 * sqrt(2 / 3).
    assert found["test"]["interval"] == pytest.approx([0.1 - 0.453392, 0.1 + 0.453392], abs=1e-5)
    assert found["train"]["difference"] == 0
    difference.main(words)
    assert (
        "test error, ours 8.70 % (n = 3, std 0.20) and PyTorch 8.60 % (n = 3, std 0.20): difference +0.10 points, "
        in (capsys.readouterr().out)
    )


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"model": "cifar_resnet56"}, "differ in model: cifar_resnet20, cifar_resnet56"),
        ({"steps": 2}, "differ in steps: 2, 64000"),
        ({"test": {"error_top1": 0.1, "count": 9}}, "differ in test.count: 9, 10000"),
    ],
)
def test_runs_that_differ_in_more_than_the_framework_are_refused(modules, other, message):
    with pytest.raises(ValueError, match=message):
        modules("difference").compare([a_record(0, 0.1)], [a_record(0, 0.1, **other)])


def test_a_run_counts_once(modules):
    with pytest.raises(ValueError, match="ours: seeds .0, 0. are not all different"):
        modules("difference").compare([a_record(0, 0.1), a_record(0, 0.1)], [a_record(0, 0.1)])
