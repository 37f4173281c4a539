"""The config's keys that only detection has, with the values of section 4.3, appendix A and Ren et al. 2015."""

from resnet_jax.config_rules import Rule

METRICS = ("voc_2007", "voc", "coco")
ROIS = ("pool", "align")
TRAINED = ("all", "proposals", "regions")

DETECTION_KEYS: dict[str, Rule] = {
    "data.train_sets": Rule("str", "voc/2007:train+validation", "NAME:SPLIT, or several with commas between them"),
    "data.validation_sets": Rule("str", None, "likewise; None: no validation", none=True),
    "data.test_sets": Rule("str", "voc/2007:test", "likewise, evaluated in whole"),
    "data.short_side": Rule("int", 600, "of whole scaled images, pixels", minimum=1),
    "data.long_side": Rule("int", 1000, "at most, pixels", minimum=1),
    "data.train_short_sides": Rule("numbers", (), "one drawn an image in training; (): data.short_side", minimum=1),
    "data.max_boxes": Rule("int", 100, "objects that an image can have", minimum=1),
    "detector.weights": Rule("str", None, "a weight file or name, for all but the new layers; None: none", none=True),
    "detector.freeze_at": Rule("int", 2, "of stem, stage1, stage2, ... so many are constant", minimum=0),
    "detector.anchor_sizes": Rule("numbers", (64, 128, 256, 512), "sides of squares, pixels", above=0),
    "detector.anchor_ratios": Rule("numbers", (0.5, 1, 2), "height / width", above=0),
    "detector.rpn_features": Rule("int", 512, "of the proposals' 3x3 layer", minimum=1),
    "detector.roi": Rule("str", "pool", "pool: Fast R-CNN's maximum; align: bilinear", ROIS),
    "detector.roi_size": Rule("int", 14, "side of a pooled region, positions; 7 for vgg16", minimum=1),
    "detector.context": Rule("bool", False, "the whole image beside each region, appendix B"),
    "detector.trains": Rule("str", "all", "what a step makes smaller: one loss, or both at once", TRAINED),
    "detector.start_from": Rule("str", None, "workdir of a detector whose variables come first", none=True),
    "detector.proposals_from": Rule("str", None, "workdir of a detector that proposes the regions", none=True),
    "sampling.proposals_before": Rule("int", 12000, "anchors that enter suppression, in training", minimum=1),
    "sampling.proposals": Rule("int", 2000, "proposals that leave it, in training", minimum=1),
    "sampling.proposal_overlap": Rule("float", 0.7, "above which the worse one goes, in tests too", above=0, below=1),
    "sampling.min_side": Rule("float", 16.0, "of a proposal, pixels, in tests too", minimum=0),
    "sampling.anchors": Rule("int", 256, "of an image", minimum=1),
    "sampling.anchor_fraction": Rule("float", 0.5, "of them positive, at most", above=0, below=1),
    "sampling.anchor_positive": Rule("float", 0.7, "least overlap of a positive one", above=0, below=1),
    "sampling.anchor_negative": Rule("float", 0.3, "overlap below which one is negative", above=0, below=1),
    "sampling.cross_boundary": Rule("bool", False, "whether anchors that leave the image train"),
    "sampling.regions": Rule("int", 64, "of an image", minimum=1),
    "sampling.region_fraction": Rule("float", 0.25, "of them with an object, at most", above=0, below=1),
    "sampling.region_positive": Rule("float", 0.5, "least overlap of one with an object", above=0, below=1),
    "sampling.region_background": Rule("float", 0.0, "least overlap of one without; 0.1 for VOC", minimum=0, below=1),
    "sampling.anchor_beta": Rule("float", 1 / 9, "where the anchors' smooth L1 becomes linear; 0: L1", minimum=0),
    "sampling.region_beta": Rule("float", 1.0, "likewise the regions'", minimum=0),
    "evaluate.metric": Rule("str", "voc_2007", "voc_2007: eleven points; voc: area; coco: its twelve numbers", METRICS),
    "evaluate.proposals_before": Rule("int", 6000, "anchors that enter suppression", minimum=1),
    "evaluate.proposals": Rule("int", 300, "proposals that leave it", minimum=1),
    "evaluate.score": Rule("float", 0.05, "least probability of a detection", minimum=0, below=1),
    "evaluate.overlap": Rule("float", 0.3, "above which the worse one of a class goes", above=0, below=1),
    "evaluate.detections": Rule("int", 100, "of an image", minimum=1),
    "evaluate.refinement": Rule("bool", False, "classify the regressed boxes, too, appendix B"),
    "evaluate.voting": Rule("float", None, "least overlap of those that vote; None: off", above=0, below=1, none=True),
    "evaluate.flip": Rule("bool", False, "classify regions on mirrored images, too"),
    "evaluate.short_sides": Rule(
        "numbers",
        (),
        "scales that classify regions; (): data.short_side; localization: of whole images; (): a crop",
        minimum=1,
    ),
    "evaluate.train": Rule("bool", False, "test the training images, too, at the end"),
}
