"""Checkpoints give back the very bits or none, survive donation, kills and full disks, and keep the right ones."""

import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resnet_jax import checkpoint_files as files
from resnet_jax.checkpoints import CheckpointError, Checkpoints


class Momentum(NamedTuple):
    """An optimizer's state is a tuple of named tuples, some of them empty."""

    trace: Any


class Empty(NamedTuple):
    """Holds nothing."""


def mesh_of(count: int) -> Mesh:
    if jax.device_count() < count:
        pytest.skip(f"needs {count} devices, there are {jax.device_count()}")
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])


def make_state(seed: int, *, mesh: Mesh | None = None) -> dict:
    """Several dtypes, a replicated and a split array, odd shapes, typed keys, NaN and -0.0."""
    mesh = mesh or mesh_of(1)
    key = jax.random.key(seed)
    kernel = jax.random.normal(key, (3, 3, 5, 7))
    state = {
        "step": jnp.int32(seed),
        "params": {"conv": {"kernel": kernel}, "half": kernel.astype(jnp.bfloat16)},
        "momentum": (
            Empty(),
            Momentum({"conv": kernel.at[0, 0, 0, :3].set(jnp.array([jnp.nan, -0.0, 1e-40]))}),
        ),
        "keys": jax.random.split(key, 3),
        "nothing": None,
    }
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    state["split"] = jax.device_put(jnp.arange(32.0) + seed, NamedSharding(mesh, PartitionSpec("data")))
    return state


def bits(tree: Any) -> list[bytes]:
    def of(leaf: jax.Array) -> bytes:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.array(leaf, copy=True).tobytes()

    return [of(leaf) for leaf in jax.tree.leaves(tree)]


def abstract(tree: Any, mesh: Mesh | None = None) -> Any:
    def of(leaf: jax.Array) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, leaf.sharding.spec) if mesh else leaf.sharding
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(of, tree)


def save_errors(checkpoints: Checkpoints, errors: dict[int, float | None]) -> None:
    for step, error in errors.items():
        metrics = None if error is None else {"error_top1": error, "loss": 1.0}
        checkpoints.save(step, {"x": jnp.float32(step)}, metrics)


class LimitedFileSize:
    """No file may grow beyond so many bytes: what a full disk does to a save, without filling one."""

    def __init__(self, size: int):
        self.size = size

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *error):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
        signal.signal(signal.SIGXFSZ, self.handler)


