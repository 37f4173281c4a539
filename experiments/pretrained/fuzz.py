"""Damages weight files of every kind at random and loads each: all that may happen is that it loads or is refused.

    python experiments/pretrained/fuzz.py --files=100000 --seed=0 --output=experiments/pretrained/records/fuzz.json

Each kind has a worker process with a limit on its memory, which reports every file it is done with; one that says
nothing for five seconds is killed, and its file is counted as a fault. So is every exception but a ValueError, a
crash, and running out of memory. A file is made anew from the seed, its kind and its number.
"""

import argparse
import io
import json
import logging
import multiprocessing
import random
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save as save_tensors

from resnet_jax.atomic_files import write_text_atomically
from resnet_jax.data.input_description import InputDescription
from resnet_jax.environment import environment
from resnet_jax.models.registry import create_model
from resnet_jax.models.resnet import ResNet
from resnet_jax.pretrained.pytorch.interchange import write_huggingface
from resnet_jax.pretrained.pytorch.safe_torch import read_torch
from resnet_jax.pretrained.pytorch.torch_layout import torchvision_spelling
from resnet_jax.pretrained.pytorch.torch_variables import torch_tensors
from resnet_jax.pretrained.reading import load_weights
from resnet_jax.pretrained.weights import save_pretrained

# The seeds are made of what the tests are made of.
TESTS = Path(__file__).resolve().parents[2] / "tests"
TORCH_FILES = TESTS / "fixtures" / "torch_files"
sys.path.append(str(TESTS))
import torch_files  # noqa: E402
from caffe_files import MsraNet  # noqa: E402

LONGEST_SECONDS = 5.0
# Beyond what Python and jax take before the first file.
MEMORY_BYTES = 2**30
# A worker imports jax and makes its seed files.
START_SECONDS = 120.0
MESSAGES_KEPT, FAULTS_KEPT = 25, 20

LENGTHS = [0, 1, 2, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**48, 2**63 - 1, 2**63, 2**64 - 1]
PICKLE_PIECES = [
    *(b"cos\nsystem\n", b"ios\nsystem\n", b"c__builtin__\neval\n", b"ccollections\nOrderedDict\n", b"ctorch\nSize\n"),
    *(b"(", b")", b"]", b"}", b"N", b"t", b"R", b"b", b"s", b"u", b"a", b"e", b"Q", b"\x81", b"\x85", b"\x86", b"\x94"),
    *(b".", b"0", b"1", b"2", b"\x80\x02", b"\x80\x05", b"\x93", b"q\x01", b"h\x01", b"j\xff\xff\xff\xff", b"\x82\x01"),
    *(b"K\x00", b"K\xff", b"J\xff\xff\xff\xff", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"\x8b\xff\xff\xff\x7f", b"I9\n"),
    *(b"\x8d" + b"\xff" * 8, b"\x8e" + b"\xff" * 7 + b"\x7f", b"X\xff\xff\xff\xff", b"\x95" + b"\xff" * 8, b"U\xff"),
]

# The files of a seed, by their names in its folder.
Files = dict[str, bytes]


@dataclass(frozen=True)
class Kind:
    """One kind of weight file: seeds to damage, and what loads the damaged one from its folder."""

    make_seeds: Callable[[], list[Files]]
    load: Callable[[Path], None]


def torch_seeds(form: str) -> Callable[[], list[Files]]:
    return lambda: [{"file.pth": path.read_bytes()} for path in sorted(TORCH_FILES.glob(f"*_{form}.pth"))]


def load_torch(folder: Path) -> None:
    for name, stored in read_torch(folder / "file.pth").items():
        values = stored.read()
        if (values.shape, values.dtype.name) != (stored.shape, stored.dtype):
            raise RuntimeError(f"{name} was to be {stored}, and is {values.dtype.name} of shape {values.shape}")


def load_net(name: str) -> Callable[[Path], None]:
    def load(folder: Path) -> None:
        load_weights(folder / name)

    return load


def tiny_net(**settings: Any) -> tuple[ResNet, dict]:
    model = create_model("resnet18", width=2, stage_sizes=(1, 1), num_classes=3, **settings)
    return model, dict(model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32), train=False))


def own_seeds() -> list[Files]:
    return [written(lambda path: save_pretrained(path / NET, *tiny_net(), name="tiny", metrics={"error": 0.5}))]


def torchvision_seeds() -> list[Files]:
    return [{NET: save_tensors(torch_tensors(*tiny_net(), torchvision_spelling()))}]


