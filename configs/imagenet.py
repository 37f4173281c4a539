"""ImageNet (ILSVRC 2012): every net of Tables 1 to 3 with the paper's recipe, and with those of two later generations.

A variant is RECIPE,NET. NET is plain18, plain34, resnet18, resnet34, resnet50, resnet101 or resnet152; an A, B or C
after a residual net's depth is the shortcut option (resnet34A), B without one.

paper         Section 3.4: the shorter side uniform in [256, 480], a random 224x224 crop of the image or its mirror, the
              per-pixel mean subtracted, PCA colour; batch 256 in groups of 32 for batch norm, rate 0.1 divided by 10
              when the validation error has not fallen for 5 evaluations (the paper says "plateaus", not how long),
              momentum 0.9, weight decay 1e-4, no warm-up, 600,000 steps.
goyal90       Goyal et al. 2017: random area and aspect, 90 epochs, rate 0.1 per 256 images divided by 10 after 30, 60
              and 80 epochs, 5 epochs of warm-up from 0.1, Nesterov momentum, a block's last gamma 0, stride in the 3x3
              of bottlenecks, batch norm over 32. A batch below 256 needs schedule.warmup_start=0.
modern_short  "ResNet strikes back" (Wightman et al. 2021), A3: 100 epochs at 160 pixels, tested at 224; LAMB, binary
              cross-entropy, mixup, CutMix, RandAugment, cosine; stride in the 3x3, batch norm over 128. Its RandAugment
              has noise on the magnitude and timm's operations; here there is none, and they are torchvision's.
modern_long   As torchvision's second weights (2021): 600 epochs at 176 pixels, tested at 224; SGD, label smoothing,
              mixup, CutMix, TrivialAugment, cosine, averaged parameters; stride in the 3x3, batch norm over 128.
              Without its random erasing and repeated augmentation.

Command:  resnet-jax prepare imagenet2012 --source=FOLDER_WITH_THE_ORIGINAL_TARS
          resnet-jax measure imagenet2012
          resnet-jax train --config=configs/imagenet.py:paper,resnet50 --workdir=runs/resnet50
          resnet-jax evaluate --workdir=runs/resnet50 --protocol=ten_crop
          `measure` stores the mean image and the colours' components beside the data; without it the published
          channel means and components are used. On a small device, the same result in eight parts a step:
          --config.train.accumulation_steps=8
Cost:     154 million images (paper), 115 (goyal90), 128 (modern_short), 769 (modern_long); floating-point operations
          are 6 times an image's multiply-adds: 1.8, 3.6, 3.8, 7.6, 11.3 G for 18, 34, 50, 101, 152 layers at 224
          (with the stride in the 3x3: 4.1, 7.8, 11.5), about half of that at 160, 0.6 of it at 176 pixels.
Result:   the paper's errors in %, validation, 10-crop: top-1 plain18 27.94, resnet18A 27.88, plain34 28.54, resnet34A
          25.03, resnet34B 24.52, resnet34C 24.19, resnet50 22.85, resnet101 21.75, resnet152 21.43 (Tables 2 and 3).
          Goyal et al. report 23.60 for resnet50 (centre), "ResNet strikes back" 21.95 for A3.
"""

from ml_collections import ConfigDict

from resnet_jax.config import base_config
from resnet_jax.config_rules import unknown

NETS = {
    "plain18": ("plain18", None),
    "plain34": ("plain34", None),
    **{
        f"resnet{depth}{option}": (f"resnet{depth}", option or None)
        for depth in (18, 34, 50, 101, 152)
        for option in ("", "A", "B", "C")
    },
}


