"""Plans of large runs: what compiled steps exchange on 2, 4 and 8 devices, and the formulas that scale it, by hand."""

import argparse
import json
import re

import jax
import pytest

from resnet_jax import config as configs
from resnet_jax.analysis import plan as plans
from resnet_jax.analysis.collectives import Collective, collectives_of, narrowed
from resnet_jax.analysis.compiled_step import CompiledStep, devices_of_a_group, examine_here, small_config
from resnet_jax.analysis.devices import DEVICES, Device, Networks, device_named
from resnet_jax.analysis.lowered_step import Data, abstract_state, lower_step
from resnet_jax.analysis.plan_lines import checkpoint_shares
from resnet_jax.commands import benchmark
from resnet_jax.config_files import load_config
from resnet_jax.distributed import data_mesh
from resnet_jax.training.state import Progress

# cifar_resnet8: batch norms of 16, 2 x 16, 2 x 32 and 2 x 64 channels; a classifier of 64 x 10.
CHANNELS, PARAMETERS = 240, 75_290
KERNELS = PARAMETERS - 2 * CHANNELS - 650
CIFAR = Data((32, 32, 3), 10, 50_000)
# Loss, two kinds of error and the batch's weights or count.
SUMS = 4


def resolved(devices, overrides, config="cifar10", examples=50_000):
    values = {"model.name": "cifar_resnet8", "train.batch_size": 4096, **overrides}
    return configs.resolve(load_config(config, values), train_examples=examples, device_count=devices)


def compiled(devices, group_devices, overrides, data=CIFAR, **config):
    """The step on so many of this process's devices; the config is that of a larger run."""
    small = small_config(resolved(64, overrides, **config), devices=devices, group_devices=group_devices)
    return examine_here(small, data, devices, group_devices)


def numbers_by(step, *names):
    """Numbers exchanged, summed by the named attributes of the collectives."""
    sums = {}
    for collective in step.collectives:
        key = tuple(getattr(collective, name) for name in names)
        sums[key] = sums.get(key, 0) + collective.size * collective.times
    return sums


def calls(step):
    """How many devices take part in each operation, which exchanges several arrays."""
    return sorted(devices for devices, _ in {(collective.devices, collective.call) for collective in step.collectives})


@pytest.mark.parametrize("group", [64, None])
def test_a_device_alone_exchanges_nothing(group):
    assert compiled(1, 1, {"model.bn_group_size": group}).collectives == ()


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_own_groups_reduce_gradients_and_running_statistics_on_any_number_of_devices(devices):
    step = compiled(devices, 1, {"model.bn_group_size": 64})
    assert (step.parameters, step.devices) == (PARAMETERS, devices)
    assert numbers_by(step, "kind", "devices", "itemsize") == {
        ("all-reduce", devices, 4): PARAMETERS + 2 * CHANNELS + SUMS
    }
    assert calls(step) == [devices]
    # A ring of n: n - 1 times a piece to add up and n - 1 times a sum, of one n-th each.
    ring = Networks((devices, 1, 1), (1e9, 1e8, 1e8), (0.0, 0.0, 0.0))
    pieces = [PARAMETERS * 4 / devices] * (devices - 1) * 2
    assert ring.sent_bytes(PARAMETERS * 4, devices) == pytest.approx(sum(pieces))


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_a_global_group_reduces_what_each_layer_needs_on_the_way_there_and_back(devices):
    step = compiled(devices, devices, {"model.bn_group_size": None})
    # Mean and square going forward; going back the gradients of scale and bias alone.
    expected = {("all-reduce", devices, 4): PARAMETERS + 2 * CHANNELS + SUMS}
    assert numbers_by(step, "kind", "devices", "itemsize") == expected
    # Seven layers, both ways, each of which waits for the one before; the rest comes together.
    assert calls(step) == [devices] * (2 * 7 + 1)


