"""The benchmark beside Flax and PyTorch: that what it compares with is real, and what goes into its record."""

import itertools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiment_modules import experiment_modules

from resnet_jax.analysis.lowered_step import Data, lower_step
from resnet_jax.benchmark.windows import ratio
from resnet_jax.config import resolve
from resnet_jax.config_files import load_config
from resnet_jax.distributed import data_mesh

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "benchmarks" / "nets"
RECORD = FOLDER / "record.json"
# torchvision's documentation of its models.
PARAMETERS = {"resnet18": 11689512, "resnet34": 21797672, "resnet50": 25557032} | {
    "resnet101": 44549160,
    "resnet152": 60192808,
}


@pytest.fixture(scope="module")
def modules():
    """Imports the benchmark's modules by name."""
    with experiment_modules(FOLDER, FOLDER.parent) as imported:
        yield imported


def flax_state(modules, net, **options):
    trainer = modules("flax_trainer")
    options = {"image_size": 32, "dtype": "float32", "schedule": trainer.learning_rate(256)} | options
    return trainer.initial_state(net, **options)


@pytest.mark.parametrize("net", PARAMETERS)
def test_flax_s_nets_have_the_published_number_of_parameters(modules, net):
    params = jax.eval_shape(lambda: flax_state(modules, net).params)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == PARAMETERS[net]


@pytest.mark.slow
def test_the_flax_trainer_trains(modules):
    def schedule(step):
        return 0.02

    state = flax_state(modules, "resnet18", schedule=schedule, num_classes=4)
    images, labels = jax.random.normal(jax.random.key(1), (8, 32, 32, 3)), jnp.arange(8) % 4
    step, losses = modules("flax_trainer").make_train_step(schedule), []
    for _ in range(8):
        state, metrics = step(state, images, labels)
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(np.log(4), rel=0.5) and losses[-1] < losses[0] / 5
    assert float(metrics["accuracy"]) == 1 and int(state.step) == 8
    means = [leaf for path, leaf in jax.tree.leaves_with_path(state.batch_stats) if path[-1].key == "mean"]
    assert all(jnp.any(mean != 0) for mean in means)


def test_flax_s_rate_warms_up_and_falls_to_nothing(modules):
    rate, epoch = modules("flax_trainer").learning_rate(512), 1_281_167 // 512
    found = [float(rate(count * epoch)) for count in (0, 2.5, 5, 90)]
    assert found == pytest.approx([0, 0.1, 0.2, 0], abs=1e-6)


@pytest.mark.parametrize("net", ["resnet18", "resnet50"])
def test_flax_s_step_has_as_many_convolutions_as_this_library_s(modules, net):
    trainer, measurements = modules("flax_trainer"), modules("measurements")
    state = jax.eval_shape(lambda: flax_state(modules, net, image_size=64))
    images, labels = jax.ShapeDtypeStruct((4, 64, 64, 3), "float32"), jax.ShapeDtypeStruct((4,), "int32")
    theirs = trainer.make_train_step(trainer.learning_rate(4)).lower(state, images, labels)

    spec = measurements.specs(measurements.Setting("train", net, 4, 64, "float32"), [], "cpu")[measurements.OURS]
    config = resolve(load_config(spec["config"], spec["overrides"]), train_examples=1000, device_count=1)
    ours = lower_step(config, Data((64, 64, 3), 1000, 1000), data_mesh(jax.devices()[:1]), platform="cuda")
    counts = [lowered.as_text().count("stablehlo.convolution") for lowered in (ours, theirs)]
    # Each forward and twice backward, but for the images' gradient.
    layers = {"resnet18": 20, "resnet50": 53}[net]
    assert counts == [3 * layers - 1] * 2


