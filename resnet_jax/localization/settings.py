"""Sizes, counts and thresholds of localization: the paper's values (appendix C), and where it has none, ours.

The paper gives 224-pixel crops, 8 anchors of an image, 1:1, and 200 proposals of a class. Anchors, thresholds and
suppression are then those of Ren et al. 2015, but for what crops make different: an object's box ends with its crop, so
there is no anchor of 512 pixels, and most anchors of 256 leave it, so those train, too. Regions are sampled as R-CNN
does (Girshick et al. 2014): one with an object to three without.
"""

from resnet_jax.detection.settings import Anchors, AnchorSampling, Proposing, RegionSampling

CROP_ANCHORS = Anchors(sizes=(64.0, 128.0, 256.0))
CROP_SAMPLING = AnchorSampling(most=8, fraction=0.5, positive=0.7, negative=0.3, cross_boundary=True)
# Of a class; the shortest side is in pixels of the image's file.
CLASS_PROPOSING = Proposing(before=2000, after=200, threshold=0.7, min_side=16.0)
# Of an image: the paper's 256 regions are those of 64 images.
WARPED_SAMPLING = RegionSampling(most=4, fraction=0.25, positive=0.5, background=0.0)
# Shorter sides of the images in dense testing, in pixels: those of section 3.4.
SCALES = (224, 256, 384, 480, 640)
# Predicted classes of an image that get a box.
BEST_CLASSES = 5
