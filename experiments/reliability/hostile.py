"""Files made to do harm, which nothing is to come of: checkpoints, weights, archives, configs; rows 25 and 26."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from bench import Bench
from processes import clean_environment
from stored import Damaged
from trainees import Library
from trials import Message, Trial, last_line

from resnet_jax import exit_codes

REFUSED = Message(r"resnet-jax: error: \S+", r"\S+")
_SECONDS = 60.0


def _manifest(newest: Path, change: Callable[[dict], None]) -> None:
    """Changes the list of a checkpoint's files, and its own hash with it, as whoever writes there can."""
    path = newest / "manifest_0.json"
    manifest = json.loads(path.read_text())
    manifest.pop("sha256")
    change(manifest)
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(manifest))


def _linked_file(newest: Path, outside: Path) -> None:
    path = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    shutil.copyfile(path, outside / "data")
    path.unlink()
    path.symlink_to(outside / "data")


def _linked_folder(newest: Path, outside: Path) -> None:
    (newest / "state").rename(outside / "state")
    (newest / "state").symlink_to(outside / "state")


def _linked_checkpoint(newest: Path, outside: Path) -> None:
    newest.rename(outside / "checkpoint")
    newest.symlink_to(outside / "checkpoint")


def _listed_outside(newest: Path, outside: Path) -> None:
    secret = outside / "secret"
    entry = {"size": secret.stat().st_size, "sha256": hashlib.sha256(secret.read_bytes()).hexdigest()}
    _manifest(newest, lambda manifest: manifest["files"].update({f"../../../outside/{secret.name}": entry}))


def _item_outside(newest: Path, outside: Path) -> None:
    path = newest / "_CHECKPOINT_METADATA"
    described = json.loads(path.read_text())
    described["item_handlers"] = {"../../../outside/item": "StandardCheckpointHandler"}
    path.write_text(json.dumps(described))
    entry = {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    _manifest(newest, lambda manifest: manifest["files"].update({path.name: entry}))


def _huge_metadata(newest: Path, outside: Path) -> None:
    path = newest / "state" / "_METADATA"
    os.truncate(path, 64 * 2**30)
    _manifest(newest, lambda manifest: manifest["files"]["state/_METADATA"].update({"size": 64 * 2**30}))


def _huge_manifest(newest: Path, outside: Path) -> None:
    os.truncate(newest / "manifest_0.json", 64 * 2**30)


def _deep_manifest(newest: Path, outside: Path) -> None:
    (newest / "manifest_0.json").write_text("[" * 1_000_000)


def _pickle(newest: Path, outside: Path) -> None:
    (newest / "state.pkl").write_bytes(evil_pickle(outside / "run_by_pickle"))


def _pipe(newest: Path, outside: Path) -> None:
    (newest / "state" / "_METADATA").unlink()
    os.mkfifo(newest / "state" / "_METADATA")


def _odd_name(newest: Path, outside: Path) -> None:
    (newest / "state" / "a\n..b").write_text("")


CHECKPOINTS: dict[str, Callable[[Path, Path], None]] = {
    "a file is a symbolic link": _linked_file,
    "a folder is a symbolic link": _linked_folder,
    "the checkpoint is a symbolic link": _linked_checkpoint,
    "a listed file lies outside": _listed_outside,
    "an item lies outside": _item_outside,
    "metadata of 64 GiB": _huge_metadata,
    "a list of files of 64 GiB": _huge_manifest,
    "a list of files a million levels deep": _deep_manifest,
    "a pickle beside the state": _pickle,
    "a pipe in place of a file": _pipe,
    "a name with a line break and ..": _odd_name,
}


def evil_pickle(target: Path) -> bytes:
    """What would make a file, if it were loaded."""
    return b"cos\nsystem\n(S'touch %s'\ntR." % str(target).encode()


def hostile_checkpoints(bench: Bench, variants: tuple[str, ...]) -> list[Trial]:
    """Row 25: the checkpoint before is used, and the folder beside is as it was."""
    damaged, trials = Damaged(bench, Library()), []
    for name in variants:
        outside = bench.folder / "damaged" / "outside"
        before: dict[str, str] = {}

        def change(folder: Path, name: str = name, outside: Path = outside, before: dict[str, str] = before) -> None:
            outside.mkdir()
            (outside / "secret").write_text("secret")
            CHECKPOINTS[name](folder / damaged.newest, outside)
            before.update(_contents(outside))

        found: dict[str, str] = {}
        trial = damaged.trial(name, change, after=lambda found=found, outside=outside: found.update(_contents(outside)))
        if before != found:
            trial.silently_wrong = True
            trial.note = f"outside there was {sorted(before)}, and is {sorted(found)}"
        if name == "an item lies outside" and trial.exact and trial.steps_lost == 0:
            # Whoever can rewrite the list can rewrite it all; what counts is that nothing outside was touched.
            trial.as_promised, trial.named, trial.note = before == found, None, "the state is read, nothing outside"
        trials.append(trial)
    return trials


def _contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def hostile_files(bench: Bench, variants: tuple[str, ...]) -> list[Trial]:
    """Row 26: each is refused by a process of its own, and what it would have made is not there."""
    trials = []
    for name in variants:
        folder = bench.folder / "hostile"
        folder.mkdir()
        canary = folder / "canary"
        words = FILES[name](folder / "given", canary)
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "resnet_jax", *words],
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
        )
        seconds = time.monotonic() - begun
        escaped = canary.exists() or (folder / "escaped").exists()
        refused = done.returncode == exit_codes.BAD_INPUT
        trial = Trial(name, silently_wrong=escaped, as_promised=refused and not escaped, codes=[done.returncode])
        trial.detect_seconds, trial.named = seconds, REFUSED.named_in(done.stderr)
        trial.note = "" if trial.as_promised else f"{done.returncode}, escaped: {escaped}: {last_line(done.stderr)}"
        trials.append(trial)
        shutil.rmtree(folder)
    return trials