@pytest.mark.parametrize(("net", "size"), [("resnet18", 32), ("cifar_resnet8", 32)])
def test_pytorch_s_steps_train_and_its_inference_leaves_the_net_as_it_is(modules, net, size):
    torch = pytest.importorskip("torch")
    if net == "resnet18":
        pytest.importorskip("torchvision")
    nets = modules("torch_nets")
    options = {"batch_size": 4, "image_size": size, "bf16": False, "mode": None, "device": "cpu"}
    job = nets.Job(net, as_bytes=True, **options)
    assert job.images.dtype == torch.uint8 and job.images.float().std() > 50
    step = nets.make_train_step(job)
    losses = [float(step()) for _ in range(8)]
    assert losses[-1] < losses[0] / 2
    job = nets.Job(net, as_bytes=False, **options)
    before = {name: value.clone() for name, value in job.net.state_dict().items()}
    logits = nets.make_inference(job)()
    assert logits.shape == (4, 1000 if net == "resnet18" else 10) and logits.is_inference()
    assert all(torch.equal(value, before[name]) for name, value in job.net.state_dict().items())
    assert job.images.is_contiguous(memory_format=torch.channels_last)


def test_pytorch_s_bytes_become_the_floats_that_its_nets_expect(modules):
    torch = pytest.importorskip("torch")
    net = modules("torch_nets").Normalized(torch.nn.Identity())
    pixels = torch.tensor([[[[0, 255, 51]]]], dtype=torch.uint8)
    expected = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    assert net(pixels).flatten().tolist() == pytest.approx(expected, rel=1e-5)


def setting(modules, *, what="train", net="resnet50", batch_size=16, image_size=224, dtype="float32"):
    return modules("measurements").Setting(what, net, batch_size, image_size, dtype)


def test_all_subjects_of_a_row_have_the_same_work(modules):
    measurements = modules("measurements")
    found = measurements.specs(setting(modules, dtype="bfloat16"), ["eager", "CUDA graphs"], "gpu")
    assert list(found) == ["resnet_jax", "Flax trainer", "PyTorch, eager", "PyTorch, CUDA graphs"]
    ours, *theirs = found.values()
    config = load_config(ours["config"], ours["overrides"])
    assert (config.model.name, config.model.stride_in, config.model.bn_group_size) == ("resnet50", "3x3", None)
    assert (config.train.batch_size, config.data.image_size, config.model.dtype) == (16, 224, "bfloat16")
    assert {(spec["net"], spec["batch_size"], spec["image_size"]) for spec in theirs} == {("resnet50", 16, 224)}
    assert found["Flax trainer"]["dtype"] == "bfloat16"
    assert [(spec["bf16"], spec["mode"]) for spec in theirs[1:]] == [(True, None), (True, "reduce-overhead")]
    cifar = measurements.specs(setting(modules, what="inference", net="cifar_resnet20"), ["eager"], "cpu")
    assert list(cifar) == ["resnet_jax", "PyTorch, eager"] and cifar["PyTorch, eager"]["kind"] == "pytorch_inference"
    assert cifar["resnet_jax"]["overrides"]["evaluate.batch_size"] == 16
    compiled = measurements.specs(setting(modules, what="compile"), ["eager"], "cpu")
    assert [spec["kind"] for spec in compiled.values()] == ["compilation", "compilation", "flax_compilation"]
    assert [spec.get("overrides", {}).get("model.scan") for spec in compiled.values()] == [None, True, None]


@pytest.mark.parametrize(
    ("platform", "dtype", "net", "name", "most"),
    [
        ("cpu", "float32", "resnet18", "PyTorch, eager", 1.5),
        ("cpu", "float32", "resnet18", "PyTorch, torch.compile", None),
        ("cpu", "float32", "resnet18", "Flax trainer", None),
        ("cpu", "bfloat16", "resnet18", "PyTorch, eager", None),
        ("gpu", "bfloat16", "resnet50", "PyTorch, torch.compile", 0.87),
        ("gpu", "bfloat16", "resnet50", "PyTorch, CUDA graphs", 1.0),
        ("gpu", "bfloat16", "resnet101", "PyTorch, torch.compile", 1.0),
        ("gpu", "float32", "resnet50", "PyTorch, torch.compile", 1.0),
        ("gpu", "bfloat16", "resnet50", "Flax trainer", 1.0),
    ],
)
def test_wanted_ratios(modules, platform, dtype, net, name, most):
    wanted = modules("measurements").wanted
    assert wanted(setting(modules, net=net, dtype=dtype), name, platform) == most
    assert wanted(setting(modules, net=net, dtype=dtype, what="inference"), name, platform) is None


