"""Names and shapes of a net's tensors in PyTorch's libraries, tensor by tensor beside ours.

A net is described by what its names are spelled like, and by one list of its layers that import and export share.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from resnet_jax.models.resnet import ResNet


@dataclass(frozen=True)
class Spelling:
    """How a library names a net's modules.

    The texts are templates: {stage} and {layer} count from 1, {stage0}, {block0} and {layer0} from 0.

    Attributes:
      library: "torchvision" (timm and the public CIFAR nets name alike) or "huggingface".
      stem_conv: the first convolution.
      stem_norm: its normalization.
      blocks: the parent of a stage's blocks.
      block: one block.
      conv: one of its convolutions.
      norm: that one's normalization.
      shortcut: the parent of a projection's two modules.
      shortcut_conv: its convolution.
      shortcut_norm: its normalization.
      head: the linear classifier.
      prefix: what every name starts with.
    """

    library: str
    stem_conv: str
    stem_norm: str
    blocks: str
    block: str
    conv: str
    norm: str
    shortcut: str
    shortcut_conv: str
    shortcut_norm: str
    head: str
    prefix: str = ""

    def name(self, template: str, stage: int = 0, block: int = 0, layer: int = 0) -> str:
        """The module's name; stage, block and layer count from 1."""
        places = {"stage": stage, "stage0": stage - 1, "block0": block - 1, "layer": layer, "layer0": layer - 1}
        return self.prefix + template.format(**places)


def torchvision_spelling(*, shortcut: str = "downsample", head: str = "fc", prefix: str = "") -> Spelling:
    """torchvision's and timm's names, or those of the CIFAR nets, which differ in the two that are given."""
    block = "layer{stage}.{block0}"
    return Spelling(
        library="torchvision",
        stem_conv="conv1",
        stem_norm="bn1",
        blocks="layer{stage}",
        block=block,
        conv=f"{block}.conv{{layer}}",
        norm=f"{block}.bn{{layer}}",
        shortcut=f"{block}.{shortcut}",
        shortcut_conv=f"{block}.{shortcut}.0",
        shortcut_norm=f"{block}.{shortcut}.1",
        head=head,
        prefix=prefix,
    )


def huggingface_spelling(*, prefix: str = "") -> Spelling:
    """The names in Hugging Face's `ResNetForImageClassification`."""
    blocks = "resnet.encoder.stages.{stage0}.layers"
    block = f"{blocks}.{{block0}}"
    return Spelling(
        library="huggingface",
        stem_conv="resnet.embedder.embedder.convolution",
        stem_norm="resnet.embedder.embedder.normalization",
        blocks=blocks,
        block=block,
        conv=f"{block}.layer.{{layer0}}.convolution",
        norm=f"{block}.layer.{{layer0}}.normalization",
        shortcut=f"{block}.shortcut",
        shortcut_conv=f"{block}.shortcut.convolution",
        shortcut_norm=f"{block}.shortcut.normalization",
        head="classifier.1",
        prefix=prefix,
    )


@dataclass(frozen=True)
class Place:
    """One tensor: where it is in our variables, and what it is called there.

    Attributes:
      path: in our variables, e.g. ("params", "stage2_block1", "conv1", "kernel").
      stack: (index, count) in the stack of a `scan=True` net; None for a tensor of its own.
      name: theirs, e.g. "layer2.0.conv1.weight".
      shape: theirs, (out, in, height, width), (out, in) or (channels,).
      outputs: number of the stage whose output its channels are, 0 for the stem's; None if they are inside a block
        or classes.
      inputs: likewise for the channels that it reads; None also for a vector.
    """

    path: tuple[str, ...]
    stack: tuple[int, int] | None
    name: str
    shape: tuple[int, ...]
    outputs: int | None
    inputs: int | None


@dataclass(frozen=True)
class _Layer:
    """A convolution and its normalization; paths are within the variables' collections."""

    path: tuple[str, ...]
    norm_path: tuple[str, ...]
    conv: str
    norm: str
    shape: tuple[int, int, int, int]
    outputs: int | None
    inputs: int | None
    stack: tuple[int, int] | None = None


