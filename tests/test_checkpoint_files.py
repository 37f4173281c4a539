"""No damage to a checkpoint's files goes unseen, nothing outside is touched, and a name says what is finished."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import checkpoint_files as files
from resnet_jax.checkpoints import CheckpointError, Checkpoints


def state_of(step: int) -> dict:
    """Arrays that say which step they are of."""
    noise = np.random.default_rng(step).normal(size=(50, 30)).astype(np.float32)
    return {"a": {"kernel": jnp.asarray(noise), "bias": jnp.full(7, step, jnp.bfloat16)}, "step": jnp.int32(step)}


def assert_is_of(step: int, restored: tuple) -> None:
    found, state = restored
    assert found == step
    np.testing.assert_array_equal(state["a"]["kernel"], state_of(step)["a"]["kernel"])
    np.testing.assert_array_equal(state["a"]["bias"], state_of(step)["a"]["bias"])
    assert state["step"] == step


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("pristine")
    with Checkpoints(directory) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_of(step), {"error_top1": 0.5 / step})
    return directory


@pytest.fixture
def two(pristine, tmp_path) -> Path:
    """A folder with the sound checkpoints 1 and 2."""
    return Path(shutil.copytree(pristine, tmp_path / "checkpoints", symlinks=True))


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip_bit(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        [byte] = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def fill_with_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def assert_falls_back(directory: Path, caplog, *, because: str) -> None:
    """Checkpoint 1 is restored instead of 2, which is kept under another name, and a warning says why."""
    caplog.clear()
    with Checkpoints(directory) as checkpoints:
        assert_is_of(1, checkpoints.restore_latest(state_of(0)))
    assert sorted(path.name for path in directory.iterdir()) == ["1", "2.damaged"]
    [warning] = warnings_of(caplog)
    assert "checkpoint 2 in " in warning and because in warning and "2.damaged" in warning


def flips(folder: Path, count: int) -> list[tuple[Path, int]]:
    """Bits of a checkpoint: one or more in every file, the rest at random places of all bytes."""
    rng = random.Random(0)
    paths = [path for path in files_in(folder) if path.stat().st_size]
    sizes = [path.stat().st_size for path in paths]
    chosen = paths + rng.choices(paths, k=(count - len(paths)) // 2)
    chosen += rng.choices(paths, weights=sizes, k=count - len(chosen))
    return [(path, rng.randrange(8 * path.stat().st_size)) for path in chosen]


@pytest.mark.parametrize("count", [64, pytest.param(600, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_found_and_the_checkpoint_before_is_used(two, caplog, count):
    for path, bit in flips(two / "2", count):
        flip_bit(path, bit)
        assert_falls_back(two, caplog, because=str(path.relative_to(two / "2")))
        (two / "2.damaged").rename(two / "2")
        flip_bit(path, bit)
    with Checkpoints(two) as checkpoints:
        assert_is_of(2, checkpoints.restore_latest(state_of(0)))


def test_every_bit_of_a_manifest_and_of_the_metrics_counts(two):
    """They are what the other files and the choice of the best are judged by."""
    for name, every, hashed in (("manifest_0.json", 7, False), ("metrics.json", 1, True)):
        path = two / "2" / name
        for bit in range(0, 8 * path.stat().st_size, every):
            flip_bit(path, bit)
            assert files.find_damage(two / "2", hashed=hashed).startswith(f"{name}: "), bit
            flip_bit(path, bit)
    assert files.find_damage(two / "2") is None


@pytest.mark.parametrize("harm", [Path.unlink, truncate, fill_with_zeros, lambda path: path.write_bytes(b"")])
def test_every_missing_cut_zeroed_or_empty_file_is_found(two, caplog, harm):
    for path in files_in(two / "2"):
        if path.stat().st_size == 0 and harm is not Path.unlink:
            continue
        before = path.read_bytes()
        harm(path)
        assert_falls_back(two, caplog, because=str(path.relative_to(two / "2")))
        (two / "2.damaged").rename(two / "2")
        path.write_bytes(before)
    assert files.find_damage(two / "2") is None


def with_new_manifest(change: Callable[[dict], None], *, process: int = 0) -> Callable[[Path], None]:
    """Changes a manifest as somebody would who knows how it is made."""

    def rewrite(folder: Path) -> None:
        path = folder / f"manifest_{process}.json"
        manifest = json.loads(path.read_text())
        del manifest["sha256"]
        change(manifest)
        manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps(manifest))

    return rewrite


def link_a_data_file(folder: Path) -> None:
    data = max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)
    outside = folder.parent.parent / "outside"
    data.rename(outside)
    data.symlink_to(outside)


def link_the_folder(folder: Path) -> None:
    folder.rename(folder.parent.parent / "elsewhere")
    folder.symlink_to(folder.parent.parent / "elsewhere")


def link_a_folder_within(folder: Path) -> None:
    (folder / "state").rename(folder.parent.parent / "state")
    (folder / "state").symlink_to(folder.parent.parent / "state")


def plant_an_item(folder: Path) -> None:
    path = folder / "_CHECKPOINT_METADATA"
    path.write_text(path.read_text().replace('"state"', '"../../evil"'))


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def replace_by_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("no folder")


HOSTILE = {
    "a data file that is a link": (link_a_data_file, "is a symbolic link"),
    "a folder that is a link": (link_the_folder, "it is a symbolic link"),
    "a folder within that is a link": (link_a_folder_within, "state: is a symbolic link"),
    "a planted item": (plant_an_item, "_CHECKPOINT_METADATA: has "),
    "one more file": (lambda folder: (folder / "state" / "x.pkl").write_bytes(b""), "state/x.pkl: was not there"),
    "one more manifest": (lambda folder: (folder / "manifest_1.json").write_text("{}"), "manifest_1.json: was not"),
    "a pipe": (lambda folder: os.mkfifo(folder / "pipe"), "pipe: is neither a file nor a folder"),
    "a strange name": (lambda folder: (folder / "a b").write_text(""), "'a b': a name may hold only"),
    "a name with a line break": (lambda folder: (folder / "a\n").write_text(""), r"'a\n': a name may hold only"),
    "huge metadata": (
        lambda folder: os.truncate(folder / "state" / "_METADATA", files.METADATA_BYTES + 1),
        f"state/_METADATA: has {files.METADATA_BYTES + 1} bytes, at most {files.METADATA_BYTES}",
    ),
    "a huge manifest": (
        lambda folder: os.truncate(folder / "manifest_0.json", files.MANIFEST_BYTES + 1),
        f"manifest_0.json: has {files.MANIFEST_BYTES + 1} bytes, at most {files.MANIFEST_BYTES}",
    ),
    "no files": (empty, "manifest_0.json: is missing"),
    "a file": (replace_by_a_file, "it is not a folder"),
    "an entry that leads out": (
        with_new_manifest(lambda manifest: manifest["files"].update({"../1/metrics.json": {"size": 1, "sha256": ""}})),
        "the entry '../1/metrics.json'",
    ),
    "an absolute entry": (
        with_new_manifest(lambda manifest: manifest["files"].update({"/etc/passwd": {"size": 1, "sha256": ""}})),
        "the entry '/etc/passwd'",
    ),
    "a manifest that is a list": (
        lambda folder: (folder / "manifest_0.json").write_text("[]"),
        "cannot be used as a list of files",
    ),
    "a manifest that is too deep": (
        lambda folder: (folder / "manifest_0.json").write_text("[" * 200_000),
        "manifest_0.json: cannot be used as a list of files",
    ),
    "a number as text": (with_new_manifest(lambda manifest: manifest.update(processes="1")), "process or processes"),
    "no process": (with_new_manifest(lambda manifest: manifest.update(processes=0)), "process or processes"),
    "another process's": (with_new_manifest(lambda manifest: manifest.update(process=1)), "process or processes"),
    "too many processes": (with_new_manifest(lambda manifest: manifest.update(processes=2)), "manifest_1.json: is mi"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_was_put_into_a_checkpoint_is_found_before_it_is_opened(two, caplog, kind):
    attack, because = HOSTILE[kind]
    attack(two / "2")
    around = {path: path.read_bytes() for path in files_in(two.parent) if two not in path.parents}
    assert_falls_back(two, caplog, because=because)
    assert {path: path.read_bytes() for path in files_in(two.parent) if two not in path.parents} == around


def test_a_planted_item_with_a_manifest_that_fits_reaches_nothing_outside(two):
    """A manifest tells damage, not intent; what the loop reads of Orbax's description must not lead out either."""
    plant_an_item(two / "2")
    evil = two.parent / "evil"
    shutil.copytree(two / "1" / "state", evil)
    files.write_manifest(two / "2", process=0, processes=1)
    before = {path: path.stat() for path in files_in(evil)}
    with Checkpoints(two) as checkpoints:
        assert_is_of(2, checkpoints.restore_latest(state_of(0)))
    assert {path: path.stat() for path in files_in(evil)} == before