def test_a_batch_is_halved_for_all_until_memory_suffices(modules, monkeypatch):
    measurements, worker = modules("measurements"), modules("worker")
    asked = []

    def compare(script, subjects, pairs, *, rounds, seconds, until):
        sizes = {spec.get("batch_size") or spec["overrides"]["train.batch_size"] for spec in subjects.values()}
        asked.append(sizes)
        if max(sizes) > 64:
            raise worker.OutOfMemory("no memory")
        return {"rates": {"resnet_jax": {"windows": [{}] * rounds}}, "notes": ["other"]}

    monkeypatch.setattr(measurements, "compare", compare)
    bench = measurements.Bench(measurements.SIZES["small"], ["eager"], "gpu")
    found = bench.timed(setting(modules, batch_size=256), until=1.0, whole=True)
    assert asked == [{256}, {128}, {64}]
    assert found["notes"] == ["other", *(f"for {size} images memory did not suffice" for size in (128, 256))]


def test_a_device_without_memory_is_told_from_other_failures(modules, tmp_path):
    worker, script = modules("worker"), tmp_path / "subject.py"
    for text, error in (("RESOURCE_EXHAUSTED: Out", worker.OutOfMemory), ("KeyError: 1", worker.WorkerFailed)):
        script.write_text(f"raise SystemExit({text!r})")
        with pytest.raises(worker.WorkerFailed, match=text) as caught:
            worker.Worker(script, {"kind": "train"}, {})
        assert caught.type is error
    script.write_text("raise SystemExit('torch.OutOfMemoryError')")
    # PyTorch may be missing, but the batch is halved for it as for the others.
    with pytest.raises(worker.OutOfMemory), worker.working(script, {"theirs": {"kind": "pytorch_train"}}):
        pass


class FakeWorker:
    """Its batches and its compilations take so many seconds of a clock that is turned by it."""

    def __init__(self, seconds, clock):
        self.seconds, self.clock = seconds, clock
        self.said = {"batches_per_call": 1, "trace_seconds": 1.0, "compile_seconds": seconds}

    def batches_in(self, seconds):
        return 1

    def measure(self, batches):
        self.clock["now"] += self.seconds
        return {"images": batches, "seconds": self.seconds}

    def close(self):
        self.clock["now"] += self.seconds


@pytest.fixture
def clock(modules, monkeypatch):
    found = {"now": 0.0}
    monkeypatch.setattr("time.monotonic", lambda: found["now"])
    return found


def test_no_round_begins_that_would_not_end_in_time(modules, clock):
    workers = {name: FakeWorker(seconds, clock) for name, seconds in (("a", 1.0), ("b", 2.0))}
    for until, rounds in ((100.0, 5), (9.0, 3), (8.9, 2), (0.0, 1)):
        clock["now"] = 0.0
        found = modules("worker").in_turns(workers, rounds=5, seconds=1.0, until=until)
        assert [len(windows) for windows in found.values()] == [rounds, rounds]


def test_rows_are_begun_as_long_as_there_is_time_and_only_the_first_may_be_cut_short(modules, clock, capsys):
    seen = []

    def takes(seconds):
        def measure(*, until, whole):
            clock["now"] += seconds
            seen.append((until, whole))

        return measure

    rows = [(name, takes(seconds)) for name, seconds in (("a", 2.0), ("b", 5.0), ("c", 1.0), ("d", 1.0))]
    begun = []
    for name, measure in modules("rows").in_time(rows, deadline=12.5):
        begun.append(name)
        measure()
    # After 8 seconds another 5 are too many.
    assert begun == ["a", "b", "c"] and seen == [(12.5, False), (12.5, True), (12.5, True)]
    assert "there is no time for d" in capsys.readouterr().out
    late = modules("rows").in_time(rows, deadline=0.0)
    assert [name for name, measure in late] == ["a"]


