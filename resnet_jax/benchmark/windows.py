"""From timed windows to rates, and from pairs of them to a ratio with its interval."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

CONFIDENCE = 0.95

# Images that were done in so many seconds: {"images", "seconds"}, and "joules" where the machine tells.
Window = Mapping[str, float | int]


def rate(windows: Sequence[Window], *, batch: int) -> dict[str, Any]:
    """Images a second, all images by all seconds; and of the windows' seconds for a batch the median and the ends.

    Energy for an image, where every window tells its joules.
    """
    batches = [window["seconds"] * batch / window["images"] for window in windows]
    images, seconds = (math.fsum(window[key] for window in windows) for key in ("images", "seconds"))
    spread = {"median": statistics.median(batches), "min": min(batches), "max": max(batches)}
    found = {"batch": batch, "batch_seconds": spread, "images_per_second": images / seconds, "windows": list(windows)}
    if all("joules" in window for window in windows):
        found["joules_per_image"] = math.fsum(window["joules"] for window in windows) / images
    return found


def ratio(above: Sequence[Window], below: Sequence[Window]) -> dict[str, Any]:
    """How many times as long an image takes, pair by pair: the median, its interval of 95 %, the ends.

    Raises:
      ValueError: there are not as many windows of the one as of the other, or none.
    """
    if len(above) != len(below) or not above:
        raise ValueError(f"{len(above)} and {len(below)} windows are no pairs")
    times = [[window["seconds"] / window["images"] for window in windows] for windows in (above, below)]
    found = sorted(a / b for a, b in zip(*times, strict=True))
    spread = {"median": statistics.median(found), "interval": median_interval(found), "min": found[0], "max": found[-1]}
    return spread | {"pairs": len(found)}


def median_interval(ordered: Sequence[float | int]) -> list[float | int] | None:
    """The narrowest pair of values, as far from one end as from the other, with the median between them.

    It holds with at least 95 % whatever the distribution: the median lies below the k-th smallest of n values with the
    chance that fewer than k of n coins show heads. None below six values, of which even the ends hold with less.
    """
    count, outside, skipped = len(ordered), 0.0, 0
    while True:
        outside += math.comb(count, skipped) / 2**count
        if 2 * outside > 1 - CONFIDENCE:
            break
        skipped += 1
    return [ordered[skipped - 1], ordered[count - skipped]] if skipped else None
