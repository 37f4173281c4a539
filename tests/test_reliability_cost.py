"""What the guards against faults cost: the arithmetic, the published record, and parts measured at a small scale."""

import json
from pathlib import Path

import jax
import pytest
from experiment_modules import experiment_modules

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "reliability"
RECORD = FOLDER / "records" / "cost.json"


@pytest.fixture(scope="module")
def modules():
    """Imports the experiment's modules by name."""
    with experiment_modules(FOLDER) as imported:
        yield imported


@pytest.fixture
def record():
    if not RECORD.exists():
        pytest.skip(f"no record yet: {FOLDER.name}/README.md says how it is made, in some minutes")
    return json.loads(RECORD.read_text())


def a_few_parts(modules):
    """One of each kind."""
    part = modules("cost_parts").Part
    return [
        part("poll", "step", "waited for", 1e-3, ""),
        part("guard", "step", "waited for", 2e-3, "", memory_bytes=4e9),
        part("save", "checkpoint", "waited for", 3.0, "", link_bytes=10e9),
        part("verify", "start", "waited for", 7.0, ""),
        part("hash", "checkpoint", "beside", 5.0, ""),
    ]


def test_percentages_are_of_the_steps_that_a_part_comes_once_in(modules):
    cost = modules("cost")
    found = cost.percentages(a_few_parts(modules), 0.1)
    here = found["here"]["every 1,000 steps"]
    # A run starts once an hour.
    expected = {"poll": 1.0, "guard": 2.0, "save": 3.0, "verify": 7 / 36, "hash": 5.0}
    assert here["parts"] == pytest.approx(expected)
    assert here["waited for"] == pytest.approx(6 + 7 / 36) and here["beside"] == pytest.approx(5)
    # An epoch is 1,281,167 images in batches of 256.
    rare = found["here"]["every epoch"]
    assert rare["parts"] == pytest.approx(expected | {"save": 3 / 5.004, "hash": 5 / 5.004})
    # Published images a second; the guard by bytes of memory, the save with what goes over the link besides.
    v3 = found["TPU v3 chip"]
    step = 256 / 2002
    assert v3["step_seconds"] == pytest.approx(step)
    assert v3["every 1,000 steps"]["parts"] == pytest.approx(
        {
            "poll": 0.1 / step,
            "guard": 100 * 4e9 / (0.8 * 0.9e12) / step,
            "save": 0.1 * (3 + 2) / step,
            "verify": 7 / 36,
            "hash": 0.5 / step,
        }
    )


def test_the_table_has_every_part_once_and_both_sums(modules):
    cost = modules("cost")
    parts, measured = a_few_parts(modules), {"step": {"images": 64, "seconds": 0.025}}
    surroundings = {"cpu": {"model": "a processor", "count": 2}, "devices": {"platform": "cpu"}}
    text = cost.table(json.loads(json.dumps(cost.make_record(measured, parts, surroundings))))
    assert [text.count(f"| {part.name} |") for part in parts] == [1] * len(parts)
    assert "| hash | checkpoint | 5 | 5.0000 |" in text
    assert "| **waited for, together**, a checkpoint every 1,000 steps | | | 6.194 |" in text
    assert "| **beside, together**, a checkpoint every epoch | | | 0.999 |" in text


def test_the_record_says_under_one_percent(modules, record):
    cost, parts = modules("cost"), [modules("cost_parts").Part(**part) for part in record["parts"]]
    assert set(record) >= {"config", "versions", "devices", "cpu", "commit", "measured", "parts", "percent"}
    assert record["commit"] and set(record["config"]["accelerators"]) == set(cost.ACCELERATORS)
    assert all(part.seconds > 0 and part.how for part in parts)
    step = record["measured"]["step"]
    # The sums are made anew: what is published is what was measured.
    assert cost.percentages(parts, step["seconds"] * 256 / step["images"]) == record["percent"]
    assert record["bound_percent"] == 1.0
    for place in cost.ACCELERATORS:
        for interval in cost.INTERVALS:
            assert 0 < record["percent"][place][interval]["waited for"] < 1.0, (place, interval)


def test_the_readme_has_the_records_table(modules, record):
    assert modules("cost").table(record) in (FOLDER / "README.md").read_text()


def test_the_guard_moves_at_least_the_gradients_once(modules, monkeypatch):
    parts = modules("cost_parts")
    monkeypatch.setattr(parts, "NET", "resnet18")
    monkeypatch.setattr(parts, "IMAGE_SIZE", 32)
    monkeypatch.setattr(parts, "_BANDWIDTH_BYTES", 2**20)
    batch = parts._Batch(2)
    gradients = sum(leaf.nbytes for leaf in jax.tree.leaves(batch.carried[0].params))
    step, guard = parts.measure_step(batch)
    # And less than if nothing were fused: the norm's gradients, old and new parameters and momentum, and what is kept.
    assert gradients < guard.memory_bytes < 8 * gradients
    assert guard.seconds == guard.memory_bytes / step["memory_bandwidth"]
    assert step["seconds"] > 0 and step["images"] == 2


def test_parts_of_the_host_are_measured_at_a_small_scale(modules, tmp_path):
    parts = modules("cost_parts")
    alone = parts.measure_calls(tmp_path / "calls", 100)
    assert set(alone) == {"watchdog.beat", "saver.poll", "preemption.requested"}
    several = dict.fromkeys(alone, 1.0)
    assert all(0 < seconds < 0.01 for seconds in alone.values())
    assert [part.seconds for part in parts.calls_parts(alone, several)] == [1.0] * 3
    mesh = parts.data_mesh(jax.devices()[:1])
    state = parts.replicate({"w": parts.jnp.arange(1000.0), "step": parts.jnp.zeros((), int)}, mesh)
    saved, listed, compared = parts.checkpoint_parts(tmp_path / "checkpoints", state, mesh)
    assert (saved.where, listed.where, compared.every) == ("waited for", "beside", "start")
    found = [saved, listed, compared, parts.replicas_part(state, 4004), parts.start_part(state), *parts.batch_parts(4)]
    assert saved.link_bytes == 4004 and found[3].memory_bytes == 3 * 4004
    assert all(part.seconds > 0 for part in found)


def test_two_processes_poll_together(modules, tmp_path, monkeypatch):
    parts = modules("cost_parts")
    monkeypatch.setattr(parts, "_PEER_CALLS", 50)
    found = parts.measure_peers(tmp_path)
    assert 0 < found["preemption.requested"] < 0.05


def test_a_readme_without_marks_is_left_alone(modules, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- tables: made by cost.py -->\nold\n<!-- end of tables -->\nb\n")
    modules("marked").publish(readme, "cost.py", "new")
    assert readme.read_text() == "a\n<!-- tables: made by cost.py -->\n\nnew\n\n<!-- end of tables -->\nb\n"
    with pytest.raises(ValueError, match="faults.py"):
        modules("marked").publish(readme, "faults.py", "other")
    assert "new" in readme.read_text()