@pytest.mark.parametrize("what", ["train", "compile"])
def test_a_row_cut_short_is_kept_only_if_it_may_be(modules, monkeypatch, clock, what):
    measurements, worker = modules("measurements"), modules("worker")
    seconds = itertools.cycle([4.0, 8.0])
    monkeypatch.setattr(measurements, "Worker", lambda *args: FakeWorker(next(seconds), clock))
    short = {"rates": {"resnet_jax": {"windows": [{}]}}, "notes": []}
    monkeypatch.setattr(measurements, "compare", lambda *args, **options: short)
    bench = measurements.Bench(measurements.Size(rounds=2, seconds=1.0, compilations=2), ["eager"], "cpu")
    ((_, measure),) = bench.rows([setting(modules, what=what)])
    assert measure(until=1.0, whole=False)["notes"] == []
    with pytest.raises(worker.WorkerFailed, match="there was time for 1 of 2 rounds"):
        measure(until=1.0, whole=True)


def test_compilations_are_compared_in_new_processes_in_turns(modules, monkeypatch, clock):
    measurements, begun = modules("measurements"), []

    def start(script, spec, variables):
        begun.append("scanned" if spec.get("overrides", {}).get("model.scan") else spec["kind"])
        return FakeWorker({"compilation": 4.0, "scanned": 2.0}.get(begun[-1], 9.0), clock)

    monkeypatch.setattr(measurements, "Worker", start)
    bench = measurements.Bench(measurements.Size(rounds=1, seconds=1.0, compilations=2), ["eager"], "cpu")
    found = bench.compiled(setting(modules, what="compile"), until=1e9, whole=True)
    there = ["compilation", "scanned", "flax_compilation"]
    assert begun == [*there, *reversed(there)]
    alone, both, *of_scanned = found["ratios"]
    assert (alone["median"], both["median"]) == (pytest.approx(4 / 9), pytest.approx(5 / 10))
    assert [ratio["median"] for ratio in of_scanned] == [pytest.approx(2 / 9), pytest.approx(3 / 10)]
    assert {ratio["above"] for ratio in of_scanned} == {"resnet_jax, scanned"}
    assert alone["of"] == ["compile_seconds"] and alone["wanted"] == both["wanted"] == 0.5
    assert [one["compile_seconds"] for one in found["compilations"]["Flax trainer"]] == [9.0, 9.0]


def test_flags_choose_rows_and_misspelt_ones_are_refused(modules, capsys):
    compare = modules("compare")
    flags = compare.parse_flags(["--output=x", "--nets=resnet18,resnet50,cifar_resnet20"])
    rows = [one.row for one in compare.settings_of(flags, "cpu")]
    assert rows[:3] == [
        "train resnet18, 32 of 224 pixels, float32",
        "train resnet50, 16 of 224 pixels, float32",
        "train cifar_resnet20, 128 of 32 pixels, float32",
    ]
    assert rows[3:] == [row.replace("train", "inference") for row in rows[:3]] + [
        "compile resnet152, 16 of 224 pixels, float32"
    ]
    flags = compare.parse_flags(["--output=x", "--nets=resnet18,resnet50", "--batch_sizes=64,8", "--what=train"])
    rows = [one.row for one in compare.settings_of(flags, "gpu")]
    assert rows == [f"train {net} of 224 pixels, bfloat16" for net in ("resnet18, 64", "resnet50, 8")]
    for flag, message in (
        ("--what=training", "no training; there are train"),
        ("--modes=jit", "no jit; there are eager"),
        ("--compiled=vgg", "no vgg; there are resnet18"),
        ("--batch_sizes=1", "give one for each of --nets=resnet18,resnet50"),
    ):
        with pytest.raises(SystemExit):
            compare.parse_flags(["--output=x", flag])
        assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def measured(modules, tmp_path_factory):
    """The record of two calls of the command, the second of which has a row to add, and what they printed of rows."""
    folder = tmp_path_factory.mktemp("nets")
    output, readme, compare = folder / "record.json", folder / "README.md", modules("compare")
    readme.write_text("<!-- tables: made by compare.py -->\n<!-- end of tables -->\n")
    same = ["--nets=resnet18", "--batch_sizes=2", "--image_size=32", "--modes=eager", f"--output={output}"]
    records, begun = [], []
    with pytest.MonkeyPatch.context() as patch:
        # One device, as outside of the tests.
        patch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
        patch.setattr(modules("rows"), "print", lambda text, **options: begun.append(text), raising=False)
        for own in (["--what=train"], ["--what=train,inference", f"--readme={readme}"]):
            assert compare.main([*same, *own]) == 0
            records.append(json.loads(output.read_text()))
    return records, begun, readme.read_text()


