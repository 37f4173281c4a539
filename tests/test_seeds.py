"""Several seeds in one program: each learns what it would have learnt alone, and leaves a workdir like any other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.build import build
from resnet_jax.config import differing_keys
from resnet_jax.config_files import load_config
from resnet_jax.data.prepare import prepare
from resnet_jax.data.resident import EpochOrders
from resnet_jax.evaluation.run import evaluate_workdir, load_workdir
from resnet_jax.records import read_metrics
from resnet_jax.training import loop
from resnet_jax.training.loop import train, train_seeds
from resnet_jax.training.seeds import Seeds
from resnet_jax.training.state import TrainState
from resnet_jax.workdir import Workdir

# The warm-up's end is each seed's own, and 12 steps are a checkpoint, a test and a line of metrics on the way.
SMALL = {
    "model.name": "cifar_resnet8",
    "model.width": 4,
    "model.dropout_rate": 0.1,
    "data.policy": "randaugment",
    "data.cutout": 3,
    "data.mixup": 0.2,
    "data.cutmix": 1.0,
    "train.batch_size": 64,
    "train.duration": 12,
    "train.unit": "steps",
    "train.log_every": 3,
    "evaluate.every": 4,
    "checkpoint.every": 4,
    "checkpoint.keep_latest": 3,
    "schedule.warmup": "until_error",
    "schedule.warmup_error": 0.86,
    "schedule.warmup_window": 1,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepare("digits", data_dir=folder)

    def made(**changes):
        return load_config("digits", SMALL | {"data.data_dir": str(folder)} | changes)

    return made


@pytest.fixture(scope="module")
def together(config, tmp_path_factory):
    """A run of the seeds 3 and 4, and its records."""
    workdir = tmp_path_factory.mktemp("together") / "run"
    return workdir, train_seeds(config(seed=3, num_seeds=2), workdir)


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    """Runs of the same seeds by themselves."""
    folder = tmp_path_factory.mktemp("alone")
    for seed in (3, 4):
        train(config(seed=seed), folder / f"seed_{seed}")
    return folder


def last_state(workdir):
    """Parameters and statistics of the last checkpoint by path."""
    _, variables = load_workdir(workdir)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(variables)}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4])
def test_each_seed_ends_as_it_does_alone(seed, together, alone):
    ours, theirs = together[0] / f"seed_{seed}", alone / f"seed_{seed}"
    expected = last_state(theirs)
    for path, found in last_state(ours).items():
        np.testing.assert_allclose(found, expected[path], rtol=0, atol=1e-4 * max(np.abs(expected[path]).max(), 1e-3))
    metrics, wanted = read_metrics(Workdir(ours).metrics), read_metrics(Workdir(theirs).metrics)
    assert metrics.keys() == wanted.keys()
    for name in metrics.keys() - {"train/images_per_second"}:
        np.testing.assert_array_equal(metrics[name][0], wanted[name][0])
        np.testing.assert_allclose(metrics[name][1], wanted[name][1], rtol=1e-4, err_msg=name)


@pytest.mark.slow
def test_seeds_differ_in_all_that_a_seed_decides(together):
    one, other = (last_state(together[0] / f"seed_{seed}") for seed in (3, 4))
    assert all((one[path] != other[path]).any() for path in one)
    rates = [read_metrics(Workdir(together[0] / f"seed_{seed}").metrics)["train/learning_rate"] for seed in (3, 4)]
    # The training error of one falls below the warm-up's end later than that of the other.
    assert (rates[0][1] != rates[1][1]).any()


@pytest.mark.slow
def test_each_seed_has_a_workdir_and_a_record_as_if_it_had_trained_alone(together, alone):
    workdir, records = together
    assert [record["seed"] for record in records] == [3, 4]
    for record in records:
        seed = record["seed"]
        files, single = workdir / f"seed_{seed}", alone / f"seed_{seed}"
        assert differing_keys(Workdir(files).read_config(), Workdir(single).read_config()) == []
        assert record["config"]["num_seeds"] == 1 and record["seeds_together"] == 2
        left_out = {"checkpoints", "run.lock"}
        assert {p.name for p in files.iterdir()} - left_out == {p.name for p in single.iterdir()} - left_out
        found = evaluate_workdir(files)
        assert (found["error_top1"], found["count"]) == (record["test"]["error_top1"], record["test"]["count"])
        assert found["count"] == 359
    assert train_seeds(Workdir(workdir).read_config(), workdir) == records, "a finished run is not trained again"


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_and_ends_bit_for_bit_like_one_that_was_not(
    config, together, tmp_path, monkeypatch
):
    save = loop.Saver.save

    def stopping(self, step, *arguments):
        save(self, step, *arguments)
        if step == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Saver, "save", stopping)
        with pytest.raises(KeyboardInterrupt):
            train_seeds(config(seed=3, num_seeds=2), tmp_path / "run")
    assert not (tmp_path / "run" / "seed_3" / "record.json").exists()
    records = train_seeds(config(seed=3, num_seeds=2), tmp_path / "run")
    assert [record["resumed_from_step"] for record in records] == [8, 8]
    for seed in (3, 4):
        ours, expected = last_state(tmp_path / "run" / f"seed_{seed}"), last_state(together[0] / f"seed_{seed}")
        for path, found in ours.items():
            np.testing.assert_array_equal(found, expected[path])
        rows = [read_metrics(Workdir(folder / f"seed_{seed}").metrics) for folder in (tmp_path / "run", together[0])]
        for name in rows[0].keys() - {"train/images_per_second"}:
            np.testing.assert_array_equal(rows[0][name][1], rows[1][name][1])


@pytest.mark.slow
def test_a_seed_that_diverges_ends_all_with_its_step(config, tmp_path):
    with pytest.raises(FloatingPointError, match=r"step \d+: the loss or a gradient is not finite"):
        train_seeds(
            config(num_seeds=2, **{"schedule.learning_rate": 1e20, "schedule.warmup": "none"}), tmp_path / "run"
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_seeds": 0}, "num_seeds=0: must be an integer at least 1"),
        ({"seed": 2**31 - 1}, r"num_seeds=2: the last seed would be 2147483648, and must be below 2147483648"),
        ({"train.sharding": "optimizer"}, "num_seeds=2: needs train.sharding=none, not optimizer"),
        (
            {"train.determinism": "topology", "model.bn_group_size": 8},
            "num_seeds=2: must be 1 with train.determinism=topology",
        ),
        ({"data.pipeline": "streamed"}, "num_seeds=2: needs data.pipeline=resident, not streamed"),
    ],
)
def test_what_several_seeds_cannot_do_is_refused(config, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train_seeds(config(**({"num_seeds": 2} | changes)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_takes_one_net_says_where_it_is(config, together, tmp_path):
    with pytest.raises(ValueError, match="num_seeds=2: train makes one record; train_seeds trains several seeds"):
        train(config(num_seeds=2), tmp_path / "run")
    with pytest.raises(ValueError, match=r"2 seeds that train together; .* name one, such as .*seed_3"):
        load_workdir(together[0])


def test_what_is_compiled_for_one_seed_serves_another(config):
    texts = set()
    for seed in (0, 1):
        parts = build(config(seed=seed))
        arguments = (parts.initial_state(), parts.initial_progress(), *parts.feed.arguments(0))
        texts.add(parts.make_call(1).lower(*arguments).as_text())
    assert len(texts) == 1


def test_orders_of_several_seeds_are_those_of_each():
    orders, epoch_start = EpochOrders(seed=jnp.array([5, 9]), count=20).at(45)
    assert epoch_start == 40
    for row, seed in enumerate((5, 9)):
        np.testing.assert_array_equal(orders[row], EpochOrders(seed=seed, count=20).at(45)[0])


def test_joined_trees_split_into_what_they_were_joined_from():
    trees = [TrainState(*(jnp.full(3, 8 * k + i) for i in range(8))) for k in range(3)]
    seeds = Seeds(0, 3)
    jax.tree.map(np.testing.assert_array_equal, seeds.split(seeds.join(trees)), trees)
    assert Seeds(0, 1).join(trees[:1]) is trees[0] and Seeds(0, 1).split(trees[0]) == [trees[0]]
