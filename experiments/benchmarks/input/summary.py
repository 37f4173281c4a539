"""From single measurements to medians, and to the targets: what was aimed at, what came out, met or not."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from pipelines import CROPS

# Numerator, denominator, least ratio of their images per second of processor time with one worker, and what it says.
RATIOS = (
    *(
        (f"ours_{ours}{kind}", other, least, f"resnet_jax, {way}, {ours}, by {text}")
        for ours, other, least, text in (
            ("bilinear", "tf_bilinear", 1.0, "tf.data fused, bilinear"),
            ("area", "tf_antialias", 1.3, "tf.data fused, antialias"),
            ("bilinear", "bare_bilinear", 0.85, "decode_box alone"),
            ("area", "bare_area", 0.85, "decode_box alone"),
        )
        for kind, way in (("_threads", "threads"), ("", "processes"))
    ),
    ("ours_area_bmp", "ours_area_threads", 3.0, "BMP copy by original"),
)
# Queues fill and libraries settle in the first epochs; after them the resident set may grow by this share.
MEMORY_SKIPPED_EPOCHS = 3
MEMORY_GROWTH = 0.05

Measurement = dict[str, Any]


def summarize(measurements: Sequence[Measurement], memory: dict[str, Any]) -> dict[str, Any]:
    """`rates` and `targets` of a record."""
    return {"rates": _rates(measurements), "targets": [*_ratio_targets(measurements), _memory_target(memory)]}


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _rates(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    groups: dict[tuple, list[Measurement]] = defaultdict(list)
    for found in measurements:
        groups[found["pipeline"], found["crop"], found["workers"]].append(found)
    return [
        {
            "pipeline": pipeline,
            "crop": crop,
            "workers": workers,
            "repeats": len(group),
            "images_per_second": spread([found["images"] / found["wall_seconds"] for found in group]),
            "images_per_cpu_second": spread([found["images"] / found["cpu_seconds"] for found in group]),
        }
        for (pipeline, crop, workers), group in groups.items()
    ]


def _ratio_targets(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """The ratios are taken within a repeat, whose two measurements lie close in time, and their median counts."""
    rates = {
        (found["pipeline"], found["crop"], found["repeat"]): found["images"] / found["cpu_seconds"]
        for found in measurements
        if found["workers"] == 1
    }
    repeats = sorted({repeat for _, _, repeat in rates})
    targets = []
    for numerator, denominator, least, text in RATIOS:
        for crop in CROPS:
            pairs = [(rates.get((numerator, crop, r)), rates.get((denominator, crop, r))) for r in repeats]
            ratios = [above / below for above, below in pairs if above is not None and below is not None]
            if ratios:
                found = spread(ratios)
                value = found.pop("median")
                name = f"{text}, {crop} crops"
                targets.append(
                    {"name": name, "value": value, **found, "wanted": f"at least {least}", "met": value >= least}
                )
    return targets


def _memory_target(memory: dict[str, Any]) -> dict[str, Any]:
    """Mean of the last epochs by mean of as many after the first ones."""
    mebibytes = memory["mebibytes_by_epoch"][MEMORY_SKIPPED_EPOCHS:]
    count = len(mebibytes) // 2
    value = statistics.fmean(mebibytes[-count:]) / statistics.fmean(mebibytes[:count])
    most = 1 + MEMORY_GROWTH
    name = f"resident set after {len(mebibytes) + MEMORY_SKIPPED_EPOCHS} epochs, later half by earlier half"
    return {"name": name, "value": value, "wanted": f"at most {most}", "met": value <= most}