@pytest.mark.slow
def test_the_command_runs_both_libraries_and_skips_what_is_there(modules, measured):
    (first, second), begun, readme = measured
    rows = [f"{what} resnet18, 2 of 32 pixels, float32" for what in ("inference", "train")]
    assert begun == [f"{name} ..." for name in reversed(rows)]
    assert [row["row"] for row in first["rows"]] == rows[1:] and [row["row"] for row in second["rows"]] == rows
    assert second["rows"][1] == first["rows"][0]
    inference, train = second["rows"]
    names = ["resnet_jax", "Flax trainer", "PyTorch, eager"]
    with_torch = not train["notes"]
    assert list(train["rates"]) == names[: 3 if with_torch else 2]
    assert list(inference["rates"]) == (["resnet_jax", names[-1]] if with_torch else ["resnet_jax"])
    for row in second["rows"]:
        for found in row["ratios"]:
            windows = [row["rates"][found[side]]["windows"] for side in ("above", "below")]
            assert [len(each) for each in windows] == [2, 2]
            assert ratio(*windows).items() <= found.items() and found["above"] == "resnet_jax"
    table = modules("compare").table(second)
    assert table in readme and "Flax trainer: optimizer optax.sgd, Nesterov" in table
    assert re.search(r"\| train resnet18, 2 of 32 pixels, float32 \| resnet_jax \| .* \| Flax trainer \| ", table)


def test_the_table_of_compilations_has_the_record_s_numbers(modules):
    said = {"resnet_jax": [1.0, 2.0, 6.0], "Flax trainer": [10.0, 10.0, 10.0]}
    compilations = {
        name: [{"trace_seconds": 1, "compile_seconds": one} for one in found] for name, found in said.items()
    }
    ends = {"above": "resnet_jax", "below": "Flax trainer", "interval": None, "pairs": 3, "wanted": 0.5}
    entry = {"row": "compile resnet152", "compilations": compilations}
    entry["ratios"] = [ends | {"median": 0.2}, ends | {"median": 0.25}]
    text = modules("compare")._compilations([entry])
    assert "| compile resnet152 | resnet_jax | 1.0 (1.0 to 1.0) | 2.0 (1.0 to 6.0) | 0.200 (" in text
    assert "| 0.250 (too few pairs for an interval) | 3 | at most 0.5: met |" in text
    assert "| Flax trainer | 1.0 (1.0 to 1.0) | 10.0 (10.0 to 10.0) |  |  | 3 |  |" in text


def test_the_readme_holds_the_record_s_tables(modules):
    if not RECORD.is_file():
        pytest.skip("no record yet: experiments/benchmarks/nets/README.md says how it is made")
    record = json.loads(RECORD.read_text())
    assert record["commit"] is not None and not record["commit"]["dirty"] and record["config"]["scale"] == "full"
    assert modules("compare").table(record) in (FOLDER / "README.md").read_text()
    for entry in record["rows"]:
        for found in entry["ratios"] if "rates" in entry else []:
            again = ratio(*(entry["rates"][found[side]]["windows"] for side in ("above", "below")))
            assert again.items() <= found.items()
