"""Nets of other families that have tensors named as ours, recognised by the first tensor that only they have."""

import re
from collections.abc import Mapping

from resnet_jax.pretrained.pytorch.torch_names import ModuleNames
from resnet_jax.pretrained.stored_tensor import StoredTensor

_BLOCK = r"layer\d+\.\d+\."
# Other families by what only they have; the names' beginnings, without a wrapper's.
_OTHERS = {
    rf".*\.filt$|{_BLOCK}(aa|conv\d\.\d)\.": "an anti-aliased net",
    r"conv1\.\d": "a net with a deep stem (ResNet-C, ResNet-D)",
    rf"{_BLOCK}(se|se_module|fc1|fc2|eca|attn|cbam)\.": "a net with squeeze-and-excitation or another attention",
    r"stem\.|stages\.|norm\.|bit\.|root\.|body\.block|block\d": "a pre-activation net (ResNetV2, BiT) or other family",
}


def refuse_other_families(tensors: Mapping[str, StoredTensor], names: ModuleNames) -> None:
    """Raises a ValueError that names the first tensor, if any, that shows another family."""
    for name in names.bare:
        for pattern, family in _OTHERS.items():
            if re.match(pattern, name):
                raise other_family(tensors, names.prefix + name, family)
        if re.fullmatch(rf"{_BLOCK}(downsample|shortcut)\.1\.weight", name):
            if len(tensors[names.prefix + name].shape) == 4:
                raise other_family(
                    tensors, names.prefix + name, "a net whose shortcuts pool before they project (ResNet-D)"
                )
    block = names.prefix + "layer1.0"
    if f"{block}.bn1" in names.modules and f"{names.prefix}bn1" not in names.modules:
        raise other_family(
            tensors, f"{block}.bn1.weight", "a pre-activation net, as no bn1 follows the first convolution"
        )


def other_family(tensors: Mapping[str, StoredTensor], name: str, family: str) -> ValueError:
    """The error that says of which family a tensor is."""
    shape = f" of shape {tensors[name].shape}" if name in tensors else ""
    return ValueError(f"tensor {name}{shape} belongs to {family}, which is none of ours")
