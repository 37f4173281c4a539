"""What nets expect of their input as the JSON files beside them say it: timm's and Hugging Face's."""

import math
from dataclasses import dataclass
from typing import Any

from resnet_jax.data.input_description import InputDescription
from resnet_jax.pretrained.class_names import default_class_names, recognized_class_names
from resnet_jax.pretrained.inputs import IMAGENET_MEAN, IMAGENET_STD, in_pixels
from resnet_jax.pretrained.json_section import LARGEST_IMAGE, JsonSection

_TIMM_RESIZES = {"bilinear": "pillow_bilinear", "bicubic": "pillow_bicubic"}
_TIMM_CROPS = ("center", "squash", "border")
# Pillow's numbers.
_RESAMPLES = {2: "pillow_bilinear", 3: "pillow_bicubic"}
# All of them do the same; the first is what transformers takes for a ResNet whose file names none.
_CONVNEXT = (
    "ConvNextImageProcessor", "ConvNextImageProcessorFast", "ConvNextImageProcessorPil", "ConvNextFeatureExtractor",
)  # fmt: skip
_KNOWN_STEPS = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")


@dataclass(frozen=True)
class StatedInput:
    """What a file says about a net's input.

    Attributes:
      input: the same as an `InputDescription`; None where that cannot express it.
      reason: why it cannot; None where it can.
    """

    input: InputDescription | None
    reason: str | None = None


def timm_input(config: Any, *, num_classes: int, channels: int) -> StatedInput:
    """Reads what timm's config.json says, for testing: its test size and crop where it names some.

    Args:
      config: the file's content, as JSON reads it; of the present form or the one without "pretrained_cfg".
      num_classes: of the net that it lies beside.
      channels: of the images that this net takes.

    Raises:
      ValueError: a value is none of those allowed, or contradicts the net; the message names the key.
    """
    top = JsonSection(config, "config.json")
    stated = top if top.get("pretrained_cfg") is None else top.section("pretrained_cfg")
    keys = [key for key in ("test_input_size", "input_size") if stated.get(key) is not None]
    if not keys and channels != len(IMAGENET_MEAN):
        return StatedInput(None, f"images of {channels} channels: no input_size is stated")
    height, width = 224, 224
    # The first counts, and both must be the net's.
    for key in reversed(keys):
        found, height, width = _size(stated, key)
        if found != channels:
            raise stated.wrong(key, f"{channels} channels, as many as the net takes")
    crop = stated.number("crop_pct", 0.1, 1.0, 0.875)
    crop = stated.number("test_crop_pct", 0.1, 1.0, crop)
    resize, crop_mode = stated.text("interpolation", "bicubic"), stated.choice("crop_mode", _TIMM_CROPS, "center")
    mean = stated.numbers("mean", channels, 0.0, 1.0, IMAGENET_MEAN[:channels])
    std = stated.numbers("std", channels, 0.001, 1.0, IMAGENET_STD[:channels])
    for section in (stated, top):
        if section.get("num_classes", num_classes) != num_classes:
            raise section.wrong("num_classes", f"{num_classes}, as many as the net has")
    # Both may name the classes; the outer object counts.
    names = _names(stated if top.get("label_names") is None else top, "label_names", num_classes)
    if crop_mode != "center":
        return StatedInput(None, f"crop_mode={crop_mode!r}: only the centre of an image in its proportions is taken")
    if resize not in _TIMM_RESIZES:
        return StatedInput(None, f"interpolation={resize!r}: only {' and '.join(_TIMM_RESIZES)} are known")
    if height != width:
        return StatedInput(None, f"{height}x{width} pixels: timm's resizing to anything but squares is its own")
    return StatedInput(
        InputDescription(
            (height, width, channels),
            in_pixels(mean),
            in_pixels(std),
            names,
            short_side=math.floor(height / crop),
            resize=_TIMM_RESIZES[resize],
            source="stated: timm, config.json",
        )
    )


