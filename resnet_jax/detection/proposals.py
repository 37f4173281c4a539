"""How many objects a detector's proposals cover, whatever their class (Ren et al. 2015; Hosang et al. 2015)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from resnet_jax.detection.annotations import Annotated
from resnet_jax.detection.detected import Detected, check_detected, overlaps

# 0.5, 0.55, ... 0.95, as in COCO's measures.
_THRESHOLDS = np.arange(10, 20) / 20


def proposal_recall(
    proposals: Sequence[Detected], truths: Sequence[Annotated], *, counts: Sequence[int] = (300, 1000)
) -> dict[str, float]:
    """Recall of the best proposals of each image.

    An object and a proposal go together once: the pair of an image that overlaps most, then the most of the rest, and
    so on. An object is covered at a threshold that its overlap with its proposal reaches. Ignored objects are left out.

    Args:
      proposals: of each image; labels are not looked at, but must be 0.
      truths: of the same images in the same order, see `annotations.truths`.
      counts: how many proposals of an image, the best by score, are looked at.

    Returns:
      `recall_N` at an overlap of 0.5, and `average_recall_N`, the mean over 0.5, 0.55, ... 0.95, for each N of
      `counts`; `objects` and `count`, the images.

    Raises:
      ValueError: proposals that do not fit the images, a count below 1, or no object at all.
    """
    check_detected(proposals, truths, 1)
    if not counts or min(counts) < 1:
        raise ValueError(f"counts={tuple(counts)}; allowed are one or more numbers from 1")
    result: dict[str, float] = {}
    for count in counts:
        covered = np.concatenate(
            [_covered(found, truth, count) for found, truth in zip(proposals, truths, strict=True)]
        )
        if not len(covered):
            raise ValueError("the images have no object that counts, so there is no recall")
        recalls = [float((covered >= threshold).mean()) for threshold in _THRESHOLDS]
        result |= {f"recall_{count}": recalls[0], f"average_recall_{count}": float(np.mean(recalls))}
    return result | {"objects": len(covered), "count": len(truths)}


def _covered(found: Detected, truth: Annotated, count: int) -> Float64[np.ndarray, " n"]:
    """The overlap of each object that counts with the proposal that goes with it, 0 where there is none."""
    best = np.argsort(-found.scores, kind="stable")[:count]
    overlap = overlaps(truth.boxes[~truth.ignored], found.boxes[best])
    covered = np.zeros(len(overlap))
    for _ in range(min(overlap.shape)):
        thing, proposal = np.unravel_index(overlap.argmax(), overlap.shape)
        covered[thing] = max(overlap[thing, proposal], 0.0)
        overlap[thing], overlap[:, proposal] = -1.0, -1.0
    return covered
