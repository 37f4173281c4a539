"""What a localization config describes: the net, what trains it, how it is tested, and how images are framed."""

from typing import Any

import numpy as np

from resnet_jax.data.input_description import InputDescription
from resnet_jax.detection.batches import Framing
from resnet_jax.detection.from_config import anchor_sampling_of, fill_of, pixel_statistics, region_sampling_of
from resnet_jax.detection.settings import Anchors
from resnet_jax.detection.streaming import ExampleFraming
from resnet_jax.localization.crops import CropFraming
from resnet_jax.localization.objective import per_class_proposals, per_class_regions
from resnet_jax.localization.ordered_views import Looking
from resnet_jax.localization.per_class_rpn import PerClassRpn
from resnet_jax.localization.region_net import RegionNet
from resnet_jax.models.registry import create_model
from resnet_jax.models.resnet import ResNet
from resnet_jax.training.objective import Objective


def net_of(config: Any) -> ResNet:
    """The net whose layers come first."""
    options = {key: value for key, value in config.model.items() if key != "name" and value is not None}
    return create_model(config.model.name, num_classes=None, **options)


def localizer_of(config: Any, *, num_classes: int) -> PerClassRpn | RegionNet:
    """The module that `config.localizer.trains` says."""
    c = config.localizer
    if c.trains == "regions":
        return RegionNet(net_of(config), num_classes, config.data.image_size)
    anchors = Anchors(tuple(map(float, c.anchor_sizes)), tuple(map(float, c.anchor_ratios)))
    return PerClassRpn(net_of(config), num_classes, anchors)


def objective_of(config: Any, localizer: PerClassRpn | RegionNet) -> Objective:
    """What a step makes smaller."""
    c = config.sampling
    if isinstance(localizer, RegionNet):
        return per_class_regions(localizer, region_sampling_of(config), seed=config.seed, beta=c.region_beta)
    return per_class_proposals(localizer, anchor_sampling_of(config), seed=config.seed, beta=c.anchor_beta)


def framing_of(config: Any, mean: np.ndarray) -> ExampleFraming:
    """What training makes of images: random crops for anchors, whole images for regions."""
    c = config.data
    common: dict[str, Any] = {"max_boxes": c.max_boxes, "fill": fill_of(mean), "resize": c.resize}
    if config.localizer.trains == "regions":
        return Framing(c.short_side, c.long_side, **common)
    low, high = map(int, c.short_sides)
    return CropFraming(c.image_size, (low, high), config.localizer.least_share, **common)


def looking_of(config: Any) -> Looking:
    """What a test makes of images, as `config.evaluate` says."""
    return Looking(
        side=config.data.image_size,
        short_side=config.evaluate.short_side,
        short_sides=tuple(map(int, config.evaluate.short_sides)),
        cut_side=config.data.short_side if config.localizer.trains == "regions" else None,
        resize=config.data.resize,
    )


def protocol_name(config: Any) -> str:
    """How images are tested, in words, such as "dense 224 256, 200 regions"."""
    sides = " ".join(map(str, map(int, config.evaluate.short_sides)))
    words = [f"dense {sides}" if sides else "1-crop"]
    words += [f"{config.evaluate.proposals} regions"] if config.localizer.trains == "regions" else []
    return ", ".join(words)


def input_of(config: Any, class_names: tuple[str, ...], pretrained: InputDescription | None) -> InputDescription:
    """What the localizer expects of its input, see `pixel_statistics`.

    Args:
      config: of the run.
      class_names: of the data.
      pretrained: what the weights were trained with; None without weights.
    """
    mean, std, source = pixel_statistics(pretrained)
    side = config.data.image_size
    return InputDescription(
        image_shape=(side, side, 3),
        mean=mean,
        std=std,
        class_names=class_names,
        short_side=config.evaluate.short_side,
        resize=config.data.resize,
        source=source,
    )
