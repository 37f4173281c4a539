"""The four steps in which the paper trains a detector (Ren et al. 2015, section 3.2): four runs, one by one."""

import os
from pathlib import Path
from typing import Any

from resnet_jax.config import given_values, nest
from resnet_jax.detection.from_config import backbone_of

_VGG_STAGES = 5
NAMES = ("1_proposals", "2_regions", "3_proposals", "4_regions")


def four_steps(config: Any, workdir: str | os.PathLike) -> list[tuple[Path, Any]]:
    """The workdir and config of each run; the last one's is the detector.

    1. Proposals are trained alone, from the weights.
    2. Regions are trained on the proposals of 1, with layers of their own from the weights.
    3. Proposals are trained on the features of 2, which stay as they are.
    4. Regions are trained on the proposals of 3, conv5 and what follows it alone.

    Args:
      config: of joint training; each run is as long as it says.
      workdir: of all four, which have folders in it.

    Raises:
      ValueError: a config of another task, or of a part of the training.
    """
    if config.task != "detection":
        raise ValueError(f"task={config.task}: four steps train a detector")
    for key, joint in (("trains", "all"), ("start_from", None), ("proposals_from", None)):
        if (value := config.detector[key]) != joint:
            raise ValueError(f"detector.{key}={value}: must be {joint}, because the four steps set it themselves")
    net, folder = backbone_of(config), Path(workdir)
    all_stages = _VGG_STAGES if net is None else len(net.stage_sizes)
    places = [folder / name for name in NAMES]
    shared = {"detector.weights": None, "detector.freeze_at": all_stages}
    changes: list[dict[str, Any]] = [
        {"detector.trains": "proposals"},
        {"detector.trains": "regions", "detector.proposals_from": str(places[0])},
        {"detector.trains": "proposals", "detector.start_from": str(places[1]), **shared},
        {"detector.trains": "regions", "detector.start_from": str(places[2]), **shared},
    ]
    values = given_values(config)
    return [(place, nest(values | own)) for place, own in zip(places, changes, strict=True)]
