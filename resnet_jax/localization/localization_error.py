"""The localization error of ILSVRC (Russakovsky et al. 2015, section 4.2), as in Tables 13 and 14."""

from collections.abc import Sequence
from typing import NamedTuple

from resnet_jax.detection.annotations import Annotated
from resnet_jax.detection.detected import Detected, check_detected, overlaps
from resnet_jax.localization.image_label import image_label


class LocalizationErrors(NamedTuple):
    """Images and those among them that were not localized; of several parts of a set both add up.

    Attributes:
      wrong: images.
      images: all of them.
    """

    wrong: int
    images: int

    @property
    def error(self) -> float:
        """The share of the images that is wrong.

        Raises:
          ValueError: no image.
        """
        if not self.images:
            raise ValueError("no image was counted, so there is no error")
        return self.wrong / self.images


def localization_errors(
    guesses: Sequence[Detected], truths: Sequence[Annotated], *, num_classes: int, threshold: float = 0.5
) -> LocalizationErrors:
    """Counts the images for which no guess has the image's class and overlaps one of its objects enough.

    Areas are those of continuous coordinates, without the pixel more of ILSVRC's own program.

    Args:
      guesses: of each image, k boxes with a class each, in pixels of its file: 5 predicted classes, or the true one
        alone; scores are not looked at.
      truths: of the same images in the same order; the objects of an image are of one class, and ignored ones count.
      num_classes: of the set.
      threshold: a right box overlaps an object by more than this.

    Raises:
      ValueError: guesses that do not fit the images, not as many for each image, none, or an image with no object or
        several classes.
    """
    check_detected(guesses, truths, num_classes)
    numbers = sorted({len(guess.labels) for guess in guesses})
    if len(numbers) != 1 or numbers[0] < 1:
        raise ValueError(f"images have {', '.join(map(str, numbers))} guesses; every image must have the same, from 1")
    wrong = 0
    for index, (guess, truth) in enumerate(zip(guesses, truths, strict=True)):
        boxes = guess.boxes[guess.labels == image_label(truth, f"image {index} ({truth.name})")]
        wrong += not (overlaps(boxes, truth.boxes) > threshold).any()
    return LocalizationErrors(wrong, len(truths))
