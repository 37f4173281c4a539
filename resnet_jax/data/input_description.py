"""What a net expects of its input; it travels with the parameters."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from resnet_jax.atomic_files import open_atomically

_COLORS = ("color_values", "color_vectors")
NORMALIZATIONS = ("pixel_mean", "channel_mean", "channel_mean_std")


@dataclass(frozen=True)
class InputDescription:
    """Shape, pixel statistics and class names.

    Attributes:
      image_shape: (height, width, channels).
      mean: subtracted from the pixels (0 to 255): [h, w, c] for a mean image, or [c].
      std: the difference is divided by it, [c]; ones in the paper.
      class_names: by class number.
      short_side: pixels of the shorter side that an image is resized to before its centre is cropped to
        `image_shape`; None where images are taken as they are.
      resize: how, see `resize_image`.
      source: where this is from: "training images", "measured" or "published" (the pixel statistics), or, of nets from
        elsewhere, "stated: ..." or "assumed: ...".
      color_values: of the colour augmentation that the net was trained with, [c], see `PixelStatistics`; None without.
      color_vectors: likewise, [c, c].
    """

    image_shape: tuple[int, int, int]
    mean: np.ndarray
    std: np.ndarray
    class_names: tuple[str, ...]
    short_side: int | None = None
    resize: str = "area"
    source: str = "training images"
    color_values: np.ndarray | None = None
    color_vectors: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Raises a ValueError for a text in place of the names, which would count as one name a letter."""
        if isinstance(self.class_names, str):
            raise ValueError(f"class_names={self.class_names[:100]!r} must be several texts, one a class")

    def save(self, path: Path) -> None:
        """Writes the description as an .npz file of plain arrays."""
        names = np.asarray(self.class_names, dtype=np.str_)
        colors = {name: value for name in _COLORS if (value := getattr(self, name)) is not None}
        with open_atomically(path) as file:
            np.savez(
                file,
                image_shape=np.asarray(self.image_shape),
                mean=self.mean,
                std=self.std,
                class_names=names,
                short_side=np.asarray(self.short_side or 0),
                resize=np.asarray(self.resize),
                source=np.asarray(self.source),
                allow_pickle=False,
                **colors,
            )

    def same_as(self, other: "InputDescription") -> bool:
        """Whether both have the same shape, resizing, statistics and class names."""
        return (self.image_shape, self.class_names, self.short_side, self.resize) == (
            other.image_shape,
            other.class_names,
            other.short_side,
            other.resize,
        ) and all(np.array_equal(getattr(self, name), getattr(other, name)) for name in ("mean", "std", *_COLORS))

    @classmethod
    def load(cls, path: Path) -> "InputDescription":
        """Reads what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            height, width, channels = (int(side) for side in file["image_shape"])
            names = tuple(str(name) for name in file["class_names"])
            known: dict[str, Any] = {name: str(file[name]) for name in ("resize", "source") if name in file}
            known |= {name: file[name] for name in _COLORS if name in file}
            short_side = int(file["short_side"]) if "short_side" in file else 0
            return cls((height, width, channels), file["mean"], file["std"], names, short_side or None, **known)

    def summary(self) -> str:
        """One line for people."""
        height, width, channels = self.image_shape
        scaled = "" if self.short_side is None else f" of {self.short_side} on the shorter side ({self.resize})"
        mean, std = (", ".join(f"{value:.1f}" for value in values) for values in (self.channel_mean, self.std))
        return f"{height}x{width}x{channels} pixels{scaled}, mean {mean}, std {std} ({self.source})"

    @property
    def channel_mean(self) -> np.ndarray:
        """The mean of each channel, [c], for images of other sizes than the mean image's."""
        return self.mean if self.mean.ndim == 1 else self.mean.mean((0, 1))


def describe_input(
    images: UInt8[np.ndarray, "n h w c"], class_names: tuple[str, ...], *, normalization: str
) -> InputDescription:
    """Computes the pixel statistics of the training images.

    Args:
      images: all training images, uint8.
      class_names: by class number.
      normalization: "pixel_mean" (the paper, section 4.2: the mean image is subtracted), "channel_mean", or
        "channel_mean_std" (also divided by each channel's standard deviation).

    Raises:
      ValueError: for another normalization.
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization={normalization!r} is not one of {', '.join(NORMALIZATIONS)}")
    pixel_mean = images.mean(0, dtype=np.float64)
    channel_mean = pixel_mean.mean((0, 1))
    std = np.ones_like(channel_mean)
    if normalization == "channel_mean_std":
        chunks = (images[start : start + 4096].astype(np.float64) for start in range(0, len(images), 4096))
        squares = sum(np.square(chunk - channel_mean).sum((0, 1, 2)) for chunk in chunks)
        std = np.sqrt(squares / (images.size / images.shape[-1]))
    mean = pixel_mean if normalization == "pixel_mean" else channel_mean
    height, width, channels = images.shape[1:]
    return InputDescription((height, width, channels), mean.astype(np.float32), std.astype(np.float32), class_names)