def test_the_manifest_lists_every_file_with_size_and_hash(pristine):
    manifest = json.loads((pristine / "2" / "manifest_0.json").read_text())
    assert (manifest["process"], manifest["processes"]) == (0, 1)
    expected = {
        str(path.relative_to(pristine / "2")): {
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in files_in(pristine / "2")
        if path.name != "manifest_0.json"
    }
    assert manifest["files"] == expected
    # The names by which a file's writer is known are Orbax's, not ours.
    assert any("ocdbt.process_0/d/" in name for name in expected) and "state/_METADATA" in expected


@pytest.fixture
def of_two_processes(tmp_path) -> Path:
    """Files as Orbax names them on two processes, without manifests."""
    folder = tmp_path / "7"
    for name in ("ocdbt.process_0/d/ab", "ocdbt.process_1/d/cd", "array_metadatas/process_1", "d/ef", "_METADATA"):
        path = folder / "state" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def test_each_process_lists_what_it_wrote_and_together_they_list_everything(of_two_processes):
    folder = of_two_processes
    (folder / "manifest_0.json.1a2b.unfinished").write_text("another process is writing")
    files.write_manifest(folder, process=1, processes=2)
    (folder / "manifest_0.json.1a2b.unfinished").unlink()
    assert not files.has_all_manifests(folder, 2)
    assert files.find_damage(folder).startswith("manifest_0.json: is missing")
    files.write_manifest(folder, process=0, processes=2)
    assert files.has_all_manifests(folder, 2)
    assert files.find_damage(folder) is None
    first, second = (set(json.loads((folder / f"manifest_{i}.json").read_text())["files"]) for i in (0, 1))
    assert second == {"state/ocdbt.process_1/d/cd", "state/array_metadatas/process_1"}
    assert first == {"state/ocdbt.process_0/d/ab", "state/d/ef", "state/_METADATA"}


def test_everything_is_on_the_disk_before_a_checkpoint_has_its_name_and_the_name_after(of_two_processes, monkeypatch):
    written, final = of_two_processes, of_two_processes.with_name("8")
    fsync, synced = os.fsync, []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file).st_ino, final.exists())) or fsync(file))
    for process in (0, 1):
        files.write_manifest(written, process=process, processes=2)
    files.commit(written, final)
    before = {number for number, named in synced if not named}
    assert {path.stat().st_ino for path in [final, *final.rglob("*")]} <= before
    assert synced[-1] == (final.parent.stat().st_ino, True)


