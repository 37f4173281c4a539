"""Tests that processes share: each image in one of them, one result in all, and nobody waits for one that failed."""

import json

import jax
import numpy as np
import pytest
from colored_images import build_colored_images
from hosts_helper import JOIN, run_processes
from random_variables import random_variables

from resnet_jax.data.datasets import dataset_info
from resnet_jax.data.examples import Examples
from resnet_jax.data.input_description import InputDescription
from resnet_jax.data.resident import ResidentData
from resnet_jax.distributed import collected, data_mesh, replicate
from resnet_jax.evaluation import protocols, shares
from resnet_jax.evaluation.evaluator import make_evaluator, make_scorer
from resnet_jax.evaluation.metrics import Sums
from resnet_jax.models.registry import create_model

SIZE, COUNT, BROKEN = 32, 11, 7
# Small ones, so that it takes seconds.
SCALES = (32, 40)


def net():
    model = create_model("cifar_resnet8", num_classes=COUNT, width=4, stage_sizes=(1,))
    return model, random_variables(model, (SIZE, SIZE, 3), train=False, seed=0)


def description():
    mean, std = np.full(3, 120, np.float32), np.full(3, 60, np.float32)
    return InputDescription((SIZE, SIZE, 3), mean, std, tuple(map(str, range(COUNT))), short_side=40)


def resident():
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (37, SIZE, SIZE, 3)).astype(np.uint8)
    return ResidentData(images=images, labels=random.integers(0, COUNT, 37).astype(np.int32))


PROTOCOL_OF = {"ten_crop": "ten_crop", "multi_scale": "multi_scale"}
# Of four processes, which take long to start and compile, what differs from two.
KINDS = {
    2: ("center", "ten_crop", "multi_scale", "few", "divided", "skip", "stop", "after", "resident"),
    4: ("center", "few", "stop", "after"),
}


def outcomes(mesh, folder, kinds):
    """What comes of tests of several kinds, and which examples were decoded here for each; a scorer's scores."""
    model, variables = net()
    variables = replicate(variables, mesh)
    decoded, decode = [], Examples.decoded

    def counting(self, index, view):
        decoded.append(index)
        return decode(self, index, view)

    def examples(name, split="train"):
        return Examples(dataset_info(name, data_dir=folder), split)

    splits = {name: examples("broken") for name in ("skip", "stop")}
    splits |= {"few": examples("colors", "train[:3]"), "multi_scale": examples("colors", "train[:3]")}
    splits |= {"resident": replicate(resident(), mesh)}
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocols, "SCALES", SCALES)
        patch.setattr(Examples, "decoded", counting)
        options = {"batch_size": 8, "input": description(), "workers": 0}
        names = {PROTOCOL_OF.get(kind, "center") for kind in kinds}
        evaluators = {name: make_evaluator(model, mesh, protocol=name, **options) for name in names}
        for kind in kinds:
            decoded.clear()
            evaluate = evaluators[PROTOCOL_OF.get(kind, "center")]
            arrays = collected(divided(variables, mesh), mesh) if kind == "divided" else variables
            unreadable = "skip" if kind == "skip" else "stop"
            try:
                result = evaluate(arrays, splits.get(kind) or examples("colors"), unreadable=unreadable)
            except (ValueError, RuntimeError, OSError) as error:
                result = f"{type(error).__name__}: {error}"
            found[kind] = {"result": result, "decoded": sorted(decoded)}
    if "ten_crop" in kinds:
        protocol = protocols.make_protocol("center", description())
        score = make_scorer(model, mesh, protocol=protocol, batch_size=8, workers=0)
        scores = score(variables, examples("colors"))
        found["scores"] = [array.tolist() for array in scores]
    return found


def divided(tree, mesh):
    """The same arrays, those that can be divided among the devices."""
    split = shares.split_batch(mesh)
    leaves, structure = jax.tree.flatten(tree)
    can = [i for i, leaf in enumerate(leaves) if leaf.shape[0] % mesh.size == 0]
    assert can
    parts = jax.jit(lambda some: some, out_shardings=split)([leaves[i] for i in can])
    for i, part in zip(can, parts, strict=True):
        assert not part.is_fully_replicated
        leaves[i] = part
    return jax.tree.unflatten(structure, leaves)


