"""The one class of an image's objects, which localization needs and detection does not."""

import numpy as np

from resnet_jax.detection.annotations import Annotated


def image_label(example: Annotated, where: str) -> int:
    """The class number of all objects of an image.

    Args:
      example: the image and its objects.
      where: names it in a message.

    Raises:
      ValueError: it has no object, or objects of several classes.
    """
    labels = np.unique(example.labels)
    if len(labels) != 1:
        found = f"objects of the classes {labels.tolist()}" if len(labels) else "no object"
        raise ValueError(f"{where}: it has {found}; localization needs one object or more, all of one class")
    return int(labels[0])
