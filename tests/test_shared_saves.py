"""A checkpoint that several processes save: what one writes disturbs no other, and one that fails makes none wait."""

import contextlib
import os
import re

import pytest
from hosts_helper import JOIN, run_processes

from resnet_jax import checkpoint_files as files

# Three saves, of which the second fails in one process; each says what it heard, and after how many seconds.
SAVES = """
import time, jax, numpy as np
from resnet_jax import checkpoint_files as files
from resnet_jax.checkpoints import CheckpointError, Checkpoints
from resnet_jax.distributed import data_mesh, replicate

def broken(*arguments, **named):
    raise OSError("no disk here")

state = replicate({"x": np.arange(3.0, dtype=np.float32)}, data_mesh())
with Checkpoints(FOLDER) as checkpoints:
    for step in (1, 2, 3):
        kept = files.write_manifest, files.commit
        if step == 2 and jax.process_index() == FAILING:
            files.write_manifest = files.commit = broken
        begun = time.monotonic()
        checkpoints.save(step, state)
        try:
            checkpoints.wait()
        except CheckpointError as error:
            print(f"heard after {time.monotonic() - begun:.1f} s: {error}", flush=True)
        files.write_manifest, files.commit = kept
    print("steps", checkpoints.steps(), flush=True)
"""


@pytest.mark.parametrize("failing", [0, 1])
def test_a_save_that_fails_in_one_process_fails_in_all_at_once_and_the_next_works(failing, tmp_path):
    code = f"{JOIN}FAILING, FOLDER = {failing}, {str(tmp_path / 'checkpoints')!r}\n{SAVES}"
    for index, ended in enumerate(run_processes(code, 2, tmp_path)):
        assert ended.code == 0, ended.output
        assert "steps [1, 3]" in ended.output
        seconds, why = re.search(
            r"heard after (.*) s: the checkpoint of step 2 could not be saved: (.*)", ended.output
        ).groups()
        reason = "no disk here" if index == failing else f"process {failing} could not do its part: no disk here"
        assert (float(seconds) < 10, why) == (True, reason)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "3"]


def test_a_file_that_another_process_renames_meanwhile_is_nobody_elses(tmp_path, monkeypatch):
    own = tmp_path / "state" / "ocdbt.process_1"
    own.mkdir(parents=True)
    (own / "d").write_bytes(b"array")
    draft = tmp_path / "metrics.json.1234abcd.unfinished"
    draft.write_text("{}")
    scandir = os.scandir

    @contextlib.contextmanager
    def overtaken(folder):
        with scandir(folder) as entries:
            listed = list(entries)
        if draft.exists():
            draft.rename(tmp_path / "metrics.json")
        yield iter(listed)

    monkeypatch.setattr(files.os, "scandir", overtaken)
    files.write_manifest(tmp_path, process=1, processes=2)
    assert not draft.exists() and '"state/ocdbt.process_1/d"' in (tmp_path / "manifest_1.json").read_text()