def test_a_process_that_did_not_write_its_manifest_is_missed(of_two_processes):
    folder = of_two_processes
    files.write_manifest(folder, process=0, processes=2)
    assert files.find_damage(folder).startswith("manifest_1.json: is missing")
    files.write_manifest(folder, process=1, processes=3)
    assert files.find_damage(folder) == "manifest_1.json: is of 3 processes, not 2"
    # Of three processes, the second one's manifest is the same; the third one's files would be the first one's here.
    (folder / "state" / "ocdbt.process_2").mkdir()
    (folder / "state" / "ocdbt.process_2" / "x").write_text("")
    files.write_manifest(folder, process=1, processes=2)
    assert files.find_damage(folder) == "state/ocdbt.process_2/x: was not there when the checkpoint was saved"


def test_a_process_cannot_list_the_files_of_another(of_two_processes):
    folder = of_two_processes
    for process in (0, 1):
        files.write_manifest(folder, process=process, processes=2)
    first = json.loads((folder / "manifest_0.json").read_text())["files"]
    with_new_manifest(lambda manifest: manifest["files"].update(first), process=1)(folder)
    assert files.find_damage(folder).endswith("another process's files")


def test_a_name_that_is_taken_gets_a_number(tmp_path):
    for expected in ("7.damaged", "7.damaged-2", "7.damaged-3"):
        (tmp_path / "7").mkdir()
        assert files.set_aside(tmp_path / "7") == tmp_path / expected
    (tmp_path / "10.damaged").symlink_to(tmp_path / "nowhere")
    assert [path.name for path in files.damaged_folders(tmp_path)] == [
        *("7.damaged", "7.damaged-2", "7.damaged-3"),
        "10.damaged",
    ]
    (tmp_path / "7").mkdir()
    for other in ("07", "-7", "7x", "٧"):
        (tmp_path / other).mkdir()
    assert files.step_folders(tmp_path) == {7: tmp_path / "7"}


