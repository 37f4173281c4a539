"""The costs of one net: arithmetic, memory, time and energy, in training and in tests."""

from typing import Any

from ml_collections import ConfigDict

from resnet_jax.analysis.costs import net_of
from resnet_jax.benchmark.measuring import measure
from resnet_jax.build import summary_of
from resnet_jax.config import check

# Of what a measurement gives; the rest is the same for all nets, or follows.
_KEPT = (
    *("batch", "batch_seconds", "images_per_second", "joules_per_image"),
    *("trace_seconds", "compile_seconds", "planned_bytes", "peak_bytes", "peak_bytes_source"),
)


def cost_of(config: ConfigDict, *, windows: int, seconds: float | int) -> dict[str, Any]:
    """Measures what a config's net costs, in processes of its own, on random images that lie on the devices.

    Args:
      config: of classification; its data set need not be there.
      windows: of each measurement.
      seconds: of each window.

    Returns:
      "net" (what the costs belong to, see `analysis.costs.net_of`), "image_shape"; "parameters", "multiply_adds" and
      "activation_bytes" of one image, and of each stage under "stages"; "train" and "test": "batch" (images),
      "batch_seconds" (median and ends), "images_per_second", "joules_per_image" where the machine tells,
      "planned_bytes" (of the compiled program; not of a test), "peak_bytes" (of the process), seconds of compiling.

    Raises:
      ValueError: for a config that is not possible.
      OutOfMemory: memory does not suffice.
      MeasurementFailed: for any other reason.
    """
    check(config)
    (train,) = measure("train", config, windows=windows, seconds=seconds)
    test, _ = measure("eval", config, windows=windows, seconds=seconds)
    height, _, channels = train["image_shape"]
    summary = summary_of(config, image_size=height, channels=channels, num_classes=train["classes"])
    return {
        "net": net_of(config.to_dict()),
        "image_shape": train["image_shape"],
        **{name: getattr(summary, name) for name in ("parameters", "multiply_adds", "activation_bytes")},
        "stages": [
            {"name": row.name, "multiply_adds": row.multiply_adds, "activation_bytes": row.activation_bytes}
            for row in summary.rows
        ],
        "train": {name: train[name] for name in _KEPT if name in train},
        "test": {name: test[name] for name in _KEPT if name in test},
    }