def get_config(variant: str = "paper,resnet50") -> ConfigDict:
    recipe, comma, net = variant.partition(",")
    if recipe not in RECIPES:
        raise ValueError(unknown("recipe of configs/imagenet.py", recipe, RECIPES))
    if net not in NETS:
        raise ValueError(unknown("net of configs/imagenet.py (RECIPE,NET)", net, NETS))
    config = base_config()
    config.model.name, config.model.shortcut = NETS[net]
    config.data.name = "imagenet2012"
    config.data.pipeline = "streamed"
    config.data.test_split = "validation"
    config.evaluate.batch_size = 250
    # 51,000 images are enough for the record's training error.
    config.evaluate.train_split = "train[:4%]"
    RECIPES[recipe](config)
    return config


def paper(config: ConfigDict) -> None:
    config.model.bn_group_size = 32
    config.data.crop = "scale"
    config.data.short_sides = (256, 480)
    config.data.pca_std = 0.1
    config.data.normalization = "pixel_mean"
    config.train.batch_size = 256
    config.train.duration = 600_000
    config.train.unit = "steps"
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.schedule.name = "plateau"
    config.schedule.learning_rate = 0.1
    config.schedule.factor = 0.1
    config.schedule.patience = 5
    # About once an epoch.
    config.evaluate.every = 5000
    config.checkpoint.every = 5000


def goyal90(config: ConfigDict) -> None:
    _by_epochs(config, 90)
    config.model.bn_group_size = 32
    config.data.crop = "inception"
    config.train.batch_size = 256
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 1e-4
    config.schedule.name = "piecewise"
    config.schedule.learning_rate = 0.1
    config.schedule.reference_batch_size = 256
    config.schedule.boundaries = (30, 60, 80)
    config.schedule.warmup = "linear"
    config.schedule.warmup_duration = 5
    config.schedule.warmup_start = 0.1
    if config.model.name.startswith("resnet"):
        config.model.zero_init_residual = True


def modern_short(config: ConfigDict) -> None:
    _modern(config, 100)
    config.data.image_size = 160
    config.evaluate.short_side = 236
    config.data.policy = "randaugment"
    # 6 on a scale to 10.
    config.data.policy_magnitude = 18
    config.data.mixup = 0.1
    config.train.loss = "sigmoid"
    config.train.batch_size = 2048
    config.optimizer.name = "lamb"
    # timm's LAMB does so unless told otherwise.
    config.optimizer.clip_norm = 1.0
    config.optimizer.weight_decay = 0.02
    config.schedule.learning_rate = 8e-3
    config.schedule.reference_batch_size = 2048


def modern_long(config: ConfigDict) -> None:
    _modern(config, 600)
    config.data.image_size = 176
    config.evaluate.short_side = 232
    config.data.policy = "trivialaugment"
    config.data.mixup = 0.2
    config.train.label_smoothing = 0.1
    # torchvision's 0.99998 an image's share of an epoch, every 32 steps of 1,024 images, comes to this a step.
    config.train.ema_decay = 0.99997
    config.train.batch_size = 1024
    config.optimizer.weight_decay = 2e-5
    config.schedule.learning_rate = 0.5
    config.schedule.reference_batch_size = 1024


def _modern(config: ConfigDict, epochs: int) -> None:
    _by_epochs(config, epochs)
    config.model.bn_group_size = 128
    config.data.crop = "inception"
    config.data.cutmix = 1.0
    config.evaluate.image_size = 224
    config.schedule.name = "cosine"
    config.schedule.warmup = "linear"
    config.schedule.warmup_duration = 5


def _by_epochs(config: ConfigDict, epochs: int) -> None:
    if config.model.name in ("resnet50", "resnet101", "resnet152"):
        config.model.stride_in = "3x3"
    config.data.normalization = "channel_mean_std"
    config.train.duration = epochs
    config.train.unit = "epochs"
    config.schedule.unit = "epochs"
    config.evaluate.every = 1
    config.checkpoint.every = 1


RECIPES = {"paper": paper, "goyal90": goyal90, "modern_short": modern_short, "modern_long": modern_long}
VARIANTS = [f"{recipe},{net}" for recipe in RECIPES for net in NETS]
