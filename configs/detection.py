"""Detection: Faster R-CNN on conv4 features, as the paper trained it, and as its successors do.

A variant is RECIPE_DATA_NET, or small. NET is resnet50, resnet101 or vgg16 (paper recipe alone); DATA is voc (VOC 2007
and 2012, tested on 2007) or coco (2014 with the paper's recipe, 2017 with the other).

paper   Section 4.3, appendix A, and Ren et al. 2015 for what it takes from there: shorter side 600, at most 1000; RoI
        pooling; 9 anchors (VOC) or 12 (COCO); 256 anchors and 64 regions an image; 300 proposals in tests; batch norm,
        conv1 and conv2 constant. Proposals and regions are trained together, which Ren et al. found as good as their
        four steps (`--four_steps`). VOC: 70,000 steps of 2 images at 0.001, a tenth of it
        after 50,000; COCO: 320,000 steps of 8 images, a tenth after 240,000. Weight decay 5e-4 (theirs; this paper is
        silent). The paper's nets have the stride in the 1x1, and their own published weights.
modern  As Detectron2's C4 baselines: shorter side 640 to 800 drawn an image, 800 in tests, at most 1333; RoIAlign; 15
        anchors; 512 regions; 1000 proposals in tests; 16 images a step at 0.02, 1,000 steps of warm-up; stride in the
        3x3, for torchvision's weights. VOC: 18,000 steps; COCO: 90,000.
small   18 layers of a quarter of the width, on images of 192 to 256 pixels, from scratch in minutes on two cores; for
        sets such as `experiments/shapes/make_shapes.py` draws.

Command:  resnet-jax train --config=configs/detection.py:paper_voc_resnet101 --workdir=runs/voc
                           --config.detector.weights=FILE --config.data.data_dir=DIR
          DIR holds TFDS's voc/2007 and voc/2012, or coco/2014; FILE is a net trained on ImageNet that
          resnet-jax convert has made, or a name of its catalogue. A folder of VOC's own form, or one of COCO's, is
          named by its path, data.train_sets=./VOCdevkit/VOC2007:trainval for example.
          resnet-jax evaluate --workdir=runs/voc --config.evaluate.refinement=true --config.evaluate.voting=0.5
Cost:     an image of 600 x 1000 pixels is 82 G multiply-adds to conv4 of resnet101, each region 0.73 G more.
Result:   the paper's: VOC 2007 test, AP at 0.5: vgg16 73.2, resnet101 76.4 (Table 7); COCO val 2014, AP at 0.5 and the
          mean of 0.5 to 0.95: vgg16 41.5 and 21.2, resnet101 48.4 and 27.2 (Table 8). Detectron2's C4 baselines: COCO
          resnet50 35.7 (mean AP); VOC resnet50 80.3 (at 0.5).
"""

from ml_collections import ConfigDict

from resnet_jax.config import base_config
from resnet_jax.config_rules import unknown

NETS = {"paper": ("resnet50", "resnet101", "vgg16"), "modern": ("resnet50", "resnet101")}
VARIANTS = (*(f"{recipe}_{data}_{net}" for recipe in NETS for data in ("voc", "coco") for net in NETS[recipe]), "small")


def get_config(variant: str = "paper_voc_resnet101") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(unknown("variant of configs/detection.py", variant, VARIANTS))
    config = base_config("detection")
    if variant == "small":
        small(config)
        return config
    recipe, data, net = variant.split("_")
    config.data.resize = "bilinear"
    config.evaluate.batch_size = 8
    {"paper": paper, "modern": modern}[recipe](config, data, net)
    if data == "voc":
        config.data.train_sets = "voc/2007:train+validation,voc/2012:train+validation"
        config.data.test_sets = "voc/2007:test"
    else:
        year = {"paper": 2014, "modern": 2017}[recipe]
        config.data.train_sets, config.data.test_sets = f"coco/{year}:train", f"coco/{year}:validation"
    config.evaluate.metric = {"voc": "voc_2007", "coco": "coco"}[data]
    return config


def paper(config: ConfigDict, data: str, net: str) -> None:
    config.model.name = net
    if net == "vgg16":
        config.detector.roi_size = 7
    else:
        config.model.pool_padding = "end"
    config.optimizer.weight_decay = 5e-4
    config.schedule.learning_rate = 0.001
    if data == "voc":
        config.detector.anchor_sizes = (128, 256, 512)
        config.sampling.region_background = 0.1
        config.train.batch_size = 2
        config.train.duration = 70_000
        config.schedule.boundaries = (50_000,)
    else:
        config.train.batch_size = 8
        config.train.duration = 320_000
        config.schedule.boundaries = (240_000,)
    config.evaluate.every = config.checkpoint.every = 5000


def modern(config: ConfigDict, data: str, net: str) -> None:
    config.model.name = f"{net}_v1_5"
    config.data.short_side, config.data.long_side = 800, 1333
    config.data.train_short_sides = (640, 672, 704, 736, 768, 800)
    config.detector.anchor_sizes = (32, 64, 128, 256, 512)
    config.detector.rpn_features = 1024
    config.detector.roi = "align"
    config.sampling.regions = 512
    config.sampling.cross_boundary = True
    config.sampling.min_side = 0.0
    config.sampling.anchor_beta = config.sampling.region_beta = 0.0
    config.evaluate.proposals = 1000
    config.evaluate.overlap = 0.5
    config.optimizer.weight_decay = 1e-4
    config.schedule.learning_rate = 0.02
    config.schedule.reference_batch_size = 16
    config.schedule.warmup = "linear"
    config.train.batch_size = 16
    if data == "voc":
        config.train.duration = 18_000
        config.schedule.boundaries = (12_000, 16_000)
        config.schedule.warmup_duration = 100
    else:
        config.train.duration = 90_000
        config.schedule.boundaries = (60_000, 80_000)
        config.schedule.warmup_duration = 1000
    config.evaluate.every = config.checkpoint.every = 5000


def small(config: ConfigDict) -> None:
    config.model.name = "resnet18"
    config.model.width = 16
    config.data.resize = "bilinear"
    config.data.short_side, config.data.long_side = 192, 256
    config.data.max_boxes = 20
    config.detector.freeze_at = 0
    config.detector.anchor_sizes = (32, 64, 128)
    config.detector.rpn_features = 64
    config.detector.roi = "align"
    config.detector.roi_size = 6
    config.sampling.proposals_before, config.sampling.proposals = 1000, 200
    config.sampling.anchors = 128
    config.sampling.regions = 32
    config.evaluate.metric = "voc"
    config.evaluate.proposals_before, config.evaluate.proposals = 1000, 100
    config.evaluate.overlap = 0.5
    config.evaluate.batch_size = 8
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 1.0
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.05
    config.schedule.warmup = "linear"
    config.schedule.warmup_duration = 100
    config.train.batch_size = 8
    config.train.duration = 2500
    config.train.log_every = 50
    config.evaluate.every = config.checkpoint.every = 500
