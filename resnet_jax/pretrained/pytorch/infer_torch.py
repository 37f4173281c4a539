"""Which net some tensors of torchvision, timm, a public CIFAR net or Hugging Face are, from names and shapes alone."""

import re
from collections.abc import Mapping
from typing import Any

from resnet_jax.models.registry import create_model
from resnet_jax.pretrained.pytorch.other_families import other_family, refuse_other_families
from resnet_jax.pretrained.pytorch.torch_layout import (
    Spelling,
    changes_shape,
    huggingface_spelling,
    norm_names,
    places,
    torchvision_spelling,
)
from resnet_jax.pretrained.pytorch.torch_names import ModuleNames, module_names
from resnet_jax.pretrained.pytorch.torch_variables import TorchNet, channel_orders
from resnet_jax.pretrained.stored_tensor import StoredTensor

Tensors = Mapping[str, StoredTensor]

# timm's post-activation nets of our layers, by name: blocks and their numbers. Before 0.9 timm put who trained a net
# into its name.
_TIMM_NETS = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet26": ("bottleneck", (2, 2, 2, 2)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
    "resnet200": ("bottleneck", (3, 24, 36, 3)),
}
_TIMM_NAME = re.compile(r"(?:(?:tv|ssl|swsl)_)?(resnet\d+)|gluon_(resnet\d+)_v1b")
_DTYPES = ("float16", "bfloat16", "float32", "float64")
# Unrolled nets of this many blocks in a stage compile for minutes; ResNet-152 has 36, CIFAR-110 has 18.
_LARGEST_UNROLLED_STAGE = 60


def infer_torch(tensors: Tensors, *, stride_in: str | None = None) -> TorchNet:
    """The net that has these tensors, in the names of torchvision, timm or the public CIFAR nets.

    Names: "conv1", "bn1", "layer1.0.conv1", ..., projections "downsample" or "shortcut", classifier "fc" or "linear",
    with or without "module.", "_orig_mod." or "model." before every name; the classifier may be the one linear layer of
    a sequence. A first convolution of 7x7 is taken with stride 2 and followed by a maximum, one of 3x3 without. A net
    without any projection has shortcuts of option A.

    Some things leave no trace in the tensors: which layer of a bottleneck takes the stride, whether there are
    shortcuts without parameters at all (a plain net has the same tensors), dilations in place of strides (torchvision's
    backbones for segmentation, timm's nets with an output_stride), and filters without parameters before a stride. Of
    timm's ResNets the last are resnetaa50, resnetblur18 and resnetblur50, which `infer_timm` refuses.

    Args:
      tensors: by name.
      stride_in: the layer of a bottleneck that takes the stride; None is "3x3", as in all of these libraries.

    Raises:
      ValueError: the tensors are not those of a net of this family, or of one only in part; the message has the first
        tensor that shows it, by its name there.
    """
    names = module_names(tensors)
    if names.is_huggingface:
        raise ValueError(
            f"tensor {next(iter(tensors))!r} is named as Hugging Face does, which needs the config.json beside it"
        )
    refuse_other_families(tensors, names)
    shortcut = "shortcut" if any(re.match(r"layer\d+\.\d+\.shortcut\.", name) for name in names.bare) else "downsample"
    head = _head(tensors, names, "linear" if f"{names.prefix}linear" in names.modules else "fc")
    spelling = torchvision_spelling(shortcut=shortcut, head=head, prefix=names.prefix)
    return infer_net(tensors, spelling, stride_in=stride_in)


