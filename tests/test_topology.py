"""Training with ordered=True: no bit of the state depends on how many devices and processes share the batch."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hosts_helper import JOIN, run_processes

from resnet_jax.data.batch import Batch
from resnet_jax.data.device_augment import make_prepare
from resnet_jax.data.feeds import ResidentFeed
from resnet_jax.data.resident import ResidentData, make_batch_at
from resnet_jax.distributed import data_mesh, replicate, split_batch
from resnet_jax.hosts.fingerprint import fingerprint
from resnet_jax.models.registry import create_model, initialize
from resnet_jax.training import schedules
from resnet_jax.training.objective import classification
from resnet_jax.training.optimizers import optimizer_named
from resnet_jax.training.ordered_sum import sum_in_order
from resnet_jax.training.state import Progress, TrainState
from resnet_jax.training.steps import make_resident_step, make_streamed_step, make_train_step

SHAPE, COUNT, BATCH, GROUP = (12, 12, 3), 96, 64, 8
PIXELS = {"mean": np.full(3, 120.3, np.float32), "std": np.full(3, 61.7, np.float32)}
PAPER = dict(optimizer="sgd", momentum=0.9, nesterov=False, weight_decay=1e-4, decay="kernels")
# One example of each group and one device for each of the eight groups are where a compiler is tempted most.
RUNS = {
    "A": dict(shortcut="A", dtype="float32", **PAPER),
    "B, bfloat16": dict(shortcut="B", dtype="bfloat16", **{**PAPER, "nesterov": True, "decay": "all"}),
    "lamb": dict(shortcut="A", dtype="float32", **{**PAPER, "optimizer": "lamb"}, clip_norm=0.5),
}


def arguments_of_steps(mesh, steps, *, streamed):
    """The function that jits a train step, and the arguments that its calls take besides state and progress."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (COUNT, *SHAPE)).astype(np.uint8)
    labels = random.integers(0, 10, COUNT).astype(np.int32)
    if not streamed:
        batch_at = make_batch_at(mesh, seed=0, batch_size=BATCH, pad=2, flip=True, **PIXELS)
        data = replicate(ResidentData(images=images, labels=labels), mesh)
        feed = ResidentFeed(data, seeds=(0,), batch_size=BATCH)
        return lambda step: make_resident_step(lambda _: (step, batch_at), mesh), [
            feed.arguments(k) for k in range(steps)
        ]
    vectors = np.linalg.qr(random.normal(size=(3, 3)))[0].astype(np.float32)
    colors = dict(pca_std=0.1, eigenvalues=np.array([55, 5, 1], np.float32), eigenvectors=vectors)
    mixing = dict(cutout_size=4, mixup_alpha=0.2, cutmix_alpha=1.0)
    prepare = make_prepare(mesh, seed=0, batch_size=BATCH, **mixing, **colors, **PIXELS)
    # Two images of the second batch are unreadable.
    weights = np.where(np.isin(np.arange(2 * BATCH), (BATCH + 1, BATCH + 30)), 0, 1).astype(np.float32)
    batches = [(np.arange(BATCH) + k * BATCH) for k in range(steps)]
    arrays = [(images[rows % COUNT], labels[rows % COUNT], weights[rows % len(weights)]) for rows in batches]
    arguments = [
        tuple(jax.make_array_from_callback(array.shape, split_batch(mesh), array.__getitem__) for array in batch)
        for batch in arrays
    ]
    return lambda step: make_streamed_step(step, prepare, mesh), arguments


@functools.cache
def trained(devices, run, *, slices=1, streamed=False, ordered=True, steps=3):
    """State and progress after each of a few steps, on the host; every device's copy must be the same."""
    mesh = data_mesh(jax.devices()[:devices], slices=slices)
    settings = dict(RUNS[run])
    options = {name: settings.pop(name) for name in ("shortcut", "dtype")}
    model = create_model("cifar_resnet8", stage_sizes=(1, 1), width=8, bn_group_size=GROUP, **options)
    optimizer, schedule = optimizer_named(settings.pop("optimizer"), **settings), schedules.constant(0.05)
    state = TrainState.create(initialize(model, jax.random.key(0), SHAPE), optimizer, schedule, ema=True)
    step = make_train_step(
        classification(model), optimizer, schedule, seed=0, ema_decay=0.9, ordered=ordered, mesh=mesh
    )
    jitted, arguments = arguments_of_steps(mesh, steps, streamed=streamed)
    carried, call, seen = replicate((state, Progress.zero()), mesh), jitted(step), []
    for some in arguments:
        carried = call(*carried, *some)
        copies = [jax.tree.map(lambda leaf, i=i: np.asarray(leaf.addressable_data(i)), carried) for i in (0, -1)]
        assert fingerprint(copies[0]) == fingerprint(copies[1])
        seen.append(copies[0])
    assert int(seen[-1][1].skipped) == 0
    return seen


def bits(*arguments, **options):
    return fingerprint(trained(*arguments, **options)[-1])