def stage_filters(model: ResNet, stage: int) -> int:
    """Channels of a stage's output; stage 0 is the stem."""
    if stage == 0:
        return model.width
    return model.width * 2 ** (stage - 1) * (4 if model.block == "bottleneck" else 1)


def places(model: ResNet, spelling: Spelling, channels: int) -> Iterator[Place]:
    """Every tensor of the net, in the order of the layers.

    Nothing is built or traced: of a net that claims to be huge, the first names come at once.

    Args:
      model: a net with activation_order "post" and shortcuts.
      spelling: of their names.
      channels: of the images.
    """
    scales = "batch_stats" if model.norm == "frozen" else "params"
    for layer in _layers(model, spelling, channels):
        kernel = ("params", *layer.path, "kernel")
        yield Place(kernel, layer.stack, f"{layer.conv}.weight", layer.shape, layer.outputs, layer.inputs)
        for collection, ours, theirs in (
            (scales, "scale", "weight"),
            (scales, "bias", "bias"),
            ("batch_stats", "mean", "running_mean"),
            ("batch_stats", "var", "running_var"),
        ):
            path, name = (collection, *layer.norm_path, ours), f"{layer.norm}.{theirs}"
            yield Place(path, layer.stack, name, layer.shape[:1], layer.outputs, None)
    if model.num_classes is not None:
        last, head = len(model.stage_sizes), spelling.name(spelling.head)
        shape = (model.num_classes, stage_filters(model, last))
        yield Place(("params", "classifier", "kernel"), None, f"{head}.weight", shape, None, last)
        yield Place(("params", "classifier", "bias"), None, f"{head}.bias", shape[:1], None, None)


def norm_names(model: ResNet, spelling: Spelling) -> list[str]:
    """Their names of the net's normalization layers."""
    return [layer.norm for layer in _layers(model, spelling, channels=3)]


def _layers(model: ResNet, spelling: Spelling, channels: int) -> Iterator[_Layer]:
    size = 7 if model.stem == "imagenet" else 3
    conv, norm = spelling.name(spelling.stem_conv), spelling.name(spelling.stem_norm)
    yield _Layer(("stem", "conv"), ("stem", "norm"), conv, norm, (model.width, channels, size, size), 0, None)
    for stage, count in enumerate(model.stage_sizes, 1):
        for block in range(1, count + 1):
            name, stack = f"stage{stage}_block{block}", None
            if model.scan and block > 1:
                name, stack = f"stage{stage}_blocks", (block - 2, count - 1)
            for layer in _block_layers(model, spelling, stage, block, name):
                yield replace(layer, stack=stack)


def _block_layers(model: ResNet, spelling: Spelling, stage: int, block: int, name: str) -> Iterator[_Layer]:
    filters, outputs = model.width * 2 ** (stage - 1), stage_filters(model, stage)
    source = stage - 1 if block == 1 else stage
    inputs = stage_filters(model, source)
    if model.block == "basic":
        shapes = [(filters, inputs, 3, 3), (filters, filters, 3, 3)]
    else:
        shapes = [(filters, inputs, 1, 1), (filters, filters, 3, 3), (outputs, filters, 1, 1)]
    for layer, shape in enumerate(shapes, 1):
        conv = spelling.name(spelling.conv, stage, block, layer)
        norm = spelling.name(spelling.norm, stage, block, layer)
        writes, reads = stage if layer == len(shapes) else None, source if layer == 1 else None
        yield _Layer((name, f"conv{layer}"), (name, f"norm{layer}"), conv, norm, shape, writes, reads)
    if projects(model, stage, block):
        conv = spelling.name(spelling.shortcut_conv, stage, block)
        norm = spelling.name(spelling.shortcut_norm, stage, block)
        path = (name, "shortcut")
        yield _Layer((*path, "conv"), (*path, "norm"), conv, norm, (outputs, inputs, 1, 1), stage, source)


def projects(model: ResNet, stage: int, block: int) -> bool:
    """Whether the block's shortcut is a projection."""
    return model.shortcut == "C" or (model.shortcut == "B" and changes_shape(model.block, stage, block))


def changes_shape(block_kind: str, stage: int, block: int) -> bool:
    """Whether a block's output is of another shape than its input."""
    return block == 1 and (stage > 1 or block_kind == "bottleneck")
