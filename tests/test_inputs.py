"""A foreign net sees the pixels that its own library would give it, and a file that says nonsense is refused."""

import json
import re

import numpy as np
import pytest

from resnet_jax.pretrained.class_names import CIFAR10_NAMES, imagenet_class_names, readable
from resnet_jax.pretrained.description import input_settings
from resnet_jax.pretrained.inputs import cifar_input, msra_input, torchvision_input
from resnet_jax.pretrained.stated_inputs import huggingface_input, timm_input

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# 255 times them, as torchvision's own reference code for pixels has them.
PIXEL_MEAN, PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def assert_input(input, *, size, short_side, resize, mean=PIXEL_MEAN, std=PIXEL_STD):
    assert (input.image_shape, input.short_side, input.resize) == ((size, size, len(std)), short_side, resize)
    for found, expected in ((input.mean, mean), (input.std, std)):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    # What a weight file keeps of it.
    json.dumps(input_settings(input))


@pytest.mark.parametrize("weights, short_side", [("V1", 256), ("V2", 232)])
def test_torchvision_nets(weights, short_side):
    input = torchvision_input(1000, weights=weights)
    assert_input(input, size=224, short_side=short_side, resize="pillow_bilinear")
    assert input.class_names == imagenet_class_names()
    assert input.source == f"assumed: torchvision, IMAGENET1K_{weights}"
    assert torchvision_input(3).class_names == ("0", "1", "2")
    with pytest.raises(ValueError, match="weights='V3'; allowed: V1, V2"):
        torchvision_input(1000, weights="V3")


def test_cifar_nets():
    assert_input(cifar_input(10), size=32, short_side=None, resize="area")
    assert cifar_input(10).class_names == CIFAR10_NAMES
    assert cifar_input(100).class_names[:2] == ("0", "1")


def test_msra_nets():
    mean, std = [123.1516, 115.9029, 103.0626], [1, 1, 1]
    assert_input(msra_input(1000), size=224, short_side=256, resize="pillow_bilinear", mean=mean, std=std)
    image = np.random.default_rng(0).uniform(0, 255, (224, 224, 3)).astype(np.float32)
    given = msra_input(1000, mean_image=image)
    np.testing.assert_array_equal(given.mean, image)
    assert given.source == "assumed: the paper's Caffe nets, mean image" != msra_input(1000).source
    for wrong in (image[:, :-1], np.full_like(image, np.nan), image - 256):
        with pytest.raises(ValueError, match="the mean image has"):
            msra_input(1000, mean_image=wrong)


# As timm 1.0 writes it for resnet50.a1_in1k.
TIMM = {
    "architecture": "resnet50",
    "num_classes": 1000,
    "num_features": 2048,
    "pretrained_cfg": {
        "tag": "a1_in1k", "custom_load": False, "input_size": [3, 224, 224], "test_input_size": [3, 288, 288],
        "fixed_input_size": False, "interpolation": "bicubic", "crop_pct": 0.95, "test_crop_pct": 1.0,
        "crop_mode": "center", "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "num_classes": 1000,
        "pool_size": [7, 7], "first_conv": "conv1", "classifier": "fc",
    },
}  # fmt: skip


def timm(**change):
    return {**TIMM, "pretrained_cfg": {**TIMM["pretrained_cfg"], **change}}


def test_timm_nets_are_tested_at_their_test_size():
    found = timm_input(TIMM, num_classes=1000, channels=3)
    assert_input(found.input, size=288, short_side=288, resize="pillow_bicubic")
    assert found.reason is None and found.input.class_names == imagenet_class_names()
    # resnet50.tv2_in1k: timm's way to say torchvision's 232.
    v2 = timm(input_size=[3, 176, 176], test_input_size=[3, 224, 224], test_crop_pct=0.965, interpolation="bilinear")
    assert_input(timm_input(v2, num_classes=1000, channels=3).input, size=224, short_side=232, resize="pillow_bilinear")