def test_only_what_is_unfinished_is_removed_and_no_link_is_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    directory = tmp_path / "checkpoints"
    kept = ["7", "7.damaged", "7.damaged-2", "notes", "saving", "x.saving"]
    gone = ["8.saving", "8.saving.orbax-checkpoint-tmp", "9.orbax-checkpoint-tmp-123", "6.deleting"]
    for name in kept + gone:
        (directory / name / "state").mkdir(parents=True)
    (directory / "5.saving").symlink_to(outside)
    (directory / "4.saving").write_text("a file")
    files.remove_unfinished(directory)
    assert sorted(path.name for path in directory.iterdir()) == sorted(kept)
    assert (outside / "kept").read_text() == "kept"
    files.remove_unfinished(tmp_path / "absent")


def test_a_deletion_that_is_interrupted_leaves_nothing_with_a_step_s_name(two, monkeypatch):
    monkeypatch.setattr(shutil, "rmtree", lambda *_: pytest.fail("killed here"))
    with pytest.raises(pytest.fail.Exception, match="killed here"):
        files.delete(two / "2")
    assert sorted(path.name for path in two.iterdir()) == ["1", "2.deleting"]
    monkeypatch.undo()
    files.remove_unfinished(two)
    assert sorted(path.name for path in two.iterdir()) == ["1"]


def damage(folder: Path) -> None:
    """Changes one bit of the array x."""
    path = max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)
    flip_bit(path, 4 * path.stat().st_size)


def save_errors(checkpoints: Checkpoints, errors: dict[int, float]) -> None:
    for step, error in errors.items():
        checkpoints.save(step, {"x": jnp.float32(step)}, {"error_top1": error})


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("resnet_jax.")]


def test_a_damaged_step_or_best_that_was_asked_for_is_an_error_that_names_the_others(tmp_path, caplog):
    like = {"x": jnp.float32(0)}
    with Checkpoints(tmp_path, keep_latest=3) as checkpoints:
        save_errors(checkpoints, {1: 0.5, 2: 0.1, 3: 0.4})
        damage(tmp_path / "2")
        with pytest.raises(ValueError, match=r"checkpoint 2 in .* is damaged: state/.*SHA-256.* one of \[1, 3\]"):
            checkpoints.restore("best", like)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2.damaged", "3"]
        assert checkpoints.best_step() == 3
        (tmp_path / "1" / "manifest_0.json").unlink()
        with pytest.raises(ValueError, match=r"checkpoint 1 in .* is damaged: manifest_0.json: .* one of \[3\]"):
            checkpoints.restore(1, like)
        assert checkpoints.restore_latest(like) == (3, {"x": 3.0})
    first, second = warnings_of(caplog)
    assert "it is kept as 2.damaged" in first and "it is kept as 1.damaged" in second


