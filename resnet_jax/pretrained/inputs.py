"""What nets of other libraries expect of their input where their files do not say it, by where they are from.

Means and standard deviations are in units of pixels, 0 to 255, red, green, blue.
"""

import numpy as np
from jaxtyping import Float

from resnet_jax.data.input_description import InputDescription
from resnet_jax.pretrained.class_names import default_class_names

# Of ImageNet's training images, rounded, divided by 255: torchvision's, timm's and most others' since.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The means of the channels of the mean image that is published with the nets of the paper, ResNet_mean.binaryproto.
_MSRA_MEAN = (123.1516, 115.9029, 103.0626)
_SHORT_SIDES = {"V1": 256, "V2": 232}


def torchvision_input(num_classes: int, *, weights: str = "V1") -> InputDescription:
    """What torchvision's nets for ImageNet were tested with: a centre crop of 224, resized by Pillow's bilinear.

    Args:
      num_classes: of the net; 1000 are taken for ImageNet's.
      weights: "V1", short side 256, or "V2", short side 232, as torchvision calls its two sets of weights.

    Raises:
      ValueError: other weights.
    """
    if weights not in _SHORT_SIDES:
        raise ValueError(f"weights={weights!r}; allowed: {', '.join(_SHORT_SIDES)}")
    return InputDescription(
        (224, 224, 3),
        in_pixels(IMAGENET_MEAN),
        in_pixels(IMAGENET_STD),
        default_class_names(num_classes),
        short_side=_SHORT_SIDES[weights],
        resize="pillow_bilinear",
        source=f"assumed: torchvision, IMAGENET1K_{weights}",
    )


def cifar_input(num_classes: int) -> InputDescription:
    """What the public PyTorch nets for CIFAR-10 (the .th files) expect: the 32x32 image, with ImageNet's statistics.

    Args:
      num_classes: of the net; 10 are taken for CIFAR-10's.
    """
    return InputDescription(
        (32, 32, 3),
        in_pixels(IMAGENET_MEAN),
        in_pixels(IMAGENET_STD),
        default_class_names(num_classes, cifar=True),
        source="assumed: pytorch_resnet_cifar10",
    )


def msra_input(num_classes: int, *, mean_image: Float[np.ndarray, "h w 3"] | None = None) -> InputDescription:
    """What the paper's own Caffe nets expect: a crop of 224, short side 256, less the mean, not divided.

    How they resized is not published; Pillow's bilinear is taken.

    Args:
      num_classes: of the net; 1000 are taken for ImageNet's.
      mean_image: the published mean image in the order red, green, blue, 224x224; None is the means of its channels.

    Raises:
      ValueError: the mean image has another shape, or values outside 0 to 255.
    """
    mean = np.asarray(_MSRA_MEAN if mean_image is None else mean_image, np.float32)
    if mean.shape not in ((3,), (224, 224, 3)):
        raise ValueError(f"the mean image has shape {mean.shape}; allowed is (224, 224, 3)")
    if not ((mean >= 0) & (mean <= 255)).all():
        raise ValueError("the mean image has values outside 0 to 255")
    return InputDescription(
        (224, 224, 3),
        mean,
        np.ones(3, np.float32),
        default_class_names(num_classes),
        short_side=256,
        resize="pillow_bilinear",
        source=f"assumed: the paper's Caffe nets, {'channel means' if mean_image is None else 'mean image'}",
    )


def in_pixels(values: tuple[float, ...], *, scale: float = 1 / 255) -> Float[np.ndarray, " c"]:
    """Statistics of pixels that were multiplied by `scale`, as statistics of the pixels themselves, float32."""
    return (np.asarray(values, np.float64) / scale).astype(np.float32)