@pytest.mark.parametrize("devices", [4, 8])
def test_shared_groups_reduce_inside_and_then_among_all(devices):
    step = compiled(devices, 2, {"model.bn_group_size": 128})
    sums, inside = numbers_by(step, "kind", "devices"), ("all-reduce", 2)
    # Running statistics, and gradients of scale and bias, go between groups: of four devices, in twos as well.
    across = 4 * CHANNELS if devices == 4 else 0
    # Forward mean and square; back, as many, of which scale's and bias's gradients are sums.
    assert sums[inside] == 4 * CHANNELS + across
    assert sum(sums.values()) - sums[inside] == PARAMETERS + 2 * CHANNELS + SUMS - across
    assert set(sums) <= {inside, ("all-reduce", 4), ("all-reduce", 8)}
    # Each of seven layers both ways, and two for all the rest.
    assert calls(step) == [2] * (2 * 7) + sorted([devices // 2, devices])


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_a_device_holds_the_whole_state_and_its_share_of_the_batch(devices):
    batch = 64
    overrides = {"data.pipeline": "streamed", "train.batch_size": batch, "model.bn_group_size": 8}
    config, mesh = resolved(64, overrides), data_mesh(jax.devices()[:devices])
    plan = lower_step(config, CIFAR, mesh, platform="tpu").compile().memory_analysis()
    # Of the progress, the last learning rate is written and never read.
    read = abstract_state(config, CIFAR), Progress.zero().replace(learning_rate=None)
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(read))
    # Pixels, label and weight.
    assert plan.argument_size_in_bytes == kept + batch // devices * (32 * 32 * 3 + 4 + 4)
    # Activations and their gradients, beside what does not depend on the batch.
    assert plan.temp_size_in_bytes < 1.1e6 * (batch / devices) + 4 * kept


def test_neither_the_batch_nor_the_number_of_groups_changes_what_is_reduced():
    config = small_config(resolved(64, {"model.bn_group_size": 64}), devices=2, group_devices=1)
    config.train.batch_size *= 4
    assert config.model.bn_group_size == 2
    step = examine_here(config, CIFAR, 2, 1)
    assert numbers_by(step, "devices", "itemsize") == {(2, 4): PARAMETERS + 2 * CHANNELS + SUMS}


def test_parts_of_a_batch_send_their_gradients_each_in_bfloat16_where_that_is_computed_in():
    overrides = {"model.bn_group_size": 8, "model.dtype": "bfloat16", "train.accumulation_steps": 3}
    step = compiled(2, 1, overrides | {"train.batch_size": 64 * 24})
    # In float32 scales, biases, classifier and running statistics; one sum more than in a whole batch.
    others = PARAMETERS - KERNELS + 2 * CHANNELS + SUMS + 1
    assert numbers_by(step, "itemsize", "times") == {(2, 3): 3 * KERNELS, (4, 3): 3 * others}


def test_mixing_sends_one_image_to_the_next_device():
    overrides = {"model.stride_in": None, "model.bn_group_size": 32, "data.image_size": 16, "evaluate.image_size": 16}
    data = Data((16, 16, 3), 1000, 1_281_167)
    config = {"config": "imagenet:modern_short,resnet18", "examples": data.examples}
    step = compiled(2, 1, overrides, data, **config)
    moved = [c.size * c.itemsize for c in step.collectives if c.kind == "collective-permute"]
    assert sorted(moved) == [4, 4, 16 * 16 * 3 * 4]


PROGRAM = """HloModule jit_call

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%inner (p: f32[]) -> f32[] {
  %all-reduce.9 = bf16[3,3,4]{2,1,0} all-reduce(%x), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
}

%body (p: f32[]) -> f32[] {
  %w = f32[] while(%q), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"5"}}
}

%c (p: f32[]) -> pred[] {
  ROOT %less = pred[] compare(%p, %p)
}

ENTRY %main (p: f32[]) -> f32[] {
  %all-reduce.1 = (f32[10]{0}, /*index=1*/s32[]) all-reduce(%a, %b), replica_groups=[2,4]<=[8], to_apply=%add
  %mesh = f32[2,3]{1,0} all-reduce(%c), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add
  %placed = f32[11]{0} all-gather(%d), replica_groups=mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}
  %whole = pred[7]{0} all-gather(%d), replica_groups={}, dimensions={0}
  %next = f32[5]{0} collective-permute(%d), source_target_pairs={{0,1},{1,0}}
  ROOT %w = f32[] while(%q), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""


def test_collectives_are_read_from_a_program_in_all_its_forms():
    assert collectives_of(PROGRAM, 8) == [
        Collective("all-reduce", 2, 36, 2, 15, 0),
        Collective("all-reduce", 4, 10, 4, 1, 1),
        Collective("all-reduce", 4, 1, 4, 1, 1),
        Collective("all-reduce", 4, 6, 4, 1, 2),
        Collective("all-gather", 4, 11, 4, 1, 3),
        Collective("all-gather", 8, 7, 1, 1, 4),
        Collective("collective-permute", 8, 5, 4, 1, 5),
    ]


def test_groups_in_a_form_that_is_not_known_are_not_taken_for_all_devices():
    with pytest.raises(RuntimeError, match="in a form that is not known"):
        collectives_of(PROGRAM.replace("replica_groups=[2,4]<=[8]", "replica_groups=<new>"), 8)


def test_a_loop_of_unknown_length_is_not_counted_as_one_trip():
    with pytest.raises(RuntimeError, match="unknown number of trips, inner"):
        collectives_of(PROGRAM.replace('"known_trip_count":{"n":"5"}', ""), 8)


def test_bfloat16_that_was_widened_is_found_again():
    wide = [Collective("all-reduce", 8, size, 4, 1, 0) for size in (36, 10, 36, 7)]
    # PROGRAM has one bfloat16 array, of 36.
    assert [c.itemsize for c in narrowed(wide, PROGRAM)] == [2, 4, 4, 4]
    with pytest.raises(RuntimeError, match=r"\{36: 1\}"):
        list(narrowed(wide[1:2], PROGRAM))


# 8 devices of a host at 400 bytes a second, 4 hosts of a slice at 50, 2 slices at 5.
GPUS = Networks((8, 4, 2), (400.0, 50.0, 5.0), (1.0, 10.0, 100.0))


@pytest.mark.parametrize(
    ("networks", "devices", "rings", "seconds", "latency"),
    [
        (GPUS, 1, [], 0, 0),
        (GPUS, 2, [(2, 400)], 800 / 400, 1),
        (GPUS, 8, [(8, 400)], 1400 / 400, 1),
        (GPUS, 32, [(8, 400), (4, 50)], 1400 / 400 + 150 / 50, 10),
        (GPUS, 64, [(8, 400), (4, 50), (2, 5)], 1400 / 400 + 150 / 50 + 25 / 5, 100),
        # One network inside a slice, whatever the host; 31/32 of 1,600 bytes, and 25 are left a device.
        (Networks((8, 4, 2), (100.0, 100.0, 5.0), (1.0, 10.0, 100.0)), 64, [(32, 100), (2, 5)], 15.5 + 25 / 5, 100),
        (Networks((1, 16, 1), (400.0, 50.0, 5.0), (1.0, 10.0, 100.0)), 16, [(16, 50)], 1500 / 50, 10),
    ],
)
def test_rings_inside_rings(networks, devices, rings, seconds, latency):
    assert networks.rings(devices) == rings
    assert networks.all_reduce_seconds(800, devices) == pytest.approx(seconds)
    assert networks.latency(devices) == latency


def test_a_checkpoint_is_shared_as_far_as_its_axes_divide():
    # Of 8 devices on 4 hosts: 16 x 4 bytes and 3 x 8 x 4 divide, 12 x 2 and a scalar do not.
    state = [((16,), 4), ((3, 8), 4), ((12,), 2), ((), 4)]
    assert checkpoint_shares(state, hosts=4, devices=8) == ((64 + 96) / 4 + 24 + 4, (64 + 96) / 4)


@pytest.fixture
def stand_in(monkeypatch):
    """In place of a compiled step: 1,000 parameters, 600 of them in bfloat16 kernels, 50 numbers of statistics."""
    step = CompiledStep(
        devices=4,
        group_devices=1,
        collectives=(Collective("all-reduce", 4, 600, 2, 1, 0), Collective("all-reduce", 4, 450, 4, 1, 1)),
        parameters=1000,
        state=(((1000,), 4), ((512,), 4)),
        multiply_adds=10_000_000,
    )
    monkeypatch.setattr(plans, "examine", lambda config, data, devices: step)
    return step


DEVICE = Device(8, 10, 1e12, 0.5, (1e6, 1e5, 1e4), (1e-4, 1e-3, 1e-2))


def imagenet(tmp_path, **overrides):
    values = {"data.data_dir": str(tmp_path), "train.batch_size": 512, "model.dtype": "bfloat16"}
    named = {key.replace("__", "."): value for key, value in overrides.items()}
    return load_config("imagenet:goyal90,resnet50", values | named)


def test_the_numbers_of_a_plan_by_hand(stand_in, tmp_path):
    """16 devices, 2 hosts, 32 images a device: groups of 32 are a device's own."""
    made = plans.plan(imagenet(tmp_path), DEVICE, hosts=2, overlap=0.5, images_per_core=100)
    n = made.numbers()
    assert (n["gradient_bytes"], n["statistics_bytes"], n["all_reduces"]) == (600 * 2 + 400 * 4, 200, 2)
    # 14/8 of 3,000 bytes, and 2/2 of the eighth that is left.
    assert n["sent_bytes"] == pytest.approx(5250 + 375)
    assert n["compute_seconds"] == pytest.approx(2 * 10_000_000 * 3 * 32 / 0.5e12)
    assert n["gradient_seconds"] == pytest.approx(2800 * 1.75 / 1e6 + 350 / 1e5)
    assert n["statistics_seconds"] == pytest.approx(200 * 1.75 / 1e6 + 25 / 1e5)
    assert n["latency_seconds"] == pytest.approx(2 * 1e-3)
    # Half of the gradients would be 4.2 ms; the backward pass takes 2.56.
    assert n["hidden_seconds"] == pytest.approx(-n["compute_seconds"] * 2 / 3)
    parts = ("compute_seconds", "gradient_seconds", "statistics_seconds", "latency_seconds", "hidden_seconds")
    assert n["device_seconds"] == pytest.approx(sum(n[part] for part in parts))
    assert n["input_seconds"] == pytest.approx(256 / (10 * 100)) and n["step_seconds"] == n["input_seconds"]
    assert n["images_per_second"] == pytest.approx(2000)
    assert n["steps"] == round(90 * 1_281_167 / 512) and n["training_seconds"] == n["steps"] * n["step_seconds"]
    assert n["host_step_bytes"] == 256 * (224 * 224 * 3 + 8)
    assert n["read_per_second"] == pytest.approx(2000 * 147_897_477_120 / 1_281_167)
    assert (n["checkpoint_bytes"], n["other_host_bytes"], n["first_host_bytes"]) == (6048, 1024, 1024 + 4000)


def test_float32_takes_twice_the_time_and_remat_a_third_more(stand_in, tmp_path):
    seconds = [
        plans.plan(imagenet(tmp_path, **overrides), DEVICE, hosts=2).numbers()["compute_seconds"]
        for overrides in ({}, {"model__dtype": "float32"}, {"model__remat": True})
    ]
    assert [value / seconds[0] for value in seconds] == pytest.approx([1, 2, 4 / 3])


def test_every_line_says_where_it_is_from_in_the_table_and_in_json(stand_in, tmp_path):
    made = plans.plan(imagenet(tmp_path), DEVICE, hosts=4, slices=2)
    found = json.loads(json.dumps(made.to_json()))
    table = str(made)
    assert "32 devices: 4 hosts of 8 in 2 slices; batch 512, 16 a device" in table
    assert "8 at 0.001 GB/s, then 2 at 0.0001 GB/s, then 2 at 1e-05 GB/s" in found["sent_bytes"]["source"]
    for key, value in made.numbers().items():
        assert found[key]["value"] == value and found[key]["source"] and found[key]["source"] in table


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        ({}, {"hosts": 0}, "hosts=0: must be at least 1"),
        ({}, {"hosts": 2, "devices_per_host": 0}, "devices_per_host=0: must be at least 1"),
        ({}, {"hosts": 3, "slices": 2}, "slices=2: must divide hosts=3"),
        ({}, {"hosts": 2, "overlap": 1.5}, "overlap=1.5: must be from 0"),
        ({}, {"hosts": 2, "images_per_core": 0.0}, "images_per_core=0.0: must be above 0"),
        ({}, {"hosts": 3}, "train.batch_size=512: not divisible by devices=24"),
        ({"model__bn_group_size": 24, "train__batch_size": 768}, {"hosts": 2, "devices_per_host": 16}, ""),
        (
            {"model__bn_group_size": 32, "train__batch_size": 768},
            {"hosts": 2},
            "neither a divisor nor a multiple of the 48",
        ),
        ({"model__num_classes": 10, "data__train_split": "train[:50%]"}, {"hosts": 2}, "no data set 'imagenet2012'"),
    ],
)
def test_what_cannot_be_planned_says_why(stand_in, tmp_path, overrides, options, message):
    if not message:
        assert plans.plan(imagenet(tmp_path, **overrides), DEVICE, **options).numbers()["group_devices"] == 1
        return
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        plans.plan(imagenet(tmp_path, **overrides), DEVICE, **options)


