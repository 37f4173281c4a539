"""Compiles the paper's detectors at full size, takes steps and tests with them, or plans them for another device.

    python experiments/benchmarks/detection/full_size.py --output=RECORD.json
    python experiments/benchmarks/detection/full_size.py --output=RECORD.json --target=h200.txtpb

The images are noise of full size with random boxes, of as many classes as the set has: what is computed depends on
neither. Every row is stored as it ends; rows that are there already are skipped, so that the same command again goes
on.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from resnet_jax.analysis.program import planned_bytes
from resnet_jax.atomic_files import write_text_atomically
from resnet_jax.config_files import load_config
from resnet_jax.detection import parts as detection_parts
from resnet_jax.detection.evaluator import make_finder
from resnet_jax.detection.from_config import framing_of, protocol_of
from resnet_jax.distributed import data_mesh, replicated
from resnet_jax.environment import environment
from resnet_jax.parts import Parts
from resnet_jax.training.determinism import compiler_options

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent), str(HERE.parent / "compiled")]
from compiled import described_device  # noqa: E402
from rows import TimedRow, digest, in_time, make_record, with_rows  # noqa: E402
from worker import WorkerFailed  # noqa: E402

SCALES = {
    "full": ("paper_voc_resnet101", "paper_coco_resnet101", "paper_voc_vgg16", "modern_coco_resnet50"),
    "small": ("small",),
}
CLASSES = {"voc": 20, "coco": 80}
# Of VOC's images most are about 500 x 375, of COCO's 640 x 480: both fill the frame's shorter side.
SIZE = (480, 640)
_XML = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


def main(argv: Sequence[str] | None = None) -> int:
    begun = time.monotonic()
    flags = parse_flags(argv)
    device = jax.devices()[0] if flags.target is None else described_device(flags.target)
    changes = dict(word.split("=", 1) for word in flags.set)
    names = flags.configs.split(",") if flags.configs else SCALES[flags.scale]
    wanted = [row(name, changes, device, 0 if flags.target else flags.steps) for name in names]
    header = json.loads(json.dumps({**environment(), "source": code_digest()}))
    record = {**header, "rows": []}
    if flags.output.is_file():
        record = with_rows(json.loads(flags.output.read_text(encoding="utf-8")), record)
    missing = [each for each in wanted if each[0] not in {entry["row"] for entry in record["rows"]}]
    for new in make_record(header, in_time(missing, begun + 60 * flags.minutes), code_digest):
        print(json.dumps(new["rows"][0]), flush=True)
        record = with_rows(record, new)
        write_text_atomically(flags.output, json.dumps(record, indent=2, allow_nan=False) + "\n")
    return int(not {name for name, _ in wanted} <= {entry["row"] for entry in record["rows"]})


def parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    help = "the record's file; rows in it are skipped, and must be of the same code and machine"
    parser.add_argument("--output", type=Path, required=True, help=help)
    parser.add_argument("--target", help="a GPU's description, or a TPU topology: compile alone; else the first device")
    help = "small: a likeness of seconds on two cores, for a try (%(default)s)"
    parser.add_argument("--scale", choices=tuple(SCALES), default="full", help=help)
    parser.add_argument("--configs", help="of configs/detection.py, with commas between them (by scale)")
    parser.add_argument("--steps", type=int, default=2, help="steps and test batches that are timed (%(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the config; repeatable")
    help = "begin no row that would take longer than these; the same command again goes on (no limit)"
    parser.add_argument("--minutes", type=float, default=math.inf, help=help)
    return parser.parse_args(argv)


def code_digest() -> str:
    """Of all code that is measured or measures."""
    return digest([Path(__file__)])


def row(name: str, changes: Mapping[str, Any], device: Any, steps: int) -> TimedRow:
    """The row of a config on a device, by its name; what the device cannot hold is left out."""
    about = {"config": name, "changes": dict(changes), "device": device.device_kind}

    def timed(**_: Any) -> dict[str, Any]:
        try:
            return {**about, **measure(name, changes, device, steps)}
        except jax.errors.JaxRuntimeError as error:
            raise WorkerFailed(str(error)) from error

    words = [f"{key}={value}" for key, value in changes.items()]
    return " ".join([name, *words, "on", device.device_kind, *([] if steps else ["(planned)"])]), timed


def measure(name: str, changes: Mapping[str, Any], device: Any, steps: int) -> dict[str, Any]:
    """Planned memory and seconds of a step, and of a test if there is a device to run on (`steps` above 0)."""
    with tempfile.TemporaryDirectory() as folder:
        images = load_config(f"detection:{name}", changes).train.batch_size
        write_noise(Path(folder), images, CLASSES["coco" if "coco" in name else "voc"])
        sets = {"data.train_sets": f"{folder}:train", "data.test_sets": f"{folder}:test", "data.workers": 0}
        config = load_config(f"detection:{name}", {**sets, "evaluate.metric": "voc", **changes})
        parts = detection_parts.build(config)
        row: dict[str, Any] = {"batch_size": images, "dtype": config.model.dtype}
        row |= {"image_size": [config.data.short_side, config.data.long_side], "regions": config.sampling.regions}
        arguments = (parts.initial_state(), parts.initial_progress(), *parts.feed.arguments(0))
        begun = time.perf_counter()
        call = parts.make_call(1)
        if steps == 0:
            mesh = Mesh(np.array([device]), ("data",))
            arguments = jax.tree.map(lambda leaf: abstract(leaf, mesh), arguments)
            call = detection_parts.build_calls(parts.config, parts.model, parts.optimizer, parts.input, mesh)(1)
        platform = "cuda" if device.platform in ("gpu", "cuda") else device.platform
        lowered = call.trace(*arguments).lower(lowering_platforms=(platform,))
        # A GPU that is here would tune kernels for itself.
        options = compiler_options(config.train.determinism) if steps else {"xla_gpu_autotune_level": 0}
        compiled = lowered.compile(options)
        row |= {"compile_seconds": time.perf_counter() - begun, "planned_bytes": planned_bytes(compiled)}
        if steps:
            row |= run(compiled, arguments, steps, images) | test(parts, steps)
        parts.feed.close()
        return row


def abstract(leaf: Any, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """The shape of an array on devices that need not be here."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh))