@pytest.fixture
def quiet():
    """Orbax logs the traceback of a failed save from each of its threads."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    yield
    logger.disabled = before


def incompressible(size: int = 400_000) -> dict:
    return {"x": jnp.asarray(np.random.default_rng(0).normal(size=size).astype(np.float32))}


@pytest.mark.parametrize("devices", [1, 8])
def test_restored_state_has_the_same_bits_dtypes_shardings_and_structure(tmp_path, devices):
    state = make_state(3, mesh=mesh_of(devices))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, state)
        checkpoints.wait()
    with Checkpoints(tmp_path) as checkpoints:
        for like in (abstract(state), make_state(0, mesh=mesh_of(devices))):
            step, restored = checkpoints.restore("latest", like)
            assert step == 7
            assert bits(restored) == bits(state)
            assert jax.tree.structure(restored) == jax.tree.structure(state)
            assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, state)
            assert restored["keys"].dtype == state["keys"].dtype
    assert jax.random.uniform(restored["keys"][1]) == jax.random.uniform(state["keys"][1])


@pytest.mark.parametrize(("saved_on", "restored_on"), [(8, 2), (1, 8)])
def test_state_can_be_restored_to_another_number_of_devices(tmp_path, saved_on, restored_on):
    state = make_state(3, mesh=mesh_of(saved_on))
    like = abstract(state, mesh_of(restored_on))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        _, restored = checkpoints.restore(1, like)
    assert bits(restored) == bits(state)
    assert restored["split"].sharding == like["split"].sharding


@pytest.mark.parametrize("devices", [1, 8])
def test_donating_the_saved_arrays_at_once_does_not_change_the_checkpoint(tmp_path, devices):
    """Arrays that split evenly over the devices are copied by Orbax, the others are viewed."""
    mesh = mesh_of(devices)
    replicated = NamedSharding(mesh, PartitionSpec())

    def make() -> dict:
        return {"even": jnp.arange(4_000_000.0), "odd": jnp.arange(3_000_017.0), "small": jnp.arange(15.0)}

    state = jax.jit(make, out_shardings=replicated)()
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: -7 * x - 1, state), donate_argnums=0)
    overwrite(jax.jit(make, out_shardings=replicated)())  # compiled now, so that the race below is close
    like = abstract(state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        for _ in range(4):
            state = overwrite(state)
        jax.block_until_ready(state)
        _, restored = checkpoints.restore(1, like)
    assert float(state["odd"][5]) != 5.0
    assert bits(restored) == bits(make())


def test_the_latest_and_the_best_by_the_lowest_error_stay(tmp_path):
    errors = {1: 0.5, 2: 0.2, 3: 0.3, 4: 0.6, 5: float("nan"), 6: None, 7: 0.9}
    with Checkpoints(tmp_path, keep_latest=2, keep_best=2) as checkpoints:
        save_errors(checkpoints, errors)
        assert checkpoints.steps() == [2, 3, 6, 7]
        assert checkpoints.best_step() == 2
    with Checkpoints(tmp_path, keep_latest=2, keep_best=2) as checkpoints:
        like = {"x": jnp.float32(0)}
        assert checkpoints.restore("best", like) == (2, {"x": 2.0})
        assert checkpoints.restore("latest", like) == (7, {"x": 7.0})
        assert checkpoints.restore(3, like) == (3, {"x": 3.0})
        save_errors(checkpoints, {8: 0.1})
        assert checkpoints.steps() == [2, 7, 8]


def test_of_equally_good_checkpoints_the_latest_is_best(tmp_path):
    with Checkpoints(tmp_path, keep_latest=1, keep_best=1) as checkpoints:
        save_errors(checkpoints, {1: 0.2, 2: 0.2, 3: 0.4})
        assert checkpoints.best_step() == 2
        assert checkpoints.steps() == [2, 3]


def test_no_checkpoint_is_kept_for_being_best_when_none_is_asked_for(tmp_path):
    with Checkpoints(tmp_path, keep_latest=1, keep_best=0) as checkpoints:
        save_errors(checkpoints, {1: 0.1, 2: 0.2, 3: 0.3})
        assert checkpoints.steps() == [3]


def test_another_metric_can_decide(tmp_path):
    with Checkpoints(tmp_path, keep_latest=1, best_metric="loss") as checkpoints:
        for step, loss in ((1, 0.1), (2, 0.3), (3, 0.2)):
            checkpoints.save(step, {"x": jnp.float32(0)}, {"loss": np.float32(loss), "error_top1": -loss})
        assert checkpoints.best_step() == 1
        with pytest.raises(ValueError, match="lack 'loss'"):
            checkpoints.save(4, {"x": jnp.float32(0)}, {"error_top1": 0.1})


def test_a_missing_checkpoint_is_an_error_that_says_what_there_is(tmp_path):
    like = {"x": jnp.float32(0)}
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert (checkpoints.steps(), checkpoints.restore_latest(like), checkpoints.best_step()) == ([], None, None)
        with pytest.raises(FileNotFoundError, match="no checkpoint in .*run"):
            checkpoints.restore("latest", like)
        save_errors(checkpoints, {4: None, 5: float("inf")})
        with pytest.raises(ValueError, match=r"no checkpoint 6 in .* one of \[4, 5\]"):
            checkpoints.restore(6, like)
        with pytest.raises(ValueError, match="no checkpoint 'lates'"):
            checkpoints.restore("lates", like)
        with pytest.raises(ValueError, match="finite 'error_top1'"):
            checkpoints.restore("best", like)
        with pytest.raises(ValueError, match="step 5 is saved already"):
            checkpoints.save(5, like)


def test_a_state_of_another_kind_is_refused_with_every_path_what_is_stored_and_what_is_wanted(tmp_path):
    state = make_state(3)
    like = abstract(state)
    kernel = like["params"]["conv"]["kernel"]
    like["params"]["conv"]["kernel"] = jax.ShapeDtypeStruct((3, 3, 5, 8), kernel.dtype, sharding=kernel.sharding)
    like["params"]["half"] = jax.ShapeDtypeStruct((3, 3, 5, 7), jnp.float32, sharding=kernel.sharding)
    like["params"]["new"] = kernel
    del like["split"]
    like["keys"] = jax.device_put(jax.random.split(jax.random.key(0, impl="rbg"), 3), kernel.sharding)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        with pytest.raises(ValueError, match="checkpoint 1 in .* does not fit the wanted state") as caught:
            checkpoints.restore("latest", like)
        *lines, advice = str(caught.value).splitlines()[1:]
        assert lines == [
            "  path                stored                wanted",
            "  keys                uint32[3, 2]          uint32[3, 4]",
            "  params/conv/kernel  float32[3, 3, 5, 7]   float32[3, 3, 5, 8]",
            "  params/half         bfloat16[3, 3, 5, 7]  float32[3, 3, 5, 7]",
            "  params/new          nothing               float32[3, 3, 5, 7]",
            "  split               float32[32]           nothing",
        ]
        assert "resnet-jax convert --workdir" in advice and "resnet_jax.load_partial" in advice
        assert bits(checkpoints.restore("latest", abstract(state))[1]) == bits(state)


def test_of_many_differences_the_first_twenty_are_listed_and_the_others_counted(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {f"{i:02}": jnp.zeros(1) for i in range(23)})
        with pytest.raises(ValueError) as caught:
            checkpoints.restore(1, {f"{i:02}": jnp.zeros(2) for i in range(23)})
        lines = str(caught.value).splitlines()
        assert [line.split()[0] for line in lines[2:-2]] == [f"{i:02}" for i in range(20)]
        assert lines[-2] == "  and 3 more"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1"], "a state that does not fit is not damaged"


def test_a_shape_without_a_sharding_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": {"x": jnp.zeros(3)}})
        with pytest.raises(ValueError, match="no sharding for a/x"):
            checkpoints.restore(1, {"a": {"x": jax.ShapeDtypeStruct((3,), jnp.float32)}})


def test_a_failed_save_is_reported_by_the_next_call_and_later_saves_work(tmp_path, quiet):
    state = incompressible()
    for report in (
        lambda checkpoints: checkpoints.wait(),
        lambda checkpoints: checkpoints.save(3, state),
        lambda checkpoints: checkpoints.close(),
        lambda checkpoints: checkpoints.steps(),
        lambda checkpoints: checkpoints.restore_latest(state),
    ):
        shutil.rmtree(tmp_path)
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, {"x": jnp.zeros(3)})
        checkpoints.wait()
        with LimitedFileSize(100_000):
            checkpoints.save(2, state)
            with pytest.raises(CheckpointError, match="step 2 could not be saved.*too large") as caught:
                report(checkpoints)
        assert caught.value.step == 2 and caught.value.__cause__ is caught.value.cause
        checkpoints.close()
        with Checkpoints(tmp_path) as checkpoints:
            assert checkpoints.steps() == [1]
            checkpoints.save(2, state)
            assert checkpoints.steps() == [1, 2]


def test_after_a_failed_save_the_same_object_goes_on_and_the_unfinished_files_are_gone(tmp_path, quiet):
    state = incompressible()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.zeros(3)})
        checkpoints.wait()
        with LimitedFileSize(100_000):
            checkpoints.save(2, state)
            with pytest.raises(CheckpointError, match="step 2"):
                checkpoints.wait()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1"]
        checkpoints.wait()
        assert checkpoints.steps() == [1]
        checkpoints.save(3, state)
        assert checkpoints.steps() == [1, 3]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]


def test_an_error_of_the_run_is_not_hidden_by_a_failed_save(tmp_path, quiet):
    with LimitedFileSize(100_000), pytest.raises(FloatingPointError, match="loss is nan") as caught:
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(2, incompressible())
            raise FloatingPointError("loss is nan")
    assert any("step 2 could not be saved" in note for note in caught.value.__notes__)


def test_what_a_killed_run_left_unfinished_is_ignored_and_removed(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save_errors(checkpoints, {1: 0.5, 2: 0.4})
    unfinished = ["3.saving", "3.saving.orbax-checkpoint-tmp", "0.deleting"]
    for name in unfinished:
        shutil.copytree(tmp_path / "2", tmp_path / name)
    (tmp_path / "3.saving" / "manifest_0.json").unlink()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [1, 2]
    assert all((tmp_path / name).exists() for name in unfinished)  # it may be the save of a run that is alive
    with Checkpoints(tmp_path, keep_latest=1, keep_best=0) as checkpoints:
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
        save_errors(checkpoints, {3: 0.3})
        assert checkpoints.restore("latest", {"x": jnp.float32(0)}) == (3, {"x": 3.0})
        assert sorted(path.name for path in tmp_path.iterdir()) == ["3"]


def test_a_kill_in_the_middle_of_a_save_leaves_the_checkpoint_before_it(tmp_path):
    program = textwrap.dedent(
        """
        import sys
        import jax.numpy as jnp
        import numpy as np
        from resnet_jax.checkpoints import Checkpoints

        checkpoints = Checkpoints(sys.argv[1])
        checkpoints.save(1, {"x": jnp.ones(3)}, {"error_top1": 0.5})
        checkpoints.wait()
        big = np.random.default_rng(0).normal(size=40_000_000).astype(np.float32)
        checkpoints.save(2, {"x": jnp.asarray(big)}, {"error_top1": 0.4})
        print("saving", flush=True)
        checkpoints.wait()
        """
    )
    root = Path(__file__).resolve().parent.parent
    variables = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "saving\n"
        process.send_signal(signal.SIGKILL)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert "1" in left and "2" not in left
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
        step, state = checkpoints.restore("latest", {"x": jnp.zeros(3)})
        assert (step, state["x"].tolist()) == (1, [1.0, 1.0, 1.0])
        checkpoints.save(2, {"x": jnp.zeros(3)})
        assert checkpoints.steps() == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_a_reader_changes_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint folder .*absent"):
        Checkpoints(tmp_path / "absent", read_only=True)
    assert not (tmp_path / "absent").exists()
    with Checkpoints(tmp_path) as checkpoints:
        save_errors(checkpoints, {1: 0.5, 2: 0.4, 3: 0.6, 4: 0.7})
    with Checkpoints(tmp_path, keep_latest=1, keep_best=0, read_only=True) as checkpoints:
        assert checkpoints.steps() == [2, 3, 4]
        assert checkpoints.restore("best", {"x": jnp.float32(0)})[0] == 2
        with pytest.raises(ValueError, match="read_only"):
            checkpoints.save(5, {"x": jnp.float32(0)})


def test_hashing_blocks_neither_save_nor_check_and_everything_else_waits_for_it(tmp_path, monkeypatch):
    write_manifest, may_go_on = files.write_manifest, threading.Event()

    def slowly(*arguments: Any, **options: Any) -> None:
        assert may_go_on.wait(60)
        write_manifest(*arguments, **options)

    with Checkpoints(tmp_path, keep_latest=1, keep_best=0) as checkpoints:
        save_errors(checkpoints, {1: 0.5})
        checkpoints.wait()
        monkeypatch.setattr(files, "write_manifest", slowly)
        for step, joins in ((2, checkpoints.wait), (3, checkpoints.steps), (4, checkpoints.close)):
            may_go_on.clear()
            save_errors(checkpoints, {step: 0.4})
            checkpoints.check()
            # Until the new one is complete, the old one stays.
            assert (tmp_path / str(step - 1)).is_dir() and not (tmp_path / str(step)).exists()
            threading.Timer(0.2, may_go_on.set).start()
            joins()
            assert sorted(path.name for path in tmp_path.iterdir()) == [str(step)]


def test_a_checkpoint_whose_manifest_cannot_be_written_is_a_failed_save(tmp_path, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space")

    with Checkpoints(tmp_path, keep_latest=1, keep_best=0) as checkpoints:
        save_errors(checkpoints, {1: 0.5})
        checkpoints.wait()
        monkeypatch.setattr(files, "write_manifest", fail)
        save_errors(checkpoints, {2: 0.4})
        with pytest.raises(CheckpointError, match="step 2 could not be saved: no space"):
            checkpoints.wait()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1"]


def test_check_tells_a_failed_save_once_and_costs_under_20_microseconds(tmp_path, quiet):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.check()
        with LimitedFileSize(100_000):
            checkpoints.save(2, incompressible())
            with pytest.raises(CheckpointError, match="step 2"):
                check_until_it_raises(checkpoints)
        checkpoints.check()
        checkpoints.save(3, incompressible(20_000_000))
        begun, calls = time.perf_counter(), 0
        while not (tmp_path / "3").exists():
            checkpoints.check()
            calls += 1
            if calls % 1000 == 0:
                assert time.perf_counter() - begun < 60
        assert calls > 10
        best = min(time_of(checkpoints.check) for _ in range(1000))
        assert best < 20e-6


def time_of(call: Any) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def check_until_it_raises(checkpoints: Checkpoints) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        checkpoints.check()
        time.sleep(0.001)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 24 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, *, leave: int) -> Path:
    filler = disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - leave))
    return filler


def test_on_a_full_disk_a_save_is_refused_and_the_run_goes_on_when_there_is_room_again(small_disk):
    state = incompressible(1_000_000)
    with Checkpoints(small_disk / "run") as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        filler = fill(small_disk, leave=4_300_000)
        with pytest.raises(CheckpointError, match=r"step 2 .*bytes free, and 4,400,000 are needed") as caught:
            checkpoints.save(2, state)
        assert caught.value.step == 2
        assert [path.name for path in (small_disk / "run").iterdir()] == ["1"]
        checkpoints.check()
        filler.unlink()
        checkpoints.save(2, state)
        assert checkpoints.steps() == [1, 2]
        assert bits(checkpoints.restore_latest(state)[1]) == bits(state)


def test_a_disk_that_fills_up_during_a_save_costs_that_save_alone(small_disk, monkeypatch, quiet):
    state = incompressible(1_000_000)
    with Checkpoints(small_disk / "run") as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        usage = shutil.disk_usage
        filler = fill(small_disk, leave=1_500_000)
        # Somebody else fills it between the look and the write.
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=10**12))
        checkpoints.save(2, state)
        with pytest.raises(CheckpointError, match="step 2 could not be saved.*(No space|RESOURCE_EXHAUSTED)"):
            check_until_it_raises(checkpoints)
        assert [path.name for path in (small_disk / "run").iterdir()] == ["1"]
        assert usage(small_disk).free > 1_400_000
        assert bits(checkpoints.restore_latest(state)[1]) == bits(state)
        filler.unlink()
        checkpoints.save(3, state)
        assert checkpoints.steps() == [1, 3]
        assert bits(checkpoints.restore(3, state)[1]) == bits(state)


def test_a_folder_that_cannot_be_written_to_is_an_error_at_once_and_can_be_read(small_disk):
    with Checkpoints(small_disk / "run") as checkpoints:
        save_errors(checkpoints, {1: 0.5, 2: 0.4})
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(PermissionError, match="the checkpoint folder .*run cannot be written to"):
        Checkpoints(small_disk / "run")
    with pytest.raises(OSError, match="Read-only"):
        Checkpoints(small_disk / "another")
    with Checkpoints(small_disk / "run", read_only=True) as checkpoints:
        assert checkpoints.restore("latest", {"x": jnp.float32(0)}) == (2, {"x": 2.0})


def test_saving_returns_before_the_files_are_written(tmp_path):
    state = incompressible(20_000_000)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        assert not (tmp_path / "1").exists()
        begun = time.perf_counter()
        checkpoints.wait()
        assert (tmp_path / "1").exists()
        assert time.perf_counter() > begun


@pytest.mark.parametrize("bad", [{"keep_latest": 0}, {"keep_best": -1}])
def test_impossible_numbers_of_checkpoints_are_refused(tmp_path, bad):
    [(name, value)] = bad.items()
    with pytest.raises(ValueError, match=f"{name}={value}: must be at least"):
        Checkpoints(tmp_path, **bad)
