"""Class probabilities of image files."""

import os
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from resnet_jax.data.decode import UndecodableImage
from resnet_jax.data.device_augment import normalize
from resnet_jax.data.input_description import InputDescription
from resnet_jax.evaluation.protocols import center, make_protocol
from resnet_jax.evaluation.run import load_workdir
from resnet_jax.workdir import Workdir


def predict_workdir(
    workdir: str | os.PathLike,
    images: Sequence[str | os.PathLike],
    *,
    checkpoint: str | int = "latest",
    top: int = 5,
) -> list[list[tuple[str, float]]]:
    """Classifies image files with a trained net.

    Args:
      workdir: of the run.
      images: paths; each image is converted to the net's channels and viewed as in a test, see `read_image`.
      checkpoint: "latest", "best", or a step.
      top: classes to return for each image, at most all.

    Returns:
      For each image the most probable classes with their probabilities, highest first.

    Raises:
      FileNotFoundError: if the workdir holds no run or no checkpoint, or an image is missing.
      ValueError: for a file that is not an image (it is named), no image at all, or a `top` below 1.
    """
    if not images or top < 1:
        raise ValueError(f"predict needs at least one image and top >= 1, found {len(images)} images and top={top}")
    files = Workdir(workdir)
    files.read_config()
    input = InputDescription.load(files.input)
    batch = np.stack([read_image(path, input) for path in images])
    model, variables = load_workdir(workdir, checkpoint=checkpoint)
    logits = center(model, variables, normalize(jnp.asarray(batch), input.mean, input.std))
    probabilities = np.asarray(jax.nn.softmax(logits))
    best = np.argsort(-probabilities, axis=-1)[:, :top]
    return [
        [(input.class_names[label], float(row[label])) for label in labels]
        for row, labels in zip(probabilities, best, strict=True)
    ]


def read_image(path: str | os.PathLike, input: InputDescription) -> UInt8[np.ndarray, "h w c"]:
    """Reads an image file as the net's input.

    A net that was trained on images of varying size sees the centre crop of the resized image, as protocol center does.
    One that takes images as they are sees the whole image, resized to its input's shape (bilinear), in any format that
    Pillow reads.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not an image; the file is named.
    """
    try:
        if input.short_side is None:
            return _whole_image(path, input.image_shape)
        return make_protocol("center", input).view(Path(path).read_bytes())
    except (UndecodableImage, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not an image that can be read: {error}") from error


def _whole_image(path: str | os.PathLike, image_shape: tuple[int, int, int]) -> UInt8[np.ndarray, "h w c"]:
    height, width, channels = image_shape
    with Image.open(Path(path)) as file:
        image = file.convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(image, np.uint8).reshape(image_shape)
