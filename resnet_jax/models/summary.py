"""Parameters, multiply-adds and activations of a net, stage by stage, without running or even building all of it."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from resnet_jax.models.blocks import Conv
from resnet_jax.models.registry import create_model
from resnet_jax.models.resnet import ResNet


@dataclass(frozen=True)
class Row:
    """One stage, for one image.

    Attributes:
      name: "stem", "stage1", ..., "classifier".
      blocks: number of blocks in the stage.
      output: shape of its output, without the batch axis.
      parameters: number of trainable values.
      multiply_adds: of its convolutions and dense layers (the paper's "FLOPs").
      activation_bytes: outputs of its convolutions and dense layers, in the dtype of the computation.
    """

    name: str
    blocks: int
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int
    activation_bytes: int


@dataclass(frozen=True)
class Summary:
    """The table of a net; `str()` prints it."""

    name: str
    image_shape: tuple[int, int, int]
    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        """Trainable values of the whole net."""
        return sum(row.parameters for row in self.rows)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the forward pass of one image."""
        return sum(row.multiply_adds for row in self.rows)

    @property
    def activation_bytes(self) -> int:
        """Bytes of the convolutions' and dense layers' outputs for one image."""
        return sum(row.activation_bytes for row in self.rows)

    def __str__(self) -> str:
        header = ("stage", "blocks", "output", "parameters", "multiply-adds", "activation bytes")
        total = Row("total", sum(row.blocks for row in self.rows), (), *self._totals())
        lines = [header, *map(_cells, (*self.rows, total))]
        widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
        text = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        rule = "-" * len(text[0])
        shape = "x".join(map(str, self.image_shape))
        return "\n".join([f"{self.name}, one image of {shape}", text[0], rule, *text[1:-1], rule, text[-1]])

    def _totals(self) -> tuple[int, int, int]:
        return self.parameters, self.multiply_adds, self.activation_bytes


def summarize(
    name: str, *, image_size: int | None = None, channels: int = 3, num_classes: int | None = None, **options
) -> Summary:
    """Counts a net's parameters, multiply-adds and activations.

    Traces one block of each kind and multiplies, so 1202 layers take no longer than 20.

    Args:
      name: a name of `list_models()`.
      image_size: side of the square image in pixels; 224 for ImageNet's nets and 32 for CIFAR's unless given.
      channels: of the image.
      num_classes: of the classifier; 1000 and 10 unless given.
      **options: further options of `create_model`.

    Raises:
      ValueError: as `create_model`, or for an image_size or channels below 1.

    Example:
      >>> net = summarize("resnet50")
      >>> f"{net.parameters:,} parameters, {net.multiply_adds:,} multiply-adds an image"
      '25,557,032 parameters, 3,857,973,248 multiply-adds an image'
    """
    if num_classes is not None:
        options["num_classes"] = num_classes
    model = create_model(name, **options)
    size = image_size if image_size is not None else (224 if model.stem == "imagenet" else 32)
    if size < 1:
        raise ValueError(f"image_size={size} must be at least 1 pixel")
    if channels < 1:
        raise ValueError(f"channels={channels} must be at least 1")
    return Summary(name, (size, size, channels), tuple(_rows(model, (1, size, size, channels))))


def _rows(model: ResNet, image_shape: tuple[int, ...]) -> list[Row]:
    norm = model.make_norm(use_running_average=True, update_statistics=False)
    x = jax.ShapeDtypeStruct(image_shape, jnp.float32)
    rows = [_count(model.make_stem(norm), x, "stem", blocks=0)]
    for stage, size in enumerate(model.stage_sizes, 1):
        x = jax.ShapeDtypeStruct((1, *rows[-1].output), model.dtype)
        first = _count(model.make_block(stage, norm, first=True), x, f"stage{stage}", blocks=1)
        rest = jax.ShapeDtypeStruct((1, *first.output), model.dtype)
        other = _count(model.make_block(stage, norm, first=False), rest, f"stage{stage}", blocks=1)
        rows.append(_add(first, other, times=size - 1))
    pooled = jax.ShapeDtypeStruct((1, rows[-1].output[-1]), jnp.float32)
    for step in model.arrangement.before:
        if step != "relu":
            x = jax.ShapeDtypeStruct((1, *rows[-1].output), model.dtype)
            rows.append(_count(norm(name=None), x, f"final {step.removesuffix('+relu')}", blocks=0))
    if model.num_classes is not None:
        rows.append(_count(nn.Dense(model.num_classes), pooled, "classifier", blocks=0))
    return rows


def _count(module: nn.Module, x: jax.ShapeDtypeStruct, name: str, *, blocks: int) -> Row:
    multiply_adds = activation_bytes = 0

    def record(next_function, args, kwargs, context):
        nonlocal multiply_adds, activation_bytes
        output = next_function(*args, **kwargs)
        if isinstance(context.module, Conv | nn.Dense) and context.method_name == "__call__":
            features_in = args[0].shape[-1]
            window = context.module.size**2 if isinstance(context.module, Conv) else 1
            multiply_adds += output.size * features_in * window
            activation_bytes += output.size * output.dtype.itemsize
        return output

    with nn.intercept_methods(record):
        output, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables.get("params", {})))
    return Row(name, blocks, output.shape[1:], parameters, multiply_adds, activation_bytes)


def _add(first: Row, other: Row, *, times: int) -> Row:
    return Row(
        first.name,
        first.blocks + times,
        first.output,
        first.parameters + times * other.parameters,
        first.multiply_adds + times * other.multiply_adds,
        first.activation_bytes + times * other.activation_bytes,
    )


def _cells(row: Row) -> tuple[str, ...]:
    numbers = (row.parameters, row.multiply_adds, row.activation_bytes)
    return (row.name, str(row.blocks or ""), "x".join(map(str, row.output)), *(f"{n:,}" for n in numbers))
