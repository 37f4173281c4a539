"""Pixel statistics of a training set of large images: mean image, channel means, and the colours' principal components.

`measure` computes them from the images' centre crops and they are kept beside the data; for ImageNet there are
published values.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from resnet_jax.atomic_files import open_atomically
from resnet_jax.data.datasets import DatasetInfo, dataset_info
from resnet_jax.data.examples import Examples
from resnet_jax.data.input_description import InputDescription
from resnet_jax.data.prepare import PathLike, writable_folder
from resnet_jax.data.streaming import ViewedExamples
from resnet_jax.data.views import CenterView

_log = logging.getLogger(__name__)
FILE_NAME = "pixel_statistics.npz"
_PART = 64


@dataclass(frozen=True)
class PixelStatistics:
    """Of pixel values 0 to 255, channels in the order of the images (RGB).

    Attributes:
      mean_image: mean of the centre crops, [h, w, c]; None where only channel means are known.
      channel_mean: [c].
      channel_std: [c].
      eigenvalues: of the channels' covariance, largest first, [c], as AlexNet's colour augmentation scales its
        eigenvectors by them: those of pixel values 0 to 1, times 255. (They are variances; so the scale matters.)
      eigenvectors: one a column, [c, c].
      count: images they were taken from; 0 for published ones.
      source: "measured" or "published".
    """

    mean_image: np.ndarray | None
    channel_mean: np.ndarray
    channel_std: np.ndarray
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray
    count: int
    source: str

    def save(self, path: Path) -> None:
        """Writes plain arrays as an .npz file, whole or not at all."""
        arrays = {name: np.asarray(value) for name, value in vars(self).items() if value is not None}
        with open_atomically(path) as file:
            np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: PathLike) -> "PixelStatistics":
        """Reads what `save` wrote; ValueError if the file is something else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            return cls(
                mean_image=arrays.get("mean_image"),
                count=int(arrays["count"]),
                source=str(arrays["source"]),
                **{n: arrays[n] for n in ("channel_mean", "channel_std", "eigenvalues", "eigenvectors")},
            )
        except (ValueError, KeyError, EOFError) as error:
            raise ValueError(f"{path} holds no pixel statistics; make it with `resnet-jax measure`: {error}") from error


# Means and standard deviations as torchvision states them (the latter are means over images, and smaller than those
# over all pixels), components as in fb.resnet.torch; both on the scale 0 to 1.
# The eigenvectors' signs mean nothing: the augmentation draws both signs alike.
PUBLISHED_IMAGENET = PixelStatistics(
    mean_image=None,
    channel_mean=np.array([0.485, 0.456, 0.406], np.float32) * 255,
    channel_std=np.array([0.229, 0.224, 0.225], np.float32) * 255,
    eigenvalues=np.array([0.2175, 0.0188, 0.0045], np.float32) * 255,
    eigenvectors=np.array(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], np.float32
    ),
    count=0,
    source="published",
)


def measure(
    dataset: str,
    *,
    data_dir: PathLike | None = None,
    split: str = "train",
    image_size: int = 224,
    short_side: int = 256,
    resize: str = "area",
    output: PathLike | None = None,
    workers: int | None = None,
) -> Path:
    """Computes a training set's pixel statistics and stores them, beside the data unless told otherwise.

    It thereby decodes every image in whole and checks every label, once, before training does.

    Args:
      dataset: a prepared set's name.
      data_dir: folder of data sets; None is TFDS's own default.
      split: the training split, in TFDS's syntax.
      image_size: side of the crops, pixels: that of the training's crops.
      short_side: of the images before the crop.
      resize: one of `RESIZES`, see `resize_image`.
      output: the file to write; None is `pixel_statistics.npz` in the data set's folder.
      workers: decoding processes, see `Stream`.

    Returns:
      The file's path; `data.statistics` takes it where it is not beside the data.

    Raises:
      FileNotFoundError: there is no such data set.
      ValueError: an unknown split, an image that cannot be decoded, or a folder that cannot be written.
    """
    info = dataset_info(dataset, data_dir=data_dir)
    path = info.directory / FILE_NAME if output is None else Path(output)
    # Found out now, not after hours of decoding.
    writable_folder(path.parent, called="folder of the statistics")
    view = CenterView(image_size=image_size, short_side=short_side, resize=resize, channels=info.image_shape[-1])
    _accumulate(Examples(info, split), view, workers=workers).save(path)
    return path