def infer_timm(config: Any, tensors: Tensors, *, stride_in: str | None = None) -> TorchNet:
    """The net that has these tensors and lies beside this config.json of timm.

    Args:
      config: what config.json holds.
      tensors: by name.
      stride_in: as in `infer_torch`.

    Raises:
      ValueError: the config names an architecture that is none of ours, or not the tensors' own, or says something
        else that changes what the net computes; or as `infer_torch`.
    """
    architecture = config.get("architecture") if isinstance(config, Mapping) else None
    if not isinstance(architecture, str):
        raise ValueError("config.json names no architecture, as timm's does")
    if re.match(r"resnet(aa|blur)", architecture):
        raise ValueError(f"config.json: architecture={architecture!r} is an anti-aliased net, which is none of ours")
    match = _TIMM_NAME.fullmatch(architecture)
    name = match and (match[1] or match[2])
    if name not in _TIMM_NETS:
        raise ValueError(f"config.json: architecture={architecture!r} is none of ours: {', '.join(_TIMM_NETS)}")
    arguments = config.get("model_args") or {}
    # timm 1.0.31 always writes these three.
    if not isinstance(arguments, Mapping) or arguments.keys() - {"in_chans", "num_classes", "global_pool"}:
        raise ValueError(f"config.json: model_args={arguments!r} may change what the net computes")
    for section in (config, config.get("pretrained_cfg"), arguments):
        pool = section.get("global_pool") if isinstance(section, Mapping) else None
        if pool not in (None, "avg"):
            raise ValueError(f"config.json: global_pool={pool!r}; only 'avg' is a net that can be read")
    net = infer_torch(tensors, stride_in=stride_in)
    found = (net.model.block, net.model.stage_sizes, net.model.width, net.model.stem, net.model.shortcut)
    if found != (*_TIMM_NETS[name], 64, "imagenet", "B"):
        raise ValueError(
            f"config.json: architecture={architecture!r}; the tensors are those of {found[0]} blocks, {found[1]} in "
            f"the stages, with width {found[2]}, stem {found[3]!r} and shortcut {found[4]!r}"
        )
    counts = {"num_classes": net.model.num_classes or 0, "in_chans": net.channels}
    for section in (config, arguments):
        for key, count in counts.items():
            if section.get(key, count) != count:
                raise ValueError(f"config.json: {key}={section[key]!r}; the tensors have {count}")
    return net


def spelling_of_huggingface(tensors: Tensors) -> Spelling:
    """The spelling of tensors that are named as Hugging Face does.

    Raises:
      ValueError: they are not.
    """
    names = module_names(tensors)
    if not names.is_huggingface:
        raise ValueError(
            f"tensor {next(iter(tensors))!r} is not named as in Hugging Face's ResNetForImageClassification, the only "
            "one of its ResNets that is read"
        )
    return huggingface_spelling(prefix=names.prefix)


def infer_net(tensors: Tensors, spelling: Spelling, *, stride_in: str | None) -> TorchNet:
    """The net that has exactly these tensors in this spelling.

    Every size comes from counting names or from a shape that a tensor has, and the tensors are checked before anything
    is built, so that a file cannot ask for more than it holds.

    Raises:
      ValueError: as `infer_torch`.
    """
    names = module_names(tensors)
    width, channels, size, _ = _shape(tensors, f"{spelling.name(spelling.stem_conv)}.weight", rank=4)
    stems = {7: "imagenet", 3: "cifar"} if spelling.library == "torchvision" else {7: "imagenet"}
    if size not in stems:
        name, sizes = f"{spelling.name(spelling.stem_conv)}.weight", " or ".join(f"{size}x{size}" for size in stems)
        raise ValueError(f"tensor {name} is of shape {tensors[name].shape}; the net needs kernels of {sizes}")
    stage_sizes = _stage_sizes(names, spelling)
    block = _block_kind(tensors, names, spelling, width)
    head = spelling.name(spelling.head)
    options = {
        "stage_sizes": stage_sizes,
        "stem": stems[size],
        "block": block,
        "shortcut": _shortcut(names, spelling, stage_sizes, block),
        "width": width,
        "num_classes": _shape(tensors, f"{head}.weight", rank=2)[0] if head in names.modules else None,
        "scan": max(stage_sizes) > _LARGEST_UNROLLED_STAGE,
        "stride_in": (stride_in or "3x3") if block == "bottleneck" else stride_in,
    }
    # Every other attribute of the named net is replaced.
    net = TorchNet(create_model("resnet18", **options), spelling, channels)
    _check_tensors(tensors, net)
    if net.model.shortcut == "A":
        channel_orders(net.model)
    return net


