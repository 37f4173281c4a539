"""Steps of one call: as the config says, else many on an accelerator, on a CPU as many as pay and leave none over."""

import itertools

import pytest

from resnet_jax import load_config, summarize
from resnet_jax.config import resolve
from resnet_jax.training.steps_per_call import end_of_call, steps_per_call


def steps(backend, net="cifar_resnet20", *, size=32, **changes):
    values = {key.replace("__", "."): value for key, value in changes.items()}
    config = resolve(load_config("cifar10", values | {"model.name": net}), train_examples=50_000, device_count=1)
    multiply_adds = summarize(net, image_size=size, num_classes=10).multiply_adds
    return steps_per_call(config, multiply_adds=multiply_adds, backend=backend)


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_the_config_counts(backend):
    assert steps(backend, train__steps_per_dispatch=7) == 7


def test_an_accelerator_makes_many():
    assert steps("gpu") == steps("tpu", "cifar_resnet1202") == 50


@pytest.mark.parametrize(
    ("net", "size", "expected"),
    [
        # 31, 95 and 194 GFLOP a step of 128 images.
        ("cifar_resnet20", 32, 10),
        ("cifar_resnet56", 32, 2),
        ("cifar_resnet110", 32, 1),
        ("cifar_resnet1202", 32, 1),
        # 2 GFLOP, of images with a sixteenth of the pixels.
        ("cifar_resnet20", 8, 1),
    ],
)
def test_a_call_on_a_cpu_is_neither_long_nor_for_nothing(net, size, expected):
    assert steps("cpu", net, size=size) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train__log_every": 4}, 4),
        ({"train__log_every": 6, "evaluate__every": 15, "checkpoint__every": 30}, 3),
        ({"train__log_every": 7}, 7),
        ({"train__duration": 1007}, 1),
        ({"num_seeds": 2}, 5),
    ],
)
def test_nothing_is_left_over_on_a_cpu(changes, expected):
    options = {"schedule__name": "constant", "train__duration": 42_000}
    options |= {"evaluate__every": 2100, "checkpoint__every": 2100}
    assert steps("cpu", **options | changes) == expected


def calls(step, stop, per_call):
    """The ends of the calls that the loop makes."""
    while step < stop:
        step += per_call if step + per_call <= stop else 1
        yield step


@pytest.mark.parametrize("per_call", [1, 3, 4, 7])
def test_what_waits_for_the_end_of_a_call_changes_no_call(per_call):
    for step, stop, due in itertools.product(range(3), range(3, 18), range(1, 20)):
        if step < due:
            ends = list(calls(step, stop, per_call))
            end = end_of_call(step, due, stop=stop, per_call=per_call)
            assert end == next((end for end in ends if end >= due), stop)
            assert [*calls(step, end, per_call), *calls(end, stop, per_call)] == ends