def huggingface_input(preprocessor: Any, config: Any, *, num_classes: int) -> StatedInput:
    """Reads what Hugging Face's preprocessor_config.json and config.json say, of the present form or the old.

    Args:
      preprocessor: the content of preprocessor_config.json, as JSON reads it.
      config: that of config.json, which names the classes.
      num_classes: of the net that they lie beside.

    Raises:
      ValueError: a value is none of those allowed; the message names file and key.
    """
    stated, net = JsonSection(preprocessor, "preprocessor_config.json"), JsonSection(config, "config.json")
    names, channels = _names(net, "id2label", num_classes), net.choice("num_channels", (1, 3), 3)
    kinds = ("image_processor_type", "feature_extractor_type")
    kind = next((stated.text(key) for key in kinds if stated.get(key) is not None), _CONVNEXT[0])
    if kind not in _CONVNEXT:
        return StatedInput(None, f"{kind}: of Hugging Face's image processors only ConvNext's, a ResNet's, is known")
    size, crop = _short_edge(stated, "size"), stated.number("crop_pct", 0.1, 1.0, 224 / 256)
    resample = stated.count("resample", 0, 5, 3)
    scale = stated.number("rescale_factor", 1e-4, 1.0, 1 / 255) if stated.flag("do_rescale", True) else 1.0
    # The product of 255 and the number next to 1 / 255 need not be 1.
    white = 255 * scale + 1e-6
    mean = stated.numbers("image_mean", channels, 0.0, white, (0.5,))
    std = stated.numbers("image_std", channels, 0.001, white, (0.5,))
    if not stated.flag("do_normalize", True):
        mean, std = (0.0,) * channels, (1.0,) * channels
    others = [key for key in stated.keys() if key.startswith("do_") and key not in _KNOWN_STEPS]
    if wanted := [key for key in others if stated.flag(key, False)]:
        return StatedInput(None, f"{wanted[0]}=True: {kind} is known without this step")
    as_they_are = not stated.flag("do_resize", True)
    if resample not in _RESAMPLES:
        return StatedInput(None, f"resample={resample}: of Pillow's, only 2 (bilinear) and 3 (bicubic) are known")
    if size >= 384 and not as_they_are:
        return StatedInput(None, f"size={size}: from 384 pixels on {kind} warps images to squares")
    return StatedInput(
        InputDescription(
            (size, size, channels),
            in_pixels(mean, scale=scale),
            in_pixels(std, scale=scale),
            names,
            short_side=None if as_they_are else int(size / crop),
            resize=_RESAMPLES[resample],
            source="stated: Hugging Face, preprocessor_config.json",
        )
    )


def _size(section: JsonSection, key: str) -> tuple[int, int, int]:
    """Channels, height and width."""
    value = section.get(key)
    if not isinstance(value, list) or len(value) != 3 or not all(type(side) is int for side in value):
        raise section.wrong(key, "three whole numbers: channels, height, width")
    channels, height, width = value
    if channels not in (1, 3) or not all(1 <= side <= LARGEST_IMAGE for side in (height, width)):
        raise section.wrong(key, f"1 or 3 channels of 1 to {LARGEST_IMAGE} pixels a side")
    return channels, height, width


def _short_edge(section: JsonSection, key: str) -> int:
    """The shorter side: a number, or in the present form {"shortest_edge": number}."""
    if isinstance(section.get(key), dict):
        return section.section(key).count("shortest_edge", 1, LARGEST_IMAGE)
    return section.count(key, 1, LARGEST_IMAGE, 384)


def _names(section: JsonSection, key: str, num_classes: int) -> tuple[str, ...]:
    """The classes' names: a list, or an object by class number in which some may be missing."""
    value = section.get(key)
    if value is None:
        return default_class_names(num_classes)
    if isinstance(value, dict):
        numbers = [str(number) for number in range(num_classes)]
        if not set(value) <= set(numbers):
            raise ValueError(f"{section.where}: {key} names classes that the net, which has {num_classes}, lacks")
        section = JsonSection({key: [value.get(number, number) for number in numbers]}, section.where)
    names = section.texts(key)
    if len(names) != num_classes:
        raise ValueError(f"{section.where}: {key} has {len(names)} names, the net has {num_classes} classes")
    return recognized_class_names(names)