def _weights(folder: Path, canary: Path) -> list[str]:
    folder.mkdir()
    (folder / "net.pth").write_bytes(evil_pickle(canary))
    return ["convert", str(folder / "net.pth"), str(folder / "net.safetensors")]


def _long_header(folder: Path, canary: Path) -> list[str]:
    folder.mkdir()
    (folder / "net.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    return ["convert", str(folder / "net.safetensors"), str(folder / "out.safetensors")]


def _archive(folder: Path, canary: Path) -> list[str]:
    """In place of CIFAR-10, with names that lead out."""
    folder.mkdir()
    _write_tar(folder / "cifar.tar.gz", canary)
    return ["prepare", "cifar10", f"--source={folder / 'cifar.tar.gz'}", f"--data_dir={folder / 'data'}"]


def _imagenet_archive(folder: Path, canary: Path) -> list[str]:
    """In place of ImageNet's, whose contents are read without a checksum known beforehand."""
    folder.mkdir()
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"):
        _write_tar(folder / name, canary, mode="w")
    return ["prepare", "imagenet2012", f"--source={folder}", f"--data_dir={folder / 'data'}"]


def _write_tar(path: Path, canary: Path, *, mode: str = "w:gz") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name in ("../escaped", "../../escaped", str(canary)):
            archive.addfile(_member(name, 1), io.BytesIO(b"x"))
        link = _member("link", 0)
        link.type, link.linkname = tarfile.SYMTYPE, str(path.parent.parent)
        archive.addfile(link)
        archive.addfile(_member("link/escaped", 1), io.BytesIO(b"x"))


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    return member


def _config_json(folder: Path, canary: Path) -> list[str]:
    """A workdir's config that is code, not JSON."""
    folder.mkdir()
    (folder / "config.json").write_text(f"__import__('os').system('touch {canary}')")
    return ["train", f"--config={folder / 'config.json'}", f"--workdir={folder / 'run'}"]


def _override(folder: Path, canary: Path) -> list[str]:
    """A value that is code."""
    folder.mkdir()
    code = f"__import__('os').system('touch {canary}')"
    return ["train", "--config=digits", f"--workdir={folder / 'run'}", f"--config.train.batch_size={code}"]


FILES: dict[str, Callable[[Path, Path], list[str]]] = {
    "weights: a pickle that runs a program": _weights,
    "weights: a header of 4 EiB": _long_header,
    "archive: CIFAR-10 with names that lead out": _archive,
    "archive: ImageNet with names that lead out": _imagenet_archive,
    "config: code in config.json": _config_json,
    "config: code in an override": _override,
}