def test_a_resident_run_has_the_same_bits_on_1_2_4_and_8_devices():
    expected = bits(1, "A")
    assert bits(2, "A") == bits(4, "A", slices=2) == bits(8, "A") == expected


@pytest.mark.slow
@pytest.mark.parametrize("run", ["B, bfloat16", "lamb"])
def test_so_do_other_nets_precisions_and_optimizers(run):
    assert bits(8, run) == bits(1, run)


@pytest.mark.slow
def test_a_streamed_run_of_mixed_images_has_the_same_bits_on_1_and_8_devices():
    assert bits(8, "B, bfloat16", streamed=True) == bits(1, "B, bfloat16", streamed=True)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices", "run", "streamed"), [(2, 2, "A", False), (4, 1, "B, bfloat16", True)])
def test_processes_give_the_same_bits(processes, devices, run, streamed, tmp_path):
    code = f"""{JOIN}
import sys
sys.path.insert(0, "tests")
from test_topology import bits
print("bits", bits(4, {run!r}, streamed={streamed}))
"""
    # A CPU's weight gradients depend on the number of threads: one for each core, or for each device if those are more.
    threads = {"NPROC": str(max(int(os.environ.get("NPROC", os.cpu_count() or 1)), jax.device_count()))}
    for ended in run_processes(code, processes, tmp_path, devices=devices, seconds=200, environment=threads):
        assert ended.code == 0, ended.output
        assert f"bits {bits(1, run, streamed=streamed)}" in ended.output


def test_without_the_order_the_bits_differ():
    """So that the tests above can tell: the sums of 1 and of 8 devices are not those of one order by chance."""
    assert bits(1, "A", ordered=False) != bits(8, "A", ordered=False)


def test_the_update_is_that_of_the_whole_batch():
    """After one step, to 1e-5 of each array's largest value; errors are counted alike."""
    (expected, expected_progress), (found, progress) = (trained(1, "A", ordered=flag)[0] for flag in (False, True))
    leaves = dict(jax.tree_util.tree_leaves_with_path(found))
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        scale = max(float(np.abs(leaf).max()), 1e-3)
        np.testing.assert_allclose(leaves[path], leaf, atol=1e-5 * scale, rtol=0, err_msg=str(path))
    assert float(progress.sums.loss) == pytest.approx(float(expected_progress.sums.loss), rel=1e-5)
    assert [float(progress.sums.errors_top1), float(progress.sums.count)] == [
        float(expected_progress.sums.errors_top1),
        float(expected_progress.sums.count),
    ]


def numbers(rows):
    """Float32 of very different sizes, whose sum depends on the order, and a batch that carries them."""
    values = np.random.default_rng(rows).normal(size=(rows, 7)) * 10.0 ** np.arange(rows)[:, None]
    values = np.random.default_rng(0).permutation(values).astype(np.float32)
    return values, Batch(image=values, label=np.zeros(rows, np.int32), weight=np.ones(rows, np.float32))


@pytest.mark.parametrize(("groups", "devices", "slices"), [(8, 1, 1), (8, 8, 2), (12, 1, 1), (12, 2, 1), (12, 6, 3)])
def test_the_sum_is_a_pairwise_tree(groups, devices, slices):
    """Of groups of one example, each of which knows its number in the batch."""
    values, batch = numbers(groups)
    mesh = data_mesh(jax.devices()[:devices], slices=slices)

    def function(group, index):
        return {"value": group.image[0], "number": (index + 1.0) * group.image[0, 0]}

    found = jax.jit(lambda batch: sum_in_order(function, batch, group_size=1, mesh=mesh))(batch)
    rows = np.concatenate([values, np.arange(1, groups + 1, dtype=np.float32)[:, None] * values[:, :1]], axis=1)
    while len(rows) > 1:
        even = len(rows) // 2 * 2
        rows = np.concatenate([rows[0:even:2] + rows[1:even:2], rows[even:]])
    np.testing.assert_array_equal(found["value"], rows[0, :7])
    assert float(found["number"]) == float(rows[0, 7])


def test_a_batch_that_does_not_divide_is_refused():
    _, batch = numbers(12)
    with pytest.raises(ValueError, match="8 devices and groups of bn_group_size=1 examples do not divide the batch of"):
        sum_in_order(lambda group, index: jnp.sum(group.image), batch, group_size=1, mesh=data_mesh())


@pytest.mark.parametrize("changes", [{"mesh": None}, {"accumulation_steps": 2}, {"group": None}])
def test_ordered_needs_a_mesh_groups_and_no_accumulation(changes):
    options = {"mesh": data_mesh(), "accumulation_steps": 1, "group": GROUP, **changes}
    model = create_model("cifar_resnet8", bn_group_size=options.pop("group"))
    optimizer = optimizer_named(**{"name": "sgd", **{k: v for k, v in PAPER.items() if k != "optimizer"}})
    with pytest.raises(ValueError, match="ordered=True needs a mesh, a bn_group_size and accumulation_steps=1, not"):
        make_train_step(classification(model), optimizer, schedules.constant(0.1), seed=0, ordered=True, **options)