def run(compiled: Any, arguments: tuple, steps: int, images: int) -> dict[str, Any]:
    """Seconds a step after the first, and the losses."""
    state, progress, *batch = arguments
    state, progress = jax.block_until_ready(compiled(state, progress, *batch))
    begun = time.perf_counter()
    for _ in range(steps):
        state, progress = compiled(state, progress, *batch)
    jax.block_until_ready(progress)
    seconds = (time.perf_counter() - begun) / steps
    means = progress.sums.means()
    if not all(map(np.isfinite, means.values())):
        raise RuntimeError(f"a loss is not finite: {means}")
    return {"train_seconds_an_image": seconds / images, "mean_loss": means["loss"]}


def test(parts: Parts, batches: int) -> dict[str, Any]:
    """Seconds an image of a test, decoding included, after the first batch."""
    config, variables = parts.config, [parts.initial_variables()]
    find = make_finder(
        [parts.model],
        data_mesh(jax.devices()[:1]),
        input=parts.input,
        protocol=protocol_of(config),
        framing=framing_of(config, parts.input.mean),
        batch_size=1,
        workers=0,
    )
    source = parts.splits["test"]
    find(variables, source, share=range(1))
    begun = time.perf_counter()
    find(variables, source, share=range(batches))
    return {"test_seconds_an_image": (time.perf_counter() - begun) / batches}


def write_noise(folder: Path, images: int, classes: int) -> None:
    """A folder in VOC's form."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    random, (height, width) = np.random.default_rng(0), SIZE
    names = [f"class{number:02}" for number in range(classes)]
    for split, count in (("train", images), ("test", 8)):
        ids = [f"{split}{number}" for number in range(count)]
        (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(ids) + "\n")
        for number, name in enumerate(ids):
            pixels = random.integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"JPEGImages/{name}.jpg")
            # All classes are in the first image, so that the set has them.
            of_image = names if number == 0 else names[:7]
            corners = random.integers([1, 1], [width // 2, height // 2], (len(of_image), 2))
            sides = random.integers(40, [width // 2, height // 2], (len(of_image), 2))
            objects = [_XML.format(n, *c, *(c + s)) for n, c, s in zip(of_image, corners, sides, strict=True)]
            size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
            text = f"<annotation><filename>{name}.jpg</filename>{size}{''.join(objects)}</annotation>\n"
            (folder / f"Annotations/{name}.xml").write_text(text)


if __name__ == "__main__":
    raise SystemExit(main())
