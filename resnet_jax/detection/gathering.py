"""Detections of all images that a run's processes share, in every process."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from resnet_jax.detection.detected import Detected, in_order
from resnet_jax.evaluation.shares import exchange, processes_of, share_of


def detected_by_all(
    mesh: Mesh, count: int, find: Callable[[range | None], Sequence[tuple[int, Detected]]], *, most: int
) -> list[Detected]:
    """Of each image its detections, in order; all processes call it together, and each gets all.

    Args:
      mesh: devices of all processes.
      count: of images.
      find: (share, None is all) -> (index, detections) of each image of the share, found by this process alone.
      most: detections of an image at most.

    Raises: as `exchange`.
    """
    processes = processes_of(mesh)
    if len(processes) == 1:
        return in_order(find(None), count)
    shares = [share_of(count, place, len(processes)) for place in range(len(processes))]
    rows, mine = max(map(len, shares)), shares[processes.index(jax.process_index())]
    packed = exchange(mesh, lambda: _packed(find(mine), rows, most), like=_packed([], rows, most))
    return in_order((each for share in packed for each in _unpacked(share)), count)


def _packed(found: Sequence[tuple[int, Detected]], rows: int, most: int) -> Float32[np.ndarray, "rows d 6"]:
    """Of each image a first row with its number (-1: none) and how many detections follow, which have the others."""
    packed = np.zeros((rows, most + 1, 6), np.float32)
    packed[:, 0, 0] = -1
    for row, (index, detected) in enumerate(found):
        length = len(detected.labels)
        packed[row, 0, :2] = index, length
        packed[row, 1 : length + 1] = np.column_stack([detected.boxes, detected.scores, detected.labels])
    return packed


def _unpacked(packed: Float32[np.ndarray, "rows d 6"]) -> list[tuple[int, Detected]]:
    found = []
    for row in packed:
        index, length = (int(value) for value in row[0, :2])
        own = row[1 : length + 1]
        found.append((index, Detected(own[:, :4].copy(), own[:, 4].copy(), own[:, 5].astype(np.int32))))
    return found