def state_dict_seeds() -> list[Files]:
    tensors = torch_tensors(*tiny_net(), torchvision_spelling())
    storages = {str(number): array.tobytes() for number, array in enumerate(tensors.values())}
    kinds = {"float32": "torch.FloatStorage", "int64": "torch.LongStorage"}
    items = {}
    for key, (name, array) in zip(storages, tensors.items(), strict=True):
        strides = tuple(step // array.itemsize for step in array.strides)
        items[name] = torch_files.tensor(key, array.size, array.shape, strides, kind=kinds[array.dtype.name])
    return [written(lambda path: torch_files.write_zip(path / "file.pth", torch_files.mapping(items), storages))]


def huggingface_seeds() -> list[Files]:
    names = ("cat", "dog", "frog")
    mean = np.full(3, 127, np.float32)
    input = InputDescription((32, 32, 3), mean, mean, names, short_side=36, resize="pillow_bilinear", source="fuzz")
    return [written(lambda path: write_huggingface(path / "net", *tiny_net(), input=input) and None)]


def caffe_seeds() -> list[Files]:
    return [{"net.caffemodel": MsraNet((1, 1, 1, 1)).net.SerializeToString()}]


def written(write: Callable[[Path], object]) -> Files:
    """The files that a function writes into a folder."""
    with tempfile.TemporaryDirectory() as name:
        write(Path(name))
        paths = [path for path in sorted(Path(name).rglob("*")) if path.is_file()]
        return {path.name: path.read_bytes() for path in paths}


NET = "net.safetensors"
KINDS = {
    "torch zip": Kind(torch_seeds("zip"), load_torch),
    "torch legacy": Kind(torch_seeds("legacy"), load_torch),
    "net of resnet_jax": Kind(own_seeds, load_net(NET)),
    "net of torchvision, safetensors": Kind(torchvision_seeds, load_net(NET)),
    "net of torchvision, state dict": Kind(state_dict_seeds, load_net("file.pth")),
    "net of Hugging Face, folder": Kind(huggingface_seeds, load_net("")),
    "net of Caffe": Kind(caffe_seeds, load_net("net.caffemodel")),
}


def chance_of(seed: int, kind: str, number: int) -> random.Random:
    return random.Random(f"{seed} {kind} {number}")


def damaged(seeds: list[Files], chance: random.Random) -> Files:
    """One of the seeds with one of its files changed in one to eight ways."""
    files = dict(chance.choice(seeds))
    name = chance.choice(sorted(files))
    other = chance.choice(seeds).get(name, files[name])
    changes = min(1 + int(chance.expovariate(0.7)), 8)
    # Otherwise nearly all that is changed within a ZIP archive fails at its checksum.
    change = change_entry if files[name].startswith(b"PK") and chance.random() < 0.6 else change_bytes
    for _ in range(changes):
        files[name] = change(files[name], other, chance)
    return files


def change_bytes(data: bytes, other: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data) + 1)
    stop = min(len(data), start + int(2 ** chance.uniform(0, 10)))
    piece = other[(at := chance.randrange(len(other) + 1)) : at + int(2 ** chance.uniform(0, 10))]
    match chance.randrange(9):
        case 0 if data:
            return flip_bit(data, chance)
        case 1:
            return (
                data[:start] + bytes([chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])]) + data[start + 1 :]
            )
        case 2:
            return data[:start]
        case 3:
            return data[:start] + data[stop:]
        case 4:
            return data[:start] + chance.randbytes(chance.randint(1, 16)) + data[start:]
        case 5:
            return data[:stop] + data[start:stop] * chance.choice([1, 2, 50]) + data[stop:]
        case 6:
            return data[:start] + piece + data[stop:]
        case 7:
            size, order = chance.choice([1, 2, 4, 8]), chance.choice(["little", "big"])
            length = (chance.choice(LENGTHS) % 256**size).to_bytes(size, order)  # type: ignore[arg-type]
            return data[:start] + length + data[start + size :]
    piece = chance.choice(PICKLE_PIECES)
    return data[:start] + piece * chance.choice([1, 1, 1, 100]) + data[start + chance.choice([0, len(piece)]) :]