def test_timm_files_without_a_test_size_or_of_the_old_form():
    old = {"architecture": "resnet18", "input_size": [3, 160, 160], "crop_pct": 0.95, "num_classes": 7}
    found = timm_input({**old, "label_names": list("abcdefg")}, num_classes=7, channels=3).input
    assert_input(found, size=160, short_side=168, resize="pillow_bicubic")
    assert found.class_names == tuple("abcdefg")
    assert timm_input({"crop_pct": 0.95}, num_classes=7, channels=3).input.short_side == 235
    # timm's own defaults where a file says nothing.
    assert_input(timm_input({}, num_classes=2, channels=3).input, size=224, short_side=256, resize="pillow_bicubic")


def test_grey_timm_nets():
    grey = timm(
        input_size=[1, 28, 28], test_input_size=[1, 28, 28], test_crop_pct=None, crop_pct=1, mean=[0.1307], std=[0.3081]
    )
    input = timm_input(grey, num_classes=1000, channels=1).input
    assert_input(input, size=28, short_side=28, resize="pillow_bicubic", mean=[33.3285], std=[78.5655])


def test_a_timm_file_must_say_the_net_s_own_channels():
    for key in ("input_size", "test_input_size"):
        with pytest.raises(ValueError, match=rf"{key}=\[1, 28, 28\]; allowed: 3 channels, as many as the net takes"):
            timm_input(timm(**{key: [1, 28, 28]}), num_classes=1000, channels=3)
    with pytest.raises(ValueError, match=r"input_size=\[3, 224, 224\]; allowed: 1 channels"):
        timm_input(TIMM, num_classes=1000, channels=1)
    # timm's defaults are those of RGB images.
    found = timm_input({}, num_classes=2, channels=1)
    assert found.input is None and found.reason == "images of 1 channels: no input_size is stated"


@pytest.mark.parametrize("place", ["outer", "inner"])
@pytest.mark.parametrize(
    "labels, expected",
    [
        (list(imagenet_class_names()), imagenet_class_names()),
        ([readable(name) for name in imagenet_class_names()], imagenet_class_names()),
        ([f"dog {i}" for i in range(1000)], tuple(f"dog {i}" for i in range(1000))),
        ({"3": "cat"}, ("0", "1", "2", "cat", *(str(i) for i in range(4, 1000)))),
    ],
)
def test_timm_class_names(place, labels, expected):
    config = {**TIMM, "label_names": labels} if place == "outer" else timm(label_names=labels)
    assert timm_input(config, num_classes=1000, channels=3).input.class_names == expected


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"crop_mode": "squash"}, "crop_mode='squash'"),
        ({"crop_mode": "border"}, "crop_mode='border'"),
        ({"interpolation": "lanczos"}, "interpolation='lanczos'"),
        ({"test_input_size": [3, 224, 448]}, "224x448"),
    ],
)
def test_what_timm_does_and_a_description_cannot_say_has_a_reason(change, reason):
    found = timm_input(timm(**change), num_classes=1000, channels=3)
    assert found.input is None and reason in found.reason