def _accumulate(examples: Examples, view: CenterView, *, workers: int | None) -> PixelStatistics:
    total: Float[np.ndarray, "h w c"] | float = 0.0
    products: Float[np.ndarray, "c c"] | float = 0.0
    with ViewedExamples(examples, view, size=_PART).stream(workers=workers) as parts:
        for part in parts:
            crops = np.stack([crop for crop, _ in part]).astype(np.float64)
            total = total + crops.sum(0)
            pixels = crops.reshape(-1, crops.shape[-1])
            products = products + pixels.T @ pixels
    mean_image = np.asarray(total) / len(examples)
    channel_mean = mean_image.mean((0, 1))
    covariance = products / (len(examples) * mean_image[..., 0].size) - np.outer(channel_mean, channel_mean)
    variances, vectors = np.linalg.eigh(covariance)
    largest_first = np.argsort(-variances)
    return PixelStatistics(
        mean_image=mean_image.astype(np.float32),
        channel_mean=channel_mean.astype(np.float32),
        channel_std=np.sqrt(np.diag(covariance)).astype(np.float32),
        eigenvalues=(variances[largest_first] / 255).astype(np.float32),
        eigenvectors=vectors[:, largest_first].astype(np.float32),
        count=len(examples),
        source="measured",
    )


def statistics_of(info: DatasetInfo, path: PathLike | None = None) -> PixelStatistics:
    """The statistics in a file; without one those beside the data, or else ImageNet's published ones.

    Raises:
      FileNotFoundError: the file does not exist, or there is none and the set is not ImageNet; the message has the
        command that makes it.
    """
    if path is not None:
        return PixelStatistics.load(path)
    beside = info.directory / FILE_NAME
    if beside.is_file():
        return PixelStatistics.load(beside)
    if info.name.startswith("imagenet2012"):
        return PUBLISHED_IMAGENET
    data_dir = info.directory.parents[info.name.count("/") + 1]
    raise FileNotFoundError(
        f"no pixel statistics of data set {info.name!r} in {beside}; make them with: "
        f"resnet-jax measure {info.name} --data_dir={data_dir}"
    )


def describe_streamed_input(
    info: DatasetInfo,
    statistics: PixelStatistics,
    *,
    normalization: str,
    image_size: int,
    short_side: int,
    resize: str,
) -> InputDescription:
    """What a net expects that is trained on streamed images.

    Args:
      info: of the data set.
      statistics: of its training images.
      normalization: "pixel_mean" (section 3.4), "channel_mean" or "channel_mean_std". Where no mean image is known,
        as for the published values, every pixel of it is the channels' mean.
      image_size: side of the crop that the net is tested on, pixels.
      short_side: of an image before that crop.
      resize: one of `RESIZES`, see `resize_image`.

    Raises:
      ValueError: the statistics are of crops of another size, or of other channels.
    """
    channels = info.image_shape[-1]
    if len(statistics.channel_mean) != channels:
        raise ValueError(
            f"the pixel statistics have {len(statistics.channel_mean)} channels, data set {info.name!r} has {channels}"
        )
    mean = statistics.channel_mean
    if normalization == "pixel_mean" and statistics.mean_image is None:
        _log.warning(
            "no mean image of %s is known, so its channels' %s means are subtracted; `resnet-jax measure` makes one",
            info.name,
            statistics.source,
        )
    elif normalization == "pixel_mean" and statistics.mean_image is not None:
        mean = statistics.mean_image
        if mean.shape[:2] != (image_size, image_size):
            raise ValueError(
                f"the mean image of data set {info.name!r} is {mean.shape[0]} pixels wide, the crops are {image_size}: "
                f"measure it again with --image_size={image_size}, or choose data.normalization=channel_mean"
            )
    std = statistics.channel_std if normalization == "channel_mean_std" else np.ones_like(statistics.channel_mean)
    return InputDescription(
        (image_size, image_size, channels),
        mean.astype(np.float32),
        std.astype(np.float32),
        info.class_names,
        short_side=short_side,
        resize=resize,
        source=statistics.source,
        color_values=statistics.eigenvalues,
        color_vectors=statistics.eigenvectors,
    )
