"""The paper's test protocols: what is seen of an image, and how several views of it become one row of scores.

A protocol's `view` runs where images are decoded, and gives one uint8 array or a list of several, the image's parts.
Parts of one shape form batches; on the devices they are mirrored, and each becomes a row of scores. The rows of an
image's parts are averaged like all else within a protocol: as `average` says.

Scores are always such that their softmax are the class probabilities. A mean of probabilities is therefore given as
its logarithm, and computed from logarithms, so that no probability is too small for float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, UInt8

from resnet_jax.data.device_augment import normalize
from resnet_jax.data.input_description import InputDescription
from resnet_jax.data.views import CenterView, ScaledViews, TenCropView, padded_shape
from resnet_jax.models.dense import valid_positions
from resnet_jax.models.resnet import ResNet

AVERAGES = ("probabilities", "logits")
SCALES = (224, 256, 384, 480, 640)


@dataclass(frozen=True)
class Protocol:
    """What the protocols have in common.

    Attributes:
      input: what the net expects of its input.
      average: over an image's views: "probabilities" or "logits".
      name: in `PROTOCOLS`.
      mirrors: 2 if mirror images are seen, too, else 1.
      images_per_part: how many images are decoded in one go; with some 150 kB for each view of 224 pixels it bounds
        what waits in memory.
    """

    input: InputDescription
    average: str
    name: ClassVar[str]
    mirrors: ClassVar[int] = 2
    images_per_part: ClassVar[int]

    @property
    def label(self) -> str:
        """The name, and the options that are not the paper's."""
        return self.name

    @property
    def view(self) -> Callable[[bytes], Any]:
        """From an encoded image to its parts; picklable, and free of jax."""
        raise NotImplementedError

    def batch_shape(self, part_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a part has in a batch; what is added lies behind it along each axis."""
        return part_shape

    def work(self, batch_shape: tuple[int, ...]) -> float:
        """How many times the pixels of the net's own input it sees of a part in this shape, mirrors included."""
        height, width, _ = self.input.image_shape
        pixels = self.mirrors
        for length in batch_shape[:-1]:
            pixels *= length
        return pixels / (height * width)

    def scores(self, model: ResNet, variables: dict, images: Array, sizes: Int[Array, "n 2"]) -> Array:
        """Scores a batch of parts.

        Args:
          model: the net.
          variables: its parameters and statistics.
          images: uint8 [n, *batch_shape].
          sizes: the parts' own height and width within it.

        Returns:
          [n, classes].
        """
        raise NotImplementedError


def center(model: nn.Module, variables: dict, images: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
    """The logits of normalised images."""
    logits = model.apply(variables, images, train=False)
    assert isinstance(logits, jax.Array)
    return logits


@dataclass(frozen=True)
class Center(Protocol):
    """The logits of the single centre view; where nothing is said of resizing, of the image as it is (section 4.2)."""

    name = "center"
    mirrors = 1
    images_per_part = 32

    @property
    def view(self) -> CenterView:
        """Gives uint8 [size, size, c]."""
        return CenterView(**_crop_options(self.input))

    def scores(
        self, model: ResNet, variables: dict, images: UInt8[Array, "n h w c"], sizes: Int[Array, "n 2"]
    ) -> Float[Array, "n classes"]:
        """The net's logits."""
        del sizes
        return center(model, variables, normalize(images, self.input.mean, self.input.std))


@dataclass(frozen=True)
class TenCrop(Protocol):
    """Four corners and the centre, and their mirror images: "the standard 10-crop testing" of Tables 2 and 3.

    The crops have the net's input size and are cut from the image at the input description's shorter side (256). The
    paper does not say what is averaged; the authors' release says "average of softmax scores" (as in AlexNet). With
    average="logits" it is the logits, as fb.resnet.torch does. A mean image is subtracted from every crop.
    """

    name = "ten_crop"
    images_per_part = 8

    @property
    def label(self) -> str:
        """The name, and the options that are not the paper's."""
        return self.name + _label_of_average(self.average)

    @property
    def view(self) -> TenCropView:
        """Gives uint8 [5, size, size, c]."""
        return TenCropView(**_crop_options(self.input))

    def scores(
        self, model: ResNet, variables: dict, images: UInt8[Array, "n 5 h w c"], sizes: Int[Array, "n 2"]
    ) -> Float[Array, "n classes"]:
        """The mean over crops and mirror images."""
        del sizes
        crops = jnp.concatenate([images, jnp.flip(images, axis=3)], axis=1)
        logits = center(
            model, variables, normalize(crops.reshape(-1, *crops.shape[2:]), self.input.mean, self.input.std)
        )
        return _mean_over_views(logits.reshape(len(images), 10, -1), self.average)


@dataclass(frozen=True)
class MultiScale(Protocol):
    """Fully convolutional at several scales: the "best results" of section 3.4, Tables 4 and 5.

    An image is resized so that its shorter side is each of the scales, and taken whole. After the last stage comes an
    average over k x k positions at stride 1, with the k that the net pools over at its own input size (7 at 224
    pixels), then the classifier and the softmax at every position. Probabilities are averaged over an image's positions
    and those of its mirror image, then over scales with equal weights. At its input size, a square image has one
    position: with channel means, the centre view.

    What the paper leaves open, and how it is here:
      The pooling: windows of k x k. One global average would be the other reading; average="logits" comes close to
      it, because the classifier is linear.
      Mirror images: averaged in, as in 10-crop testing.
      The per-pixel mean at other sizes than its own: the channels' means are subtracted, at every size.

    Attributes:
      scales: shorter sides in pixels, none below the net's input size.
    """

    scales: tuple[int, ...] = SCALES
    name = "multi_scale"
    images_per_part = 1

    @property
    def label(self) -> str:
        """The name, and the options that are not the paper's."""
        scales = "" if self.scales == SCALES else f" at {', '.join(map(str, self.scales))}"
        return self.name + scales + _label_of_average(self.average)

    @property
    def view(self) -> ScaledViews:
        """Gives uint8 [h, w, c] for each scale."""
        return ScaledViews(self.scales, resize=self.input.resize, channels=self.input.image_shape[2])

    def batch_shape(self, part_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a part has in a batch: on a fixed ladder of few, since each is a program to compile."""
        height, width, channels = part_shape
        return (*padded_shape(height, width, short_side=min(height, width)), channels)

    def scores(
        self, model: ResNet, variables: dict, images: UInt8[Array, "n h w c"], sizes: Int[Array, "n 2"]
    ) -> Float[Array, "n classes"]:
        """The mean over positions and mirror images at one scale."""
        window = -(-self.input.image_shape[0] // model.total_stride)
        # Beside each other, so that a batch split over devices stays where it is.
        both = jnp.stack([images, _mirrored(images, sizes[:, 1])], axis=1).reshape(-1, *images.shape[1:])
        sizes = jnp.repeat(sizes, 2, axis=0)
        normal = normalize(both, self.input.channel_mean, self.input.std)
        logits = model.apply(variables, normal, train=False, sizes=sizes, pool_window=window)
        assert isinstance(logits, jax.Array)
        valid = valid_positions(sizes, both.shape[1:3], total_stride=model.total_stride, pool_window=window)
        views = logits.reshape(len(images), -1, logits.shape[-1])
        return _mean_over_views(views, self.average, valid.reshape(len(images), -1))


PROTOCOLS = {protocol.name: protocol for protocol in (Center, TenCrop, MultiScale)}


def make_protocol(
    name: str, input: InputDescription, *, average: str = "probabilities", scales: Sequence[int] | None = None
) -> Protocol:
    """The protocol of that name, for a net that expects such input.

    Args:
      name: a key of `PROTOCOLS`.
      input: of the net.
      average: over an image's views: "probabilities", or "logits".
      scales: of multi_scale; None are the paper's, `SCALES`.

    Raises:
      ValueError: an unknown name, or an option that is not allowed or has no meaning here.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol={name!r} is not one of {', '.join(PROTOCOLS)}")
    if average not in AVERAGES:
        raise ValueError(f"average={average!r} is not one of {', '.join(AVERAGES)}")
    if scales is not None and name != "multi_scale":
        raise ValueError(f"scales={tuple(scales)}: only protocol=multi_scale has scales, not {name}")
    if name == "center":
        if average != "probabilities":
            raise ValueError(f"average={average!r}: protocol=center has one view, so nothing is averaged")
        return Center(input, average)
    if name == "ten_crop":
        return TenCrop(input, average)
    scales = SCALES if scales is None else tuple(scales)
    smallest = max(input.image_shape[:2])
    if not scales or len(set(scales)) < len(scales) or min(scales) < smallest:
        raise ValueError(f"scales={scales}: must be different, each at least the net's input size of {smallest} pixels")
    return MultiScale(input, average, scales)


def _crop_options(input: InputDescription) -> dict[str, Any]:
    height, width, channels = input.image_shape
    if input.short_side is None or height != width:
        raise ValueError(
            f"the net's input of {height} x {width} pixels is taken as it is; crops need a square input, and images of "
            "varying size (data.pipeline=streamed)"
        )
    return {"image_size": height, "short_side": input.short_side, "resize": input.resize, "channels": channels}


def _label_of_average(average: str) -> str:
    return "" if average == "probabilities" else f", mean of {average}"


def _mirrored(images: UInt8[Array, "n h w c"], widths: Int[Array, " n"]) -> UInt8[Array, "n h w c"]:
    """Each image mirrored within its own width; what lies beyond stays."""
    columns = jnp.arange(images.shape[2])[None]
    widths = widths[:, None]
    columns = jnp.where(columns < widths, widths - 1 - columns, columns)
    return jnp.take_along_axis(images, columns[:, None, :, None], axis=2)


def _mean_over_views(
    logits: Float[Array, "n views classes"], average: str, valid: Bool[Array, "n views"] | None = None
) -> Float[Array, "n classes"]:
    """The mean over the views that are valid (default: all), as logits or as logarithms of probabilities."""
    if valid is None:
        valid = jnp.ones(logits.shape[:2], bool)
    if average == "logits":
        return logits.mean(1, where=valid[..., None])
    total = jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=1, where=valid[..., None])
    return total - jnp.log(valid.sum(1).astype(jnp.float32))[:, None]