HUGE = 10**400


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"test_input_size": [3, 224]},
            r"config.json: pretrained_cfg: test_input_size=\[3, 224\]; allowed: three whole",
        ),
        ({"test_input_size": [4, 224, 224]}, "1 or 3 channels of 1 to 4096"),
        ({"test_input_size": [3, 0, 0]}, "1 or 3 channels of 1 to 4096"),
        ({"test_input_size": [3, 10**6, 10**6]}, "1 or 3 channels of 1 to 4096"),
        ({"test_input_size": [3, 224.0, 224]}, "three whole numbers"),
        ({"test_input_size": "3x224"}, "three whole numbers"),
        ({"test_crop_pct": 0}, "test_crop_pct=0; allowed: a number from 0.1 to 1"),
        ({"test_crop_pct": float("nan")}, "test_crop_pct=nan; allowed"),
        ({"crop_pct": HUGE}, "crop_pct=1000.*allowed"),
        ({"crop_pct": "0.9"}, "crop_pct=0.9; allowed"),
        ({"crop_pct": True}, "crop_pct=True; allowed"),
        ({"mean": [0.5, 0.5]}, "mean=.*allowed: 3 numbers from 0 to 1"),
        ({"mean": [123.0, 116.0, 103.0]}, "mean=.*allowed: 3 numbers from 0 to 1"),
        ({"mean": {}}, "mean=.*allowed: 3 numbers"),
        ({"std": [0.0, 0.1, 0.1]}, "std=.*allowed: 3 numbers from 0.001 to 1"),
        ({"std": [float("inf")] * 3}, "std=.*allowed"),
        ({"std": []}, "std=.*allowed"),
        ({"interpolation": 3}, "interpolation=3; allowed: a text"),
        ({"crop_mode": "middle"}, "crop_mode=middle; allowed: center, squash, border"),
        ({"num_classes": 10}, "pretrained_cfg: num_classes=10; allowed: 1000, as many as the net has"),
        ({"label_names": ["a", "b"]}, "label_names has 2 names, the net has 1000 classes"),
        ({"label_names": [1] * 1000}, "label_names=.*allowed: a list of texts"),
        ({"label_names": ["x" * 10_000] * 1000}, "label_names=.{100}; allowed"),
        ({"label_names": {"1000": "x"}}, "label_names names classes that the net, which has 1000, lacks"),
        ({"label_names": "abc"}, "label_names=abc; allowed: a list of texts"),
    ],
)
def test_nonsense_in_a_timm_file_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        timm_input(timm(**change), num_classes=1000, channels=3)


@pytest.mark.parametrize("config", [None, [], "x", {"pretrained_cfg": []}, {"num_classes": "many"}])
def test_a_timm_file_of_another_form_is_refused(config):
    with pytest.raises(ValueError, match="^config.json"):
        timm_input(config, num_classes=1000, channels=3)


# As microsoft/resnet-50 has it, and as transformers 5 writes it.
OLD = {
    "crop_pct": 0.875, "do_normalize": True, "do_resize": True, "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD, "resample": 3, "size": 224,
}  # fmt: skip
NEW = {
    "crop_pct": 0.875, "crop_size": None, "do_center_crop": None, "do_convert_rgb": None, "do_normalize": True,
    "do_rescale": True, "do_resize": True, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD,
    "image_processor_type": "ConvNextImageProcessorFast", "resample": 2, "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 160},
}  # fmt: skip
LABELS = {str(i): f"{readable(name)}, and more" for i, name in enumerate(imagenet_class_names())}
CONFIG = {"model_type": "resnet", "num_channels": 3, "id2label": LABELS}


def test_hugging_face_nets_of_the_old_form_and_the_new():
    old = huggingface_input(OLD, CONFIG, num_classes=1000).input
    assert_input(old, size=224, short_side=256, resize="pillow_bicubic")
    assert old.class_names == imagenet_class_names()
    new = huggingface_input(NEW, CONFIG, num_classes=1000).input
    assert_input(new, size=160, short_side=182, resize="pillow_bilinear")


def test_hugging_face_defaults_are_those_of_its_convnext_processor():
    found = huggingface_input({"size": 224}, {}, num_classes=3).input
    assert_input(found, size=224, short_side=256, resize="pillow_bicubic", mean=[127.5] * 3, std=[127.5] * 3)
    assert found.class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    "change, mean, std",
    [
        ({"do_normalize": False}, [0, 0, 0], [255, 255, 255]),
        ({"do_normalize": False, "do_rescale": False}, [0, 0, 0], [1, 1, 1]),
        ({"do_rescale": False, "image_mean": PIXEL_MEAN, "image_std": PIXEL_STD}, PIXEL_MEAN, PIXEL_STD),
        ({"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": [1.0]}, [127.5] * 3, [127.5] * 3),
        ({"image_mean": [1.0] * 3, "image_std": [1.0] * 3}, [255] * 3, [255] * 3),
    ],
)
def test_hugging_face_steps_that_are_left_out(change, mean, std):
    found = huggingface_input({**OLD, **change}, CONFIG, num_classes=1000).input
    assert_input(found, size=224, short_side=256, resize="pillow_bicubic", mean=mean, std=std)