@pytest.mark.parametrize("read_only", [False, True])
def test_when_all_are_damaged_each_is_listed_with_its_reason_and_nothing_starts_anew(tmp_path, read_only):
    like = {"x": jnp.float32(0)}
    with Checkpoints(tmp_path) as checkpoints:
        save_errors(checkpoints, {1: 0.5, 2: 0.4})
    damage(tmp_path / "1")
    (tmp_path / "2" / "metrics.json").unlink()
    names = ("1", "2") if read_only else ("1.damaged", "2.damaged")
    # The second start finds what the first one has set aside.
    for _ in range(2):
        with Checkpoints(tmp_path, read_only=read_only) as checkpoints:
            for restore in (checkpoints.restore_latest, lambda like: checkpoints.restore("latest", like)):
                with pytest.raises(ValueError, match="every checkpoint in .* is damaged") as caught:
                    restore(like)
                lines = [line.strip() for line in str(caught.value).splitlines()[1:-1]]
                assert sorted(line.split(":")[0] for line in lines) == sorted(names)
                assert any(line == f"{names[1]}: metrics.json: is missing" for line in lines)
                assert any(line.startswith(f"{names[0]}: state/") and "SHA-256" in line for line in lines)
                assert "Put a good copy in place" in str(caught.value)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    if not read_only:
        with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match="every checkpoint"):
            checkpoints.restore(1, like)


def test_a_checkpoint_that_was_put_back_in_order_is_used_again(tmp_path):
    like = {"x": jnp.float32(0)}
    with Checkpoints(tmp_path) as checkpoints:
        save_errors(checkpoints, {1: 0.5})
        checkpoints.wait()
        damage(tmp_path / "1")
        with pytest.raises(ValueError, match="1.damaged: state/"):
            checkpoints.restore_latest(like)
        damage(tmp_path / "1.damaged")
        with pytest.raises(ValueError, match="1.damaged: is as it was saved\n"):
            checkpoints.restore_latest(like)
        (tmp_path / "1.damaged").rename(tmp_path / "1")
        assert checkpoints.restore_latest(like) == (1, {"x": 1.0})


def test_a_damaged_checkpoint_neither_counts_as_one_that_is_kept_nor_bars_its_step(tmp_path, caplog):
    with Checkpoints(tmp_path, keep_latest=2, keep_best=0) as checkpoints:
        save_errors(checkpoints, {1: 0.5, 2: 0.4, 3: 0.3})
        checkpoints.wait()
        (tmp_path / "3" / "_CHECKPOINT_METADATA").unlink()
        assert checkpoints.steps() == [2]
        save_errors(checkpoints, {3: 0.2})
        assert checkpoints.steps() == [2, 3]
        assert checkpoints.restore("latest", {"x": jnp.float32(0)}) == (3, {"x": 3.0})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3", "3.damaged"]
    assert "_CHECKPOINT_METADATA: is missing; it is kept as 3.damaged" in warnings_of(caplog)[0]


def test_a_metric_that_was_changed_is_not_believed(tmp_path):
    with Checkpoints(tmp_path, keep_latest=3) as checkpoints:
        save_errors(checkpoints, {1: 0.4, 2: 0.5})
        checkpoints.wait()
        path = tmp_path / "2" / "metrics.json"
        path.write_text(path.read_text().replace("0.5", "0.1"))
        assert checkpoints.steps() == [1, 2]
        assert checkpoints.best_step() == 1


def test_a_reader_passes_over_what_is_damaged_and_renames_nothing(tmp_path, caplog):
    like = {"x": jnp.float32(0)}
    with Checkpoints(tmp_path) as checkpoints:
        save_errors(checkpoints, {1: 0.5, 2: 0.4})
    damage(tmp_path / "2")
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.restore("latest", like) == (1, {"x": 1.0})
        assert checkpoints.restore_latest(like) == (1, {"x": 1.0})
        with pytest.raises(ValueError, match=r"checkpoint 2 in .* is damaged"):
            checkpoints.restore("best", like)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
    assert len(warnings_of(caplog)) == 3 and all("it is passed over" in text for text in warnings_of(caplog))