TEST = f"""{JOIN}
import json, sys, jax
sys.path.insert(0, "tests")
from test_shares import outcomes
from resnet_jax.distributed import data_mesh
from test_shares import KINDS
found = outcomes(data_mesh(), FOLDER, KINDS[jax.process_count()])
print("FOUND", json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_colored_images(folder)
    build_colored_images(folder, "broken", broken=(BROKEN,))
    return folder


@pytest.fixture(scope="module")
def one(folder):
    """The outcomes in one process with four devices."""
    return outcomes(data_mesh(jax.devices()[:4]), folder, KINDS[2])


@pytest.fixture(scope="module")
def two(folder, tmp_path_factory):
    return in_processes(2, folder, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(folder, tmp_path_factory):
    return in_processes(4, folder, tmp_path_factory.mktemp("four"))


def in_processes(count, folder, logs):
    """The outcomes in each process of a run of several, with four devices in all."""
    ended = run_processes(TEST.replace("FOLDER", repr(str(folder))), count, logs, devices=4 // count, seconds=240)
    assert [process.code for process in ended] == [0] * count, [process.output[-2000:] for process in ended]
    return [json.loads(process.output.partition("FOUND ")[2].partition("\n")[0]) for process in ended]


def check_shares(kind, one, several):
    """All have the result of one, and each has decoded its share and no more."""
    expected, found = one[kind], [outcome[kind] for outcome in several]
    for process in found:
        assert process["result"] == found[0]["result"]
        for key in ("count", "error_top1", "error_top5"):
            assert process["result"][key] == expected["result"][key]
        assert process["result"]["loss"] == pytest.approx(expected["result"]["loss"], rel=1e-5)
    together = [index for process in found for index in process["decoded"]]
    assert together == expected["decoded"] == list(range(len(together)))
    lengths = [len(process["decoded"]) for process in found]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["center", "ten_crop", "multi_scale", "few", "divided", "skip", "after"])
def test_two_processes_see_half_each_and_have_the_result_of_one(kind, one, two):
    check_shares(kind, one, two)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["center", "few", "after"])
def test_four_processes_see_a_quarter_each_and_have_the_result_of_one(kind, one, four):
    check_shares(kind, one, four)


def test_the_kinds_of_tests_differ(one):
    assert [one[name]["result"]["count"] for name in ("center", "few", "skip")] == [COUNT, 3, COUNT - 1]
    losses = [one[name]["result"]["loss"] for name in ("center", "ten_crop", "multi_scale", "few", "skip", "resident")]
    assert len(set(losses)) == len(losses)
    assert one["divided"]["result"] == one["center"]["result"]


@pytest.mark.slow
def test_an_image_that_cannot_be_decoded_stops_all_with_its_name(two, four):
    named = f"data set 'broken', split 'train', example {BROKEN} (image{BROKEN}.jpg): "
    for several, owner in ((two, 1), (four, 2)):
        for index, outcome in enumerate(several):
            told = f"ValueError: process {owner} of {len(several)} could not test its share of the images: {named}"
            expected = f"UndecodableImage: {named}" if index == owner else told
            assert outcome["stop"]["result"].startswith(expected)


@pytest.mark.slow
def test_a_split_in_device_memory_counts_once(one, two):
    for outcome in two:
        result, expected = outcome["resident"]["result"], one["resident"]["result"]
        assert result == pytest.approx(expected, rel=1e-5) and result["count"] == 37


@pytest.mark.slow
def test_a_scorer_gives_all_scores_to_all_processes(one, two):
    for outcome in two:
        np.testing.assert_allclose(outcome["scores"][0], one["scores"][0], rtol=1e-5, atol=1e-6)
        assert outcome["scores"][1] == one["scores"][1]


FAIL = f"""{JOIN}
import os, sys, jax, numpy as np
from resnet_jax.distributed import data_mesh
from resnet_jax.evaluation.metrics import Sums
from resnet_jax.evaluation.shares import add_shares
def fault(share):
    if jax.process_index() == 1:
        raise RuntimeError("lost 1 of 2 data workers")
    return Sums(1.0, 0.0, 0.0, float(len(share)))
def end(share):
    if jax.process_index() == 1:
        os._exit(9)
    return Sums.zero()
def twice(share):
    return Sums(1.0, 0.0, 0.0, 10.0)
for test in (twice, fault, end):
    try:
        add_shares(11, data_mesh(), test, unreadable="stop")
    except Exception as error:
        print(test.__name__, type(error).__name__, error, flush=True)
os._exit(0)
"""


def test_what_befalls_one_process_ends_the_others(tmp_path):
    ended = run_processes(FAIL, 2, tmp_path, seconds=120)
    assert [process.code for process in ended] == [0, 9], ended
    others, failed = (process.output for process in ended)
    for output in (others, failed):
        assert "twice RuntimeError evaluated 20 of 11 images; every one must count once" in output
    assert "fault RuntimeError lost 1 of 2 data workers" in failed
    told = "process 1 of 2 could not test its share of the images: RuntimeError('lost 1 of 2 data workers')"
    assert f"fault PeerLost {told}" in others
    assert "end PeerLost another process of the run is gone" in others


def test_shares_follow_on_one_another_and_are_equal_up_to_one():
    for processes in (1, 2, 3, 8):
        for count in (0, 1, 5, 8, 359, 50_000):
            ranges = [shares.share_of(count, place, processes) for place in range(processes)]
            assert [index for share in ranges for index in share] == list(range(count))
            assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_what_is_left_out_or_seen_twice_stops_the_test():
    mesh = data_mesh(jax.devices()[:2])

    def counted(count):
        return lambda share: Sums(1.0, 0.0, 0.0, float(count))

    assert shares.add_shares(5, mesh, counted(4), unreadable="skip")["count"] == 4
    for count, unreadable in ((4, "stop"), (6, "stop"), (6, "skip")):
        with pytest.raises(RuntimeError, match=f"evaluated {count} of 5 images; every one must count once"):
            shares.add_shares(5, mesh, counted(count), unreadable=unreadable)