@pytest.mark.parametrize("size", [32, 600])
def test_hugging_face_images_that_are_taken_as_they_are(size):
    found = huggingface_input({**OLD, "do_resize": False, "size": size}, CONFIG, num_classes=1000).input
    assert (found.image_shape, found.short_side) == ((size, size, 3), None)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"size": 384}, "size=384: from 384 pixels on ConvNextFeatureExtractor warps"),
        ({"size": None}, "size=384"),
        ({"feature_extractor_type": "ViTFeatureExtractor"}, "ViTFeatureExtractor: .* only ConvNext's"),
        ({"image_processor_type": "ViTImageProcessor"}, "ViTImageProcessor: .* only ConvNext's"),
        ({"do_center_crop": True}, "do_center_crop=True"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order=True"),
        ({"resample": 1}, "resample=1"),
    ],
)
def test_what_hugging_face_does_and_a_description_cannot_say_has_a_reason(change, reason):
    found = huggingface_input({**OLD, **change}, CONFIG, num_classes=1000)
    assert found.input is None and re.search(reason, found.reason)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"size": 0}, "preprocessor_config.json: size=0; allowed: a whole number from 1 to 4096"),
        ({"size": "224"}, "size=224; allowed"),
        ({"size": {"height": 224, "width": 224}}, "size: shortest_edge=None; allowed: a whole number"),
        ({"size": {"shortest_edge": 224.5}}, "size: shortest_edge=224.5; allowed"),
        ({"crop_pct": 0.01}, "crop_pct=0.01; allowed: a number from 0.1 to 1"),
        ({"resample": 9}, "resample=9; allowed: a whole number from 0 to 5"),
        ({"resample": "bicubic"}, "resample=bicubic; allowed"),
        ({"rescale_factor": 0}, "rescale_factor=0; allowed: a number from 0.0001 to 1"),
        ({"image_mean": [124, 116, 104]}, "image_mean=.*allowed: 3 numbers from 0 to 1"),
        ({"image_std": [0, 0, 0]}, "image_std=.*allowed"),
        ({"image_std": [HUGE, 1, 1]}, "image_std=.*allowed"),
        ({"do_resize": "yes"}, "do_resize=yes; allowed: true or false"),
        ({"do_normalize": 1}, "do_normalize=1; allowed: true or false"),
        ({"do_center_crop": "no"}, "do_center_crop=no; allowed: true or false"),
        ({"feature_extractor_type": 3}, "feature_extractor_type=3; allowed: a text"),
    ],
)
def test_nonsense_in_a_preprocessor_file_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        huggingface_input({**OLD, **change}, CONFIG, num_classes=1000)


@pytest.mark.parametrize(
    "config, message",
    [
        ([], "config.json must be a JSON object, found list"),
        ({"num_channels": 2}, "config.json: num_channels=2; allowed: 1, 3"),
        ({"num_channels": True}, "num_channels=True; allowed"),
        ({"id2label": {"a": "b"}}, "id2label names classes that the net, which has 1000, lacks"),
        ({"id2label": {"0": None}}, "id2label=.*allowed: a list of texts"),
        ({"id2label": ["a"]}, "id2label has 1 names"),
    ],
)
def test_nonsense_in_hugging_face_config_is_named(config, message):
    with pytest.raises(ValueError, match=message):
        huggingface_input(OLD, config, num_classes=1000)