def test_a_reader_survives_that_the_run_deletes_what_it_verifies(tmp_path, monkeypatch, caplog):
    with Checkpoints(tmp_path, keep_latest=1, keep_best=0) as checkpoints:
        save_errors(checkpoints, {1: 0.5})
        checkpoints.wait()
        find_damage = files.find_damage

        def overtaken(folder: Path, *, hashed: bool = True) -> str | None:
            if hashed and folder.name == "1":
                save_errors(checkpoints, {2: 0.4})
                checkpoints.wait()
            return find_damage(folder, hashed=hashed)

        monkeypatch.setattr(files, "find_damage", overtaken)
        with Checkpoints(tmp_path, read_only=True) as reader:
            assert reader.restore("latest", {"x": jnp.float32(0)}) == (2, {"x": 2.0})
    assert warnings_of(caplog) == [], "a checkpoint that was deleted is not damaged"


def test_runs_that_end_before_they_delete_leave_one_more_and_not_one_each(tmp_path, monkeypatch):
    commit = files.commit

    def commit_and_end(written: Path, final: Path) -> None:
        commit(written, final)
        raise OSError("the end")

    monkeypatch.setattr(files, "commit", commit_and_end)
    for step in range(1, 8):
        with pytest.raises(CheckpointError, match="the end"), Checkpoints(tmp_path, keep_latest=2) as checkpoints:
            save_errors(checkpoints, {step: 0.1 if step == 2 else 0.5})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "5", "6", "7"]


# Forks a run that saves until it is killed for every line it reads: to start Python and jax takes longer than a save.
SAVER = """
import os, sys
import jax, jax.numpy as jnp, numpy as np
from resnet_jax.checkpoints import CheckpointError, Checkpoints

def state_of(step):
    noise = np.random.default_rng(step).normal(size=(64, 8192)).astype(np.float32)
    return {"noise": jnp.asarray(noise), "step": jnp.int32(step)}

def run(directory):
    with Checkpoints(directory) as checkpoints:
        found = checkpoints.restore_latest(state_of(0))
        print("begun", os.getpid(), flush=True)
        for step in range(found[0] + 1 if found else 1, 10**6):
            checkpoints.save(step, state_of(step), {"error_top1": (step * 7 % 10) / 10})
            if step % 2:
                checkpoints.wait()
                print("saved", step, flush=True)

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run(line.strip())
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


@pytest.mark.parametrize("kills", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_leaves_checkpoints_that_are_what_was_saved(tmp_path, kills):
    rng = random.Random(kills)
    root = Path(__file__).resolve().parent.parent
    variables = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "ignore", "-c", SAVER]
    with subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as saver:
        for _ in range(kills):
            print(tmp_path, file=saver.stdin, flush=True)
            word, pid = saver.stdout.readline().split()
            assert word == "begun"
            time.sleep(rng.uniform(0, 0.4))
            os.kill(int(pid), signal.SIGKILL)
            announced = 0
            while (line := saver.stdout.readline()) != "dead\n":
                announced = int(line.split()[1])
            assert_all_are_what_was_saved(tmp_path, at_least=announced)
        saver.stdin.close()
    assert not list(tmp_path.glob("*.damaged*"))


def assert_all_are_what_was_saved(directory: Path, *, at_least: int) -> None:
    like = {"noise": jnp.zeros((64, 8192)), "step": jnp.int32(0)}
    with Checkpoints(directory) as checkpoints:
        steps = checkpoints.steps()
        assert max(steps, default=0) >= at_least
        # A kill before the deletion of what is superseded leaves one more.
        assert len(list(directory.iterdir())) == len(steps) <= 4
        for step in steps:
            found, state = checkpoints.restore(step, like)
            noise = np.random.default_rng(step).normal(size=(64, 8192)).astype(np.float32)
            assert found == step == state["step"]
            np.testing.assert_array_equal(state["noise"], noise)
