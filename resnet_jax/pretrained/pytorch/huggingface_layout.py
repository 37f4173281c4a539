"""The config.json of Hugging Face's ResNets: what it says of a net, read and written."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from resnet_jax.models.resnet import ResNet
from resnet_jax.pretrained.pytorch.infer_torch import Tensors, infer_net, spelling_of_huggingface
from resnet_jax.pretrained.pytorch.torch_layout import stage_filters
from resnet_jax.pretrained.pytorch.torch_variables import TorchNet

# What a config means that does not say it (transformers, `ResNetConfig`).
_DEFAULTS = {
    "model_type": "resnet",
    "num_channels": 3,
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3],
    "layer_type": "bottleneck",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}
_DEFAULT_LABELS = 2


def infer_huggingface(config: Any, tensors: Tensors) -> TorchNet:
    """The net that has these tensors, in the names of `ResNetForImageClassification`, and this config.json.

    Where the stride is (`downsample_in_bottleneck`) is known from the config alone; all else the tensors show, and the
    config has to agree with them.

    Args:
      config: what config.json holds.
      tensors: by name.

    Raises:
      ValueError: the config contradicts the tensors or describes another family, or as `infer_torch`.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"config.json must be a JSON object, found {type(config).__name__}")
    said = {key: config.get(key, value) for key, value in _DEFAULTS.items()}
    # These would change names and shapes too, so they come before the tensors.
    for key in ("model_type", "hidden_act", "downsample_in_first_stage"):
        if said[key] != _DEFAULTS[key]:
            raise ValueError(f"config.json: {key}={said[key]!r}; only {_DEFAULTS[key]!r} is a net that can be read")
    if not isinstance(said["downsample_in_bottleneck"], bool):
        raise ValueError(
            f"config.json: downsample_in_bottleneck={said['downsample_in_bottleneck']!r}, not true or false"
        )
    net = infer_net(tensors, spelling_of_huggingface(tensors), stride_in=None)
    expected = net_config(net.model, net.channels)
    for key in ("layer_type", "depths", "embedding_size", "hidden_sizes", "num_channels"):
        if said[key] != expected[key]:
            raise ValueError(f"config.json: {key}={said[key]!r}; the tensors are those of {expected[key]!r}")
    _check_labels(config, net.model)
    if net.model.block == "bottleneck" and said["downsample_in_bottleneck"]:
        net = replace(net, model=net.model.clone(stride_in="1x1"))
    return net


def net_config(model: ResNet, channels: int) -> dict[str, Any]:
    """What config.json says of the net's shape."""
    stages = range(1, len(model.stage_sizes) + 1)
    return {
        "model_type": "resnet",
        "num_channels": channels,
        "embedding_size": model.width,
        "hidden_sizes": [stage_filters(model, stage) for stage in stages],
        "depths": list(model.stage_sizes),
        "layer_type": model.block,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": model.block == "bottleneck" and model.stride_in == "1x1",
    }


def _check_labels(config: Mapping[str, Any], model: ResNet) -> None:
    if model.num_classes is None:
        return
    labels = config.get("id2label")
    if labels is not None and not isinstance(labels, Mapping):
        raise ValueError(f"config.json: id2label must be a JSON object, found {type(labels).__name__}")
    found = len(labels) if labels else config.get("num_labels", _DEFAULT_LABELS)
    if found != model.num_classes:
        key = "id2label" if labels else "num_labels"
        raise ValueError(f"config.json: {key} has {found!r} classes; the tensors have {model.num_classes}")