def flip_bit(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def change_entry(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """The archive with one entry's content, or name, changed, and checksums that agree."""
    entries = []
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    at = next((n for n, (name, _) in enumerate(entries) if name.endswith("data.pkl")), 0)
    at = at if chance.random() < 0.8 else chance.randrange(len(entries))
    name, content = entries[at]
    action = chance.random()
    if action < 0.05:
        entries.pop(at)
    elif action < 0.1:
        entries[at] = (change_bytes(name.encode(), b"../", chance).decode(errors="replace"), content)
    else:
        entries[at] = (name, change_bytes(content, content, chance))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in entries or [("x", b"")]:
            archive.writestr(name.replace("\0", "") or "x", content)
    return made.getvalue()


def work(kind_name: str, seed: int, numbers: range, results: Connection) -> None:
    """Loads one file after the other and sends what became of it: number, outcome, message, seconds, memory."""
    warnings.filterwarnings("ignore", "Duplicate name")
    logging.disable(logging.WARNING)
    kind = KINDS[kind_name]
    seeds = kind.make_seeds()
    with tempfile.TemporaryDirectory(prefix="fuzz_") as name:
        folder = Path(name)
        for files in seeds:
            write_files(folder, files)
            kind.load(folder)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (used, used))
        before = peak_bytes()
        results.send("ready")
        for number in numbers:
            write_files(folder, damaged(seeds, chance_of(seed, kind_name, number)))
            start = time.perf_counter()
            outcome, message = load(kind, folder)
            seconds = time.perf_counter() - start
            results.send((number, outcome, message, seconds, peak_bytes() - before))


def peak_bytes() -> int:
    """The most memory that this process has had; `getrusage` counts its parent's too."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def load(kind: Kind, folder: Path) -> tuple[str, str]:
    try:
        kind.load(folder)
    except ValueError as error:
        return "refused", simplified(str(error).replace(str(folder), ""))
    except Exception as error:  # the faults that this is to find
        place = traceback.extract_tb(error.__traceback__)[-1]
        return "fault", f"{type(error).__name__} in {Path(place.filename).name}, {place.name}: {error}"[:300]
    return "loaded", ""


def simplified(message: str) -> str:
    """The message without what differs from file to file, to be counted."""
    message = re.sub(r"b?('(\\.|[^'\\])*'|\"(\\.|[^\"\\])*\")", "'...'", message)
    message = re.sub(r"asks for [^,]*, which", "asks for ..., which", message)
    return re.sub(r"[0-9]+", "N", message)[:150]


def write_files(folder: Path, files: Files) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def await_start(results: Connection, name: str) -> None:
    try:
        if results.poll(START_SECONDS) and results.recv() == "ready":
            return
    except EOFError:
        pass
    raise RuntimeError(f"{name}: the worker does not start, or a seed file does not load")


def run_kind(name: str, seed: int, count: int, keep: Path | None) -> dict[str, Any]:
    """Loads `count` damaged files of a kind, with a new worker after each that died."""
    outcomes, messages, faults = Counter(loaded=0, refused=0, fault=0), Counter(), []
    slowest, grown, number = 0.0, 0, 0
    context = multiprocessing.get_context("spawn")
    while number < count:
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=work, args=(name, seed, range(number, count), theirs), daemon=True)
        worker.start()
        theirs.close()
        try:
            await_start(ours, name)
            while number < count:
                if not ours.poll(LONGEST_SECONDS):
                    fault = f"no answer for {LONGEST_SECONDS} s"
                    break
                _, outcome, message, seconds, bytes_grown = ours.recv()
                outcomes[outcome] += 1
                slowest, grown = max(slowest, seconds), max(grown, bytes_grown)
                if outcome == "refused":
                    messages[message] += 1
                elif outcome == "fault":
                    faults.append({"number": number, "what": message})
                number += 1
            else:
                break
        except EOFError:
            worker.join()
            fault = f"the process ended with {worker.exitcode}"
        finally:
            worker.kill()
            worker.join()
        outcomes["fault"] += 1
        faults.append({"number": number, "what": fault})
        number += 1
    if keep and faults:
        seeds = KINDS[name].make_seeds()
        for fault in faults[:FAULTS_KEPT]:
            number = fault["number"]
            write_files(keep / f"{name.replace(' ', '_')}_{number}", damaged(seeds, chance_of(seed, name, number)))
    return {
        "files": count,
        **outcomes,
        "slowest_seconds": round(slowest, 3),
        "memory_growth_bytes": grown,
        "messages": dict(messages.most_common(MESSAGES_KEPT)),
        "distinct_messages": len(messages),
        "faults": faults[:FAULTS_KEPT],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000, help="damaged files in all, as many of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--output", type=Path, required=True, help="the record, a JSON file")
    parser.add_argument("--keep", type=Path, help="a folder for the files that were faults")
    arguments = parser.parse_args()
    kinds = {}
    for name in arguments.kinds:
        kinds[name] = run_kind(name, arguments.seed, arguments.files // len(arguments.kinds), arguments.keep)
        counts = {key: value for key, value in kinds[name].items() if key != "messages"}
        print(f"{name}: {counts}", flush=True)
    limits = {"longest_seconds": LONGEST_SECONDS, "memory_bytes": MEMORY_BYTES}
    record = {"files": sum(kind["files"] for kind in kinds.values()), "seed": arguments.seed, "limits": limits}
    where = environment()
    record = {**record, "kinds": kinds, **{key: where[key] for key in ("versions", "cpu", "commit")}}
    write_text_atomically(arguments.output, json.dumps(record, indent=2) + "\n")
    return 1 if any(kind["fault"] for kind in kinds.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
