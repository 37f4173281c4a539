"""CIFAR-10: every net of Table 6 and the plain twins of Figure 6, with the paper's recipe (section 4.2).

Batch 128, momentum 0.9, weight decay 1e-4; learning rate 0.1, divided by 10 after 32k and 48k steps, 64k
steps in all. Batch norm over 64 examples, as on the paper's two GPUs. The per-pixel mean is subtracted; 4
pixels of padding, a random 32x32 crop, mirrored half of the time. Tested on the single 32x32 view, after the
last step. Shortcuts are option A. All 50,000 images train, as they did for the paper's final nets; the split
that chose its schedule is
    '--config.data.train_split=train[:45000]' '--config.data.validation_split=train[45000:]'
The 110-layer and deeper nets begin at 0.01 until the training error is below 80 %. The 1202-layer net stacks
its identical blocks and recomputes them in the backward pass, which changes memory and compile time alone.

Command:  resnet-jax prepare cifar10
          resnet-jax train --config=configs/cifar10.py:resnet20 --workdir=runs/cifar10_resnet20
          Where the set is in another folder: --config.data.data_dir=DIR
          A short run needs a schedule that fits: --config.train.duration=2000 --config.schedule.name=constant
Cost:     8.2 million images; floating-point operations, 6 times the multiply-adds of an image (forward and
          backward): resnet20 2.0e15, resnet32 3.4e15, resnet44 4.8e15, resnet56 6.2e15, resnet110 1.2e16,
          resnet1202 1.4e17 and a third more for what it recomputes.
Result:   the paper's test errors in %, one run each (Table 6): resnet20 8.75, resnet32 7.51, resnet44 7.17,
          resnet56 6.97, resnet110 6.43 (best of five; mean 6.61, std 0.16), resnet1202 7.93. Of the plain
          nets it has curves only (Figure 6), and more than 60 % for plain110.
"""

from ml_collections import ConfigDict

from resnet_jax.config import base_config
from resnet_jax.config_rules import unknown

VARIANTS = {
    "resnet20": "cifar_resnet20",
    "resnet32": "cifar_resnet32",
    "resnet44": "cifar_resnet44",
    "resnet56": "cifar_resnet56",
    "resnet110": "cifar_resnet110",
    "resnet1202": "cifar_resnet1202",
    "plain20": "cifar_plain20",
    "plain32": "cifar_plain32",
    "plain44": "cifar_plain44",
    "plain56": "cifar_plain56",
    "plain110": "cifar_plain110",
}


def get_config(variant: str = "resnet20") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(unknown("variant of configs/cifar10.py", variant, VARIANTS))
    config = base_config()
    config.model.name = VARIANTS[variant]
    config.model.bn_group_size = 64

    config.data.name = "cifar10"
    config.data.pad = 4
    config.data.flip = True
    config.data.normalization = "pixel_mean"

    config.train.batch_size = 128
    config.train.duration = 64_000
    config.train.unit = "steps"

    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4

    config.schedule.name = "piecewise"
    config.schedule.learning_rate = 0.1
    config.schedule.unit = "steps"
    config.schedule.boundaries = (32_000, 48_000)
    config.schedule.factor = 0.1

    if variant in ("resnet110", "plain110", "resnet1202"):
        # A plain twin differs from its residual net in the shortcuts alone.
        config.schedule.warmup = "until_error"
        config.schedule.warmup_learning_rate = 0.01
        config.schedule.warmup_error = 0.8
    if variant == "resnet1202":
        config.model.scan = True
        config.model.remat = True
    return config
