"""Class probabilities of image files, however many: read batch by batch, a bad file named and passed over."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32, UInt8

from resnet_jax.data.decode import UndecodableImage, decode
from resnet_jax.data.device_augment import normalize
from resnet_jax.data.input_description import InputDescription
from resnet_jax.data.resize import resize_image
from resnet_jax.environment import available_cores
from resnet_jax.evaluation.image_files import image_files
from resnet_jax.evaluation.prediction import Prediction
from resnet_jax.evaluation.protocols import center, make_protocol
from resnet_jax.evaluation.trained_net import load_net

PathLike = str | os.PathLike


def predict(
    images: PathLike | Sequence[PathLike],
    *,
    workdir: PathLike | None = None,
    weights: PathLike | None = None,
    checkpoint: str | int = "latest",
    top: int = 5,
    batch_size: int = 32,
) -> Iterator[Prediction]:
    """Classifies image files with a trained net, on the first device.

    Every image is converted to the net's channels. A net that was trained on images of varying size sees what protocol
    center does, the centre crop of the resized image; one that takes images as they are sees the whole image, resized
    to its input's shape if it has another. While the device computes one batch, threads decode the next, and no more
    than these two are in memory.

    Args:
      images: files (JPEG, PNG, BMP, GIF) and folders of such files, see `image_files`.
      workdir: of the run that trained the net; or
      weights: what `load_weights` takes.
      checkpoint: of the run "latest", "best", or a step.
      top: classes to return for each image, at most all.
      batch_size: images the device takes at once. The last batch is filled up, so there is one program to compile.

    Returns:
      An iterator with one prediction for each file, in order. What is wrong with the arguments is raised before it is
      returned; a file that cannot be read is a prediction with an error, and the rest go on. It ends with a
      FloatingPointError if a net gives scores that are not finite.

    Raises:
      FileNotFoundError: the workdir holds no run or no checkpoint, or there are no such weights.
      OSError: a folder cannot be listed.
      ValueError: no image at all, a folder without one (it is named), both or neither of workdir and weights, weights
        that do not say what input they take, a net without classes, or `top` or `batch_size` below 1.
    """
    for name, count in (("top", top), ("batch_size", batch_size)):
        if count < 1:
            raise ValueError(f"{name}={count}: must be at least 1")
    paths = image_files([images] if isinstance(images, str | os.PathLike) else images)
    net = load_net(workdir=workdir, weights=weights, checkpoint=checkpoint)
    model, variables, input = net.model, jax.device_put(net.variables), net.input
    assert input is not None
    if model.num_classes is None:
        raise ValueError("a net without a classifier (num_classes=None) predicts no classes")

    @jax.jit
    def probabilities(variables: dict, images: jax.Array) -> jax.Array:
        return jax.nn.softmax(center(model, variables, normalize(images, input.mean, input.std)))

    def score(images: np.ndarray) -> np.ndarray:
        return np.asarray(probabilities(variables, images))

    size = min(batch_size, len(paths))
    return _predictions(paths, _view(input), score, size=size, input=input, top=top)


View = Callable[[bytes], np.ndarray]
# An image as the net sees it, or why there is none.
_Read = np.ndarray | str


def _predictions(
    paths: list[str],
    view: View,
    score: Callable[[np.ndarray], np.ndarray],
    *,
    size: int,
    input: InputDescription,
    top: int,
) -> Iterator[Prediction]:
    pool = ThreadPoolExecutor(available_cores())

    def start_reading(first: int) -> list[Future[_Read]]:
        return [pool.submit(_read, path, view) for path in paths[first : first + size]]

    try:
        reading = start_reading(0)
        for first in range(0, len(paths), size):
            read = [future.result() for future in reading]
            reading = start_reading(first + size)
            rows = iter(_score_images([image for image in read if not isinstance(image, str)], score, size, input))
            for path, image in zip(paths[first : first + size], read, strict=True):
                if isinstance(image, str):
                    yield Prediction(path, (), image)
                else:
                    yield Prediction(path, _best(next(rows), input.class_names, top, path))
    finally:
        pool.shutdown(cancel_futures=True)


def _score_images(
    images: list[np.ndarray], score: Callable[[np.ndarray], np.ndarray], size: int, input: InputDescription
) -> Float32[np.ndarray, "n classes"]:
    """The images' probabilities, from a batch of always the same size."""
    if not images:
        return np.empty((0, len(input.class_names)), np.float32)
    batch = np.zeros((size, *input.image_shape), np.uint8)
    batch[: len(images)] = images
    return score(batch)[: len(images)]


def _best(
    probabilities: Float32[np.ndarray, " classes"], class_names: tuple[str, ...], top: int, path: str
) -> tuple[tuple[str, float], ...]:
    if not np.isfinite(probabilities).all():
        raise FloatingPointError(f"the net's scores of {path} are not finite")
    labels = np.argsort(-probabilities, kind="stable")[:top]
    return tuple((class_names[label], float(probabilities[label])) for label in labels)


def _read(path: str, view: View) -> _Read:
    try:
        return view(Path(path).read_bytes())
    except OSError as error:
        return error.strerror or str(error)
    except UndecodableImage as error:
        return f"not an image that can be read: {error}"


def _view(input: InputDescription) -> View:
    if input.short_side is not None:
        return make_protocol("center", input).view
    return partial(_whole_image, image_shape=input.image_shape, resize=input.resize)


def _whole_image(encoded: bytes, *, image_shape: tuple[int, int, int], resize: str) -> UInt8[np.ndarray, "h w c"]:
    height, width, channels = image_shape
    return resize_image(decode(encoded, channels=channels), (height, width), resize=resize)
