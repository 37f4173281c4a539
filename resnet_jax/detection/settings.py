"""Sizes, counts and thresholds of a detector, with the paper's values (section 4.3, appendix A; Ren et al. 2015)."""

from typing import NamedTuple


class Anchors(NamedTuple):
    """The boxes that proposals start from, at every position.

    Attributes:
      sizes: sides of squares of the anchors' areas, in pixels; for VOC without the smallest.
      ratios: of height to width.
    """

    sizes: tuple[float, ...] = (64.0, 128.0, 256.0, 512.0)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)

    @property
    def per_position(self) -> int:
        """How many there are at a position."""
        return len(self.sizes) * len(self.ratios)


class Proposing(NamedTuple):
    """How an image's proposals are chosen.

    Attributes:
      before: best anchors that enter non-maximum suppression; all if there are fewer.
      after: proposals that leave it.
      threshold: overlap above which the worse of two boxes goes.
      min_side: shorter sides are dropped, in pixels of the resized image.
    """

    before: int = 6000
    after: int = 300
    threshold: float = 0.7
    min_side: float = 16.0


class AnchorSampling(NamedTuple):
    """Which anchors of an image train the proposals.

    Attributes:
      most: sampled.
      fraction: of them positive, at most.
      positive: least overlap of a positive one.
      negative: overlap below which one is negative; those between are left out.
      cross_boundary: whether anchors that leave the image train, too. "Otherwise training does not converge."
    """

    most: int = 256
    fraction: float = 0.5
    positive: float = 0.7
    negative: float = 0.3
    cross_boundary: bool = False


class RegionSampling(NamedTuple):
    """Which proposals of an image train the classification of regions.

    Attributes:
      most: sampled.
      fraction: of them with an object, at most.
      positive: least overlap of one with an object.
      background: least overlap of one without; 0.1 for VOC.
    """

    most: int = 64
    fraction: float = 0.25
    positive: float = 0.5
    background: float = 0.0


class Detecting(NamedTuple):
    """How detections are chosen from classified regions.

    Attributes:
      score: least probability.
      threshold: overlap above which the worse of two boxes of a class goes.
      most: detections of an image.
    """

    score: float = 0.05
    threshold: float = 0.3
    most: int = 100


# Weights of offsets of regions: one by the standard deviations 0.1, 0.1, 0.2 and 0.2.
REGION_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
ANCHOR_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
