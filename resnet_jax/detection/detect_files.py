"""Detections of image files: a picture with boxes of each, and all as JSON; a bad file is named and passed over."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resnet_jax.atomic_files import open_atomically, write_text_atomically
from resnet_jax.data.decode import UndecodableImage, decode
from resnet_jax.detection.annotations import Annotated, BoxSource, size_of
from resnet_jax.detection.detected import Detected
from resnet_jax.detection.drawing import draw_boxes
from resnet_jax.detection.run import changed, check_together, detect_all
from resnet_jax.detection.trained import TrainedDetector
from resnet_jax.distributed import data_mesh
from resnet_jax.evaluation.image_files import image_files
from resnet_jax.workdir import Workdir

PathLike = str | os.PathLike

JSON = "detections.json"


def detect_files(
    images: PathLike | Sequence[PathLike],
    workdirs: PathLike | Sequence[PathLike],
    output: PathLike,
    *,
    changes: Mapping[str, Any] = {},
    checkpoint: str | int = "latest",
    score: float = 0.5,
) -> list[dict[str, Any]]:
    """Detects objects in image files, with one detector or an ensemble.

    Args:
      images: files (JPEG, PNG, BMP, GIF) and folders of such files, see `image_files`.
      workdirs: of the runs that trained the detectors; one path, or several.
      output: a folder, made if need be, that gets a picture of each image, NAME.png with boxes, and detections.json,
        which has what this function returns.
      changes: config keys that the test has otherwise than the first run, see `evaluate_detectors`.
      checkpoint: of each run "latest", "best", or a step.
      score: least probability of what is drawn and returned.

    Returns:
      Of each file, in order, {"image": its path, "picture": its name in the folder, "width", "height", "detections":
      [{"class", "score", "box": (x1, y1, x2, y2) in pixels}]}, best first; or {"image", "error"}.

    Raises:
      FileNotFoundError: a workdir that holds no run or no checkpoint.
      OSError: a folder of images cannot be listed, or the output not be written.
      ValueError: no image or workdir, a score outside of 0 to 1, or as `evaluate_detectors`.
    """
    if not 0 <= score <= 1:
        raise ValueError(f"score={score}: must be a number from 0 to 1")
    named, runs = ([given] if isinstance(given, str | os.PathLike) else list(given) for given in (images, workdirs))
    if not runs:
        raise ValueError("a detector is needed: name the workdir of a run")
    paths, mesh = image_files(named), data_mesh()
    detectors = [TrainedDetector.restore(Workdir(path), checkpoint=checkpoint, mesh=mesh) for path in runs]
    config = changed(detectors[0].config, {"evaluate.score": score if score < 1 else np.nextafter(1.0, 0.0), **changes})
    check_together(detectors, runs)
    class_names, folder = detectors[0].input.class_names, Path(output)
    errors = {path: error for path in paths if (error := _problem(path)) is not None}
    readable = [path for path in paths if path not in errors]
    found = detect_all(detectors, config, _Files(readable, class_names)) if readable else []
    folder.mkdir(parents=True, exist_ok=True)
    names = dict(zip(readable, _distinct_names(readable), strict=True))
    entries = {path: {"image": path, "error": error} for path, error in errors.items()}
    for path, detected in zip(readable, found, strict=True):
        entries[path] = _write(path, detected, class_names, folder / names[path])
    result = [entries[path] for path in paths]
    write_text_atomically(folder / JSON, json.dumps(result, indent=1) + "\n")
    return result


class _Files(BoxSource):
    """Image files, of whose objects nothing is known."""

    def __init__(self, paths: Sequence[str], class_names: tuple[str, ...]):
        self.paths, self.class_names = tuple(paths), class_names

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Annotated:
        nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool), np.zeros(0, np.float32)
        return Annotated(Path(self.paths[index]).read_bytes(), self.paths[index], *nothing)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image in pixels, from its header."""
        return size_of(Path(self.paths[index]).read_bytes(), lambda: self.where(index))

    def where(self, index: int) -> str:
        """The file."""
        return self.paths[index]


def _problem(path: str) -> str | None:
    """Why a file cannot be read; None if it can."""
    try:
        decode(Path(path).read_bytes())
    except (UndecodableImage, OSError) as error:
        return str(error)
    return None


def _distinct_names(paths: Sequence[str]) -> list[str]:
    """NAME.png of each file; files of one name get numbers from the second on."""
    names: list[str] = []
    for path in paths:
        stem, number, name = Path(path).stem, 1, f"{Path(path).stem}.png"
        while name in names:
            number += 1
            name = f"{stem}-{number}.png"
        names.append(name)
    return names


def _write(path: str, found: Detected, class_names: Sequence[str], picture: Path) -> dict[str, Any]:
    pixels = decode(Path(path).read_bytes())
    drawn = draw_boxes(
        Image.fromarray(pixels), found.boxes, labels=found.labels, scores=found.scores, class_names=class_names
    )
    with open_atomically(picture) as file:
        drawn.save(file, "PNG")
    return {
        "image": path,
        "picture": picture.name,
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "detections": [
            {"class": class_names[label], "score": float(score), "box": [round(float(side), 2) for side in box]}
            for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True)
        ],
    }
