"""What a detection config describes: the detector, what trains it, how it is tested, and how images are framed."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from resnet_jax.data.input_description import InputDescription
from resnet_jax.detection.backbones import ResidualTail, ResidualTrunk, VggTail, VggTrunk, frozen_names
from resnet_jax.detection.batches import Framing
from resnet_jax.detection.faster_rcnn import FasterRcnn
from resnet_jax.detection.objective import Sampling
from resnet_jax.detection.settings import Anchors, AnchorSampling, Detecting, Proposing, RegionSampling
from resnet_jax.detection.testing import DetectionProtocol
from resnet_jax.models.registry import create_model
from resnet_jax.models.resnet import ResNet

# Of nets without weights, whose pixels are taken as they come: about the middle and the spread of photographs.
_MEAN, _STD = 128.0, 64.0
# Sides of padded images are multiples of it, and so of every trunk's stride.
_SIDE = 32
# What is not trained with a part of the loss alone.
_OF_REGIONS, _OF_PROPOSALS = ("tail/", "classifier/", "regressor/"), ("rpn/",)


def backbone_of(config: Any) -> ResNet | None:
    """The residual net that trunk and tail are cut from; None for VGG-16."""
    if config.model.name == "vgg16":
        return None
    options = {key: value for key, value in config.model.items() if key != "name" and value is not None}
    return create_model(config.model.name, num_classes=None, norm="frozen", **options)


def detector_of(config: Any, *, num_classes: int) -> FasterRcnn:
    """The detector that `config.model` and `config.detector` describe."""
    net, c = backbone_of(config), config.detector
    dtype = jnp.dtype(config.model.dtype)
    return FasterRcnn(
        trunk=VggTrunk(c.freeze_at, dtype) if net is None else ResidualTrunk(net, c.freeze_at),
        tail=VggTail(dtype) if net is None else ResidualTail(net),
        num_classes=num_classes,
        anchors=Anchors(tuple(map(float, c.anchor_sizes)), tuple(map(float, c.anchor_ratios))),
        rpn_features=c.rpn_features,
        roi=c.roi,
        roi_size=c.roi_size,
        context=c.context,
        dtype=dtype,
    )


def constant_layers(config: Any, detector: FasterRcnn) -> tuple[str, ...]:
    """Beginnings of the names of the detector's layers that do not train."""
    untrained = {"all": (), "proposals": _OF_REGIONS, "regions": _OF_PROPOSALS}[config.detector.trains]
    return (*(f"trunk/{name}" for name in frozen_names(detector.trunk)), *untrained)


def sampling_of(config: Any) -> Sampling:
    """What a training step looks at, as `config.sampling` says."""
    c = config.sampling
    return Sampling(
        training_proposals_of(config),
        anchor_sampling_of(config),
        region_sampling_of(config),
        anchor_beta=c.anchor_beta,
        region_beta=c.region_beta,
    )


def training_proposals_of(config: Any) -> Proposing:
    """The choice of the regions that train."""
    c = config.sampling
    return Proposing(c.proposals_before, c.proposals, c.proposal_overlap, c.min_side)


def anchor_sampling_of(config: Any) -> AnchorSampling:
    """The choice of the anchors that train."""
    c = config.sampling
    return AnchorSampling(c.anchors, c.anchor_fraction, c.anchor_positive, c.anchor_negative, c.cross_boundary)


def region_sampling_of(config: Any) -> RegionSampling:
    """The choice among proposals."""
    c = config.sampling
    return RegionSampling(c.regions, c.region_fraction, c.region_positive, c.region_background)


def tested_proposals_of(config: Any) -> Proposing:
    """The choice of the regions that are tested."""
    c, s = config.evaluate, config.sampling
    return Proposing(c.proposals_before, c.proposals, s.proposal_overlap, s.min_side)


def protocol_of(config: Any) -> DetectionProtocol:
    """How images are tested, as `config.evaluate` says."""
    c = config.evaluate
    return DetectionProtocol(
        tested_proposals_of(config),
        Detecting(c.score, c.overlap, c.detections),
        refinement=c.refinement,
        voting=c.voting,
        flip=c.flip,
    )


def protocol_name(config: Any) -> str:
    """How images are tested, in words, such as "600 px, refinement, voting 0.5"."""
    c = config.evaluate
    words = [f"{config.data.short_side} px"]
    words += ["refinement"] if c.refinement else []
    words += [] if c.voting is None else [f"voting {c.voting:g}"]
    words += ["flip"] if c.flip else []
    words += [f"scales {' '.join(map(str, c.short_sides))}"] if c.short_sides else []
    return ", ".join(words)


def input_of(config: Any, class_names: tuple[str, ...], pretrained: InputDescription | None) -> InputDescription:
    """What the detector expects of its input: the statistics of its weights, of a mean image the mean of each channel.

    Args:
      config: of the run.
      class_names: of the data.
      pretrained: what the weights were trained with; None without weights.
    """
    mean, std, source = pixel_statistics(pretrained)
    return InputDescription(
        image_shape=(config.data.short_side, config.data.long_side, 3),
        mean=mean,
        std=std,
        class_names=class_names,
        short_side=config.data.short_side,
        resize=config.data.resize,
        source=source,
    )


def pixel_statistics(pretrained: InputDescription | None) -> tuple[np.ndarray, np.ndarray, str]:
    """Mean and standard deviation of each channel, and where they are from: the weights, or assumed without any."""
    if pretrained is None:
        return np.full(3, _MEAN, np.float32), np.full(3, _STD, np.float32), "assumed: the middle of the range"
    mean, std = (np.asarray(value, np.float32) for value in (pretrained.mean, pretrained.std))
    return mean.mean((0, 1)) if mean.ndim == 3 else mean, std, pretrained.source


def framing_of(config: Any, mean: np.ndarray, *, training: bool = False) -> Framing:
    """How images are scaled and padded.

    Args:
      config: of the run.
      mean: of each channel, in pixel values, what padding is filled with.
      training: whether their sizes are drawn from those of training.
    """
    sides = tuple(map(int, config.data.train_short_sides)) if training else ()
    return Framing(
        short_side=max(sides, default=config.data.short_side),
        long_side=config.data.long_side,
        stride=_SIDE,
        max_boxes=config.data.max_boxes,
        fill=fill_of(mean),
        resize=config.data.resize,
        short_sides=sides,
    )


def fill_of(mean: np.ndarray) -> tuple[int, int, int]:
    """The colour, 0 to 255, nearest to what becomes 0 when the image is normalised."""
    red, green, blue = (int(round(float(value))) for value in mean)
    return red, green, blue