def _head(tensors: Tensors, names: ModuleNames, module: str) -> str:
    """The classifier's module: this one, or the only linear layer in it, as beside a dropout."""
    linear = [
        name.removesuffix(".weight")
        for name in names.bare
        if re.fullmatch(rf"{module}\.\w+\.weight", name) and len(tensors[names.prefix + name].shape) == 2
    ]
    return linear[0] if len(linear) == 1 and f"{names.prefix}{module}.weight" not in tensors else module


def _stage_sizes(names: ModuleNames, spelling: Spelling) -> tuple[int, ...]:
    sizes: list[int] = []
    while blocks := names.modules.get(spelling.name(spelling.blocks, len(sizes) + 1)):
        sizes.append(blocks)
    if not sizes:
        raise ValueError(f"tensor {spelling.name(spelling.conv, 1, 1, 1)}.weight is missing")
    return tuple(sizes)


def _block_kind(tensors: Tensors, names: ModuleNames, spelling: Spelling, width: int) -> str:
    third = {spelling.name(template, 1, 1, 3) for template in (spelling.conv, spelling.norm)}
    if not third & names.modules.keys():
        return "basic"
    first, second = (f"{spelling.name(spelling.conv, 1, 1, layer)}.weight" for layer in (1, 2))
    if first in tensors and second in tensors:
        outputs, inputs = _shape(tensors, first, rank=4)[0], _shape(tensors, second, rank=4)[1]
        if inputs < outputs and outputs % inputs == 0:
            raise other_family(tensors, second, "a net with grouped convolutions (ResNeXt)")
        if outputs != width and outputs == inputs:
            raise other_family(tensors, first, "a net with wide bottlenecks (wide ResNet)")
    return "bottleneck"


def _shortcut(names: ModuleNames, spelling: Spelling, stage_sizes: tuple[int, ...], block: str) -> str:
    all_blocks = {(s, b) for s, size in enumerate(stage_sizes, 1) for b in range(1, size + 1)}
    changing = {place for place in all_blocks if changes_shape(block, *place)}
    projected = {place for place in all_blocks if spelling.name(spelling.shortcut, *place) in names.modules}
    if spelling.library == "torchvision" and changing and not projected:
        return "A"
    # Where a single projection is missing, the tensors are compared with the nearest option, and it is named.
    return "C" if spelling.library == "torchvision" and projected - changing else "B"


def _check_tensors(tensors: Tensors, net: TorchNet) -> None:
    needed = set()
    for place in places(net.model, net.spelling, net.channels):
        found = tensors.get(place.name)
        if found is None:
            raise ValueError(f"tensor {place.name} is missing; the net needs it of shape {place.shape}")
        if found.shape != place.shape:
            raise ValueError(f"tensor {place.name} is of shape {found.shape}; the net needs {place.shape}")
        if found.dtype not in _DTYPES:
            raise ValueError(f"tensor {place.name} is {found.dtype}; allowed are {', '.join(_DTYPES)}")
        needed.add(place.name)
    counts = {f"{norm}.num_batches_tracked" for norm in norm_names(net.model, net.spelling)}
    for name, tensor in tensors.items():
        if name not in needed and (name not in counts or tensor.shape != ()):
            raise ValueError(f"tensor {name!r} of shape {tensor.shape} is none that the net has")


def _shape(tensors: Tensors, name: str, *, rank: int) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(f"tensor {name} is missing; the first one here is {next(iter(tensors))!r}")
    shape = tensors[name].shape
    if len(shape) != rank or min(shape) < 1:
        raise ValueError(f"tensor {name} is of shape {shape}; the net needs {rank} axes, none of them empty")
    return shape
