"""A whole split in memory, for data sets whose images have one size."""

import hashlib
import math
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from resnet_jax.data.check_batch import check_labels
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.data.decode import decode
from resnet_jax.data.examples import Examples

MAX_RESIDENT_BYTES = 8 * 2**30


class ImageArrays(NamedTuple):
    """A whole split in memory: images [N, H, W, C] as stored, 0 to 255, and labels [N]."""

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, " n"]


def load_arrays(info: DatasetInfo, split: str, *, max_bytes: int = MAX_RESIDENT_BYTES) -> ImageArrays:
    """Reads and decodes a whole split into memory, in the order in which it is stored.

    Images with another number of channels than the data set has are converted, as TFDS does with TensorFlow.
    Decoding stays on one thread: with small images most of its time is Python's, where threads do not help. The 50,000
    images of CIFAR-10 take 3 s.

    Args:
      info: from `dataset_info`.
      split: in TFDS's syntax, see `split_size`.
      max_bytes: what the images may take in memory.

    Raises:
      ValueError: an unknown or empty split, images of different sizes or more than `max_bytes` of them (such a
        set must be streamed), an image that cannot be decoded, or a label that is no class; the message names the
        example.
    """
    examples = Examples(info, split)
    decode_image = partial(decode, channels=info.image_shape[-1])
    first_shape = examples.decoded(0, decode_image)[0].shape
    images = _allocate(info, len(examples), first_shape, max_bytes=max_bytes, where=examples.where(0))
    labels = []
    for index, (image, label) in enumerate(examples.all_decoded(decode_image)):
        if image.shape != first_shape:
            raise ValueError(
                f"{examples.where(index)} has shape {image.shape}, those before it {first_shape}: images of "
                f"different sizes have to be streamed: data.pipeline=streamed"
            )
        images[index] = image
        labels.append(label)
    return ImageArrays(images, check_labels(labels, info.num_classes, examples.where))


def content_digest(arrays: ImageArrays) -> str:
    """SHA-256, in hex, of all pixels and labels in their order."""
    digest = hashlib.sha256(f"{arrays.images.shape}\n".encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _allocate(
    info: DatasetInfo, count: int, shape: tuple[int, ...], *, max_bytes: int, where: str
) -> UInt8[np.ndarray, "n h w c"]:
    if any(declared not in (None, found) for declared, found in zip(info.image_shape, shape, strict=True)):
        raise ValueError(f"{where} has shape {shape}, the data set declares {info.image_shape}")
    if (needed := count * math.prod(shape)) > max_bytes:
        raise ValueError(
            f"data set {info.name!r} takes {needed / 2**30:.3g} GiB as {count} images of shape {shape}, more "
            f"than max_bytes ({max_bytes / 2**30:.3g} GiB); such a set has to be streamed: data.pipeline=streamed"
        )
    return np.empty((count, *shape), np.uint8)
