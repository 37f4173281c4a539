"""Localization: boxes of one class by per-class regression, of anchors and then of warped regions (appendix C).

A variant is RECIPE_NET, or RECIPE_NET_regions for the second step: paper_resnet50, paper_resnet101, or small.

paper    Appendix C: random crops of 224 pixels, 256 of them a step, 8 anchors of each, half of them with an object, and
         a logistic output and four offsets for each anchor and class. The paper gives neither anchors nor schedule: 64,
         128 and 256 pixels by three ratios, and 15 epochs at 0.01, a tenth of it after 10.
         Regions: the best 200 boxes of an image's class, warped to 224 pixels: 256 of 64 images a step, one with an
         object to three without, for 5 epochs, the rate a tenth after 3.
small    18 layers of a quarter of the width on crops of 96 pixels, from scratch in minutes on two cores; for sets such
         as `experiments/shapes/make_shapes.py --objects=1` draws.

Command:  resnet-jax train --config=configs/localization.py:paper_resnet101 --workdir=runs/boxes
                           --config.localizer.weights=FILE --config.data.data_dir=DIR
                           --config.data.train_sets=SET:train --config.data.test_sets=SET:validation
          resnet-jax train --config=configs/localization.py:paper_resnet101_regions --workdir=runs/regions
                           --config.localizer.proposals_from=runs/boxes
          with the other keys as before. SET is a set whose images have one class and boxes of it, such as
          caltech_birds2011, or ImageNet with its boxes as a folder in VOC's form. FILE is a net trained on it.
          resnet-jax evaluate --workdir=runs/regions --config.evaluate.short_sides=224,256,384,480,640
          and with --scores=S.npz, which resnet-jax evaluate --save_scores has made of a classifier, the boxes of the
          five classes that these put first.
Cost:     resnet101: 7.8 G multiply-adds an image and a region.
Result:   the paper's, top-5 localization error on ImageNet's validation images (Table 13): with the true class 13.3 %
          (one crop) and 11.7 % (dense); with predicted classes 14.4 % and, after the regions, 10.6 %; ensemble 8.9 %.
"""

from ml_collections import ConfigDict

from resnet_jax.config import base_config
from resnet_jax.config_rules import unknown

NETS = ("resnet50", "resnet101")
FIRST = (*(f"paper_{net}" for net in NETS), "small")
VARIANTS = (*FIRST, *(f"{name}_regions" for name in FIRST))


def get_config(variant: str = "paper_resnet101") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(unknown("variant of configs/localization.py", variant, VARIANTS))
    config = base_config("localization")
    name, regions = variant.removesuffix("_regions"), variant.endswith("_regions")
    if name == "small":
        small(config, regions)
    else:
        paper(config, name.removeprefix("paper_"), regions)
    return config


def common(config: ConfigDict, regions: bool) -> None:
    config.localizer.trains = "regions" if regions else "proposals"
    config.sampling.anchors = 8
    # Most large anchors leave a crop.
    config.sampling.cross_boundary = True
    config.sampling.proposals_before, config.sampling.proposals = 2000, 200
    config.sampling.regions = 4
    config.evaluate.proposals_before, config.evaluate.proposals = 2000, 200


def paper(config: ConfigDict, net: str, regions: bool) -> None:
    common(config, regions)
    config.model.name = net
    config.model.pool_padding = "end"
    config.model.bn_group_size = 32
    config.data.train_sets, config.data.test_sets = "caltech_birds2011:train", "caltech_birds2011:test"
    config.data.short_side, config.data.long_side = 480, 1000
    config.evaluate.batch_size = 16
    config.evaluate.every = config.checkpoint.every = 1
    config.train.batch_size = 64 if regions else 256
    config.train.unit = config.schedule.unit = "epochs"
    config.train.duration = 5 if regions else 15
    config.schedule.learning_rate = 0.01
    config.schedule.boundaries = (3,) if regions else (10,)


def small(config: ConfigDict, regions: bool) -> None:
    common(config, regions)
    config.model.name = "resnet18"
    config.model.width = 16
    config.data.image_size = 96
    config.data.short_sides = (96, 128)
    config.data.short_side, config.data.long_side = 128, 256
    config.data.max_boxes = 1
    config.data.train_sets, config.data.test_sets = "./shapes:train", "./shapes:test"
    config.localizer.anchor_sizes = (24, 48)
    config.sampling.proposals_before, config.sampling.proposals = 500, 50
    config.sampling.min_side = 4.0
    config.evaluate.short_side = 112
    config.evaluate.proposals_before, config.evaluate.proposals = 500, 20
    config.evaluate.batch_size = 16
    config.train.batch_size = 16
    config.train.duration = 1000
    config.train.log_every = 50
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.05
    config.schedule.warmup = "linear"
    config.schedule.warmup_duration = 50
    config.evaluate.every = config.checkpoint.every = 500
