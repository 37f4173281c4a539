"""The config's keys that only localization has, with the values of appendix C, and those that it shares."""

from resnet_jax.config_rules import Rule

LOCALIZERS = ("proposals", "regions")

LOCALIZATION_KEYS: dict[str, Rule] = {
    "localizer.trains": Rule("str", "proposals", "proposals: of each class, on crops; regions: warped", LOCALIZERS),
    "localizer.weights": Rule("str", None, "a weight file or name, for all but the new layers; None: none", none=True),
    "localizer.proposals_from": Rule("str", None, "regions: workdir of the localizer that proposes them", none=True),
    "localizer.anchor_sizes": Rule("numbers", (64, 128, 256), "sides of squares, pixels of the crop", above=0),
    "localizer.anchor_ratios": Rule("numbers", (0.5, 1, 2), "height / width", above=0),
    "localizer.least_share": Rule("float", 0.5, "of an object's area that a crop must hold", above=0, below=1),
}

# Keys of other tasks that mean the same here.
SHARED_KEYS = (
    *("model.norm", "model.bn_group_size"),
    *("data.train_sets", "data.validation_sets", "data.test_sets", "data.max_boxes"),
    *("data.image_size", "data.short_sides", "data.short_side", "data.long_side"),
    *("sampling.proposals_before", "sampling.proposals", "sampling.proposal_overlap", "sampling.min_side"),
    *("sampling.anchors", "sampling.anchor_fraction", "sampling.anchor_positive", "sampling.anchor_negative"),
    *("sampling.cross_boundary", "sampling.anchor_beta"),
    *("sampling.regions", "sampling.region_fraction", "sampling.region_positive", "sampling.region_background"),
    "sampling.region_beta",
    *("evaluate.proposals_before", "evaluate.proposals", "evaluate.short_side", "evaluate.short_sides"),
    "evaluate.train",
)
