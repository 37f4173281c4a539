"""The pipelines that are compared, and the data that each of them reads."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

IMAGE_SIZE = 224
SHORT_SIDES = (256, 480)
SEED = 0
CROPS = ("scale", "inception")


@dataclass(frozen=True)
class Pipeline:
    """One way from encoded images to batches.

    Attributes:
      label: in tables and figures.
      module: the file beside this one that has `open_batches`.
      options: of `open_batches`.
      scales: measured with every number of workers; otherwise with one alone.
      threads: its workers are threads, of which there are at most as many as cores.
    """

    label: str
    module: str
    options: dict[str, Any] = field(default_factory=dict)
    scales: bool = True
    threads: bool = False


PIPELINES = {
    "ours_bilinear_threads": Pipeline(
        "resnet_jax, threads, bilinear", "ours", {"resize": "bilinear", "threads": True}, threads=True
    ),
    "ours_bilinear": Pipeline("resnet_jax, processes, bilinear", "ours", {"resize": "bilinear"}),
    "tf_bilinear": Pipeline("tf.data fused, bilinear", "tf_data", {"antialias": False}),
    "ours_area_threads": Pipeline(
        "resnet_jax, threads, area", "ours", {"resize": "area", "threads": True}, threads=True
    ),
    "ours_area": Pipeline("resnet_jax, processes, area", "ours", {"resize": "area"}),
    "tf_antialias": Pipeline("tf.data fused, antialias", "tf_data", {"antialias": True}),
    "torch_pillow": Pipeline("PyTorch + Pillow", "torch_loader"),
    "bare_bilinear": Pipeline("decode_box alone, bilinear", "bare", {"resize": "bilinear"}, scales=False),
    "bare_area": Pipeline("decode_box alone, area", "bare", {"resize": "area"}, scales=False),
    "ours_area_jpeg": Pipeline(
        "resnet_jax, threads, area, JPEG copy",
        "ours",
        {"resize": "area", "copy": "jpeg", "threads": True},
        scales=False,
    ),
    "ours_area_bmp": Pipeline(
        "resnet_jax, threads, area, BMP copy", "ours", {"resize": "area", "copy": "bmp", "threads": True}, scales=False
    ),
}


class Source(NamedTuple):
    """The images of a run; paths as strings, so that it travels as JSON.

    Attributes:
      data_dir: folder of TFDS data sets with the original one.
      dataset: its name.
      split: read whole.
      scratch: folder for what a library reads instead: TFRecord, JPEG files, smaller copies.
      copies: names of the smaller copies under `scratch`, by encoding.
    """

    data_dir: str
    dataset: str
    split: str
    scratch: str
    copies: dict[str, str]


class OpenBatches(Protocol):
    """The function `open_batches` of a pipeline's module.

    It gives an endless iterator over batches of shuffled epochs, each a uint8 array [batch, 224, 224, 3] (channels
    first for PyTorch) in this process, decoded by `workers` processes or threads.
    """

    def __call__(
        self, source: Source, *, crop: str, workers: int, batch_size: int, **options: Any
    ) -> AbstractContextManager[Iterator[Any]]: ...
