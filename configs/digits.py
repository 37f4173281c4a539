"""Handwritten digits: the quick start, and residual against plain nets where no data set has to be fetched.

Data: the 1,797 scans of 8x8 pixels that scikit-learn carries, built into a TFDS data set on first use,
without a network. Nets: the CIFAR family of section 4.2 (6n+2 layers, option A shortcuts), each with its
plain twin; on 8x8 images its three stages are 8x8, 4x4 and 2x2. Recipe: that of section 4.2, shortened to 40
epochs: batch 128, learning rate 0.1, divided by 10 after 50 % and 75 %, weight decay 1e-4, momentum 0.9.
Digits are not symmetric, so nothing is mirrored, and the border is 1 pixel.

Command:  resnet-jax train --config=configs/digits.py --workdir=runs/digits
          resnet-jax train --config=configs/digits.py:plain56 --workdir=runs/digits_plain56
Cost:     40 passes over the training images; two cores are enough.
Result:   the quick start is to end with a test error of at most 2.0 %; the paper has no number for digits.
"""

from ml_collections import ConfigDict

from resnet_jax.config import base_config
from resnet_jax.config_rules import unknown

VARIANTS = {
    "resnet20": "cifar_resnet20",
    "resnet56": "cifar_resnet56",
    "resnet110": "cifar_resnet110",
    "plain20": "cifar_plain20",
    "plain56": "cifar_plain56",
    "plain110": "cifar_plain110",
}


def get_config(variant: str = "resnet20") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(unknown("variant of configs/digits.py", variant, VARIANTS))
    config = base_config()
    config.model.name = VARIANTS[variant]

    config.data.name = "digits"
    config.data.pad = 1
    config.data.flip = False

    config.train.duration = 40
    config.train.unit = "epochs"
    config.train.log_every = 20

    config.schedule.unit = "percent"
    config.schedule.boundaries = (50, 75)

    config.evaluate.every = 5
    config.checkpoint.every = 10
    return config