def test_a_step_with_other_collectives_has_no_formula(stand_in, tmp_path, monkeypatch):
    step = stand_in._replace(collectives=(Collective("all-to-all", 4, 10, 4, 1, 0),))
    monkeypatch.setattr(plans, "examine", lambda config, data, devices: step)
    with pytest.raises(ValueError, match="the step has all-to-all"):
        plans.plan(imagenet(tmp_path), DEVICE, hosts=2)


@pytest.mark.parametrize(
    ("overrides", "devices", "expected"),
    [
        ({"model.bn_group_size": 64}, 64, 1),
        ({"model.bn_group_size": 128}, 64, 2),
        ({"model.bn_group_size": 4096}, 64, 64),
        ({"model.bn_group_size": None}, 64, 64),
        ({"model.bn_group_size": None, "model.norm": "frozen"}, 64, 1),
        ({"model.bn_group_size": 32, "train.accumulation_steps": 2}, 64, 1),
    ],
)
def test_how_many_devices_share_a_group(overrides, devices, expected):
    assert devices_of_a_group(resolved(devices, overrides), devices) == expected


def test_a_device_is_named_or_its_numbers_are_ones_own():
    own = device_named("h200", peak=1e12, bandwidths=None, latencies=(0.0, 0.0, 0.0))
    assert (own.peak, own.bandwidths, own.latencies) == (1e12, DEVICES["h200"].bandwidths, (0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match=r"unknown device 'h20'; did you mean"):
        device_named("h20")
    with pytest.raises(ValueError, match=r"bandwidths=\(1.0, 0.0, 1.0\): must be above 0"):
        device_named("h200", bandwidths=(1.0, 0.0, 1.0))


def flags_of(*words):
    parser = argparse.ArgumentParser()
    benchmark.add_flags(parser)
    flags = parser.parse_args(words)
    flags.overrides = {"train.batch_size": "512", "model.dtype": "bfloat16"}
    return flags


def test_the_command_takes_flags_in_readable_units(stand_in, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    words = ["--plan", "--config=imagenet:goyal90,resnet50", "--hosts=2", "--device=h100", "--json"]
    own = ["--bandwidths=0.001,0.0001,1", "--latencies=100,1000,10000", "--peak=1", "--peak_fraction=0.5"]
    benchmark.run(flags_of(*words, *own, "--cores_per_host=10", "--images_per_core=100"))
    found = json.loads(capsys.readouterr().out)
    assert found["gradient_seconds"]["value"] == pytest.approx(2800 * 1.75 / 1e6 + 350 / 1e5)
    assert found["latency_seconds"]["value"] == pytest.approx(2e-3)
    assert found["input_seconds"]["value"] == pytest.approx(0.256)
    assert found["compute_seconds"]["value"] == pytest.approx(3.84e-3)
    benchmark.run(flags_of(*words[:3]))
    assert capsys.readouterr().out.startswith("resnet50 in bfloat16 on 16 devices")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=imagenet", "--hosts=2"], "benchmark needs either a KIND"),
        (["train", "--plan", "--config=imagenet", "--hosts=2"], "benchmark needs either a KIND"),
        (["--plan", "--hosts=2"], "the flag --config is needed"),
        (["--plan", "--config=imagenet"], "the flag --hosts is needed"),
        (["--plan", "--config=imagenet", "--hosts=2", "--device=h20"], "did you mean"),
    ],
)
def test_the_command_says_what_is_missing(words, message):
    with pytest.raises(ValueError, match=message):
        benchmark.run(flags_of(*words))


def test_a_plan_from_the_real_step_in_a_process_of_its_own(tmp_path):
    """ResNet-18 in pairs of devices: groups of 32 on 16 images each; every gradient is 4 bytes a parameter."""
    overrides = {"data.data_dir": str(tmp_path), "train.batch_size": 8192, "data.image_size": 64}
    config = load_config("imagenet:goyal90,resnet18", overrides)
    n = plans.plan(config, device_named("h200"), hosts=64).numbers()
    assert (n["parameters"], n["gradient_bytes"]) == (11_689_512, 4 * 11_689_512)
    assert n["group_devices"] == 2
    # 4,800 channels: see the small net above.
    assert n["group_bytes"] == 4 * 4800 * 4
    assert n["statistics_bytes"] == pytest.approx(2 * 4800 * 4, abs=40)
    # 20 layers, three of them shortcuts beside another.
    assert n["group_all_reduces"] >= 2 * 17
    # And three counters: steps, unreadable images, updates left out.
    assert n["checkpoint_bytes"] == 2 * n["gradient_bytes"] + 2 * 4800 * 4 + 12
