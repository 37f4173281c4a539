"""A layer of a Caffe net: what its file says of it, and how layers are joined."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from resnet_jax.pretrained.stored_tensor import StoredTensor

# What the settings of a type are called in `caffe.proto`, less the "_param".
_KINDS = {
    "Convolution": "convolution",
    "BatchNorm": "batch_norm",
    "Scale": "scale",
    "Pooling": "pooling",
    "Eltwise": "eltwise",
    "InnerProduct": "inner_product",
    "ReLU": "relu",
}


@dataclass(frozen=True)
class CaffeLayer:
    """One layer of a net.

    Attributes:
      name: of the layer.
      type: e.g. "Convolution".
      bottoms: names of the arrays it takes.
      tops: names of the arrays it gives; one that it also takes is replaced.
      blobs: its parameters, float32 or float64.
      settings: values that are stored, by name, e.g. "convolution.stride"; whole numbers, but for floats such as
        "batch_norm.eps". Caffe's defaults are not filled in.
    """

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    blobs: tuple[StoredTensor, ...]
    settings: dict[str, tuple[int | float, ...]]

    def setting(self, name: str, default: int | float) -> Any:
        """One of the settings of the layer's type, e.g. "group"; the last, where a file has it several times."""
        return self.settings.get(f"{_KINDS.get(self.type)}.{name}", (default,))[-1]

    def sides(self, name: str, default: int) -> tuple[int | float, ...]:
        """Height and width of "kernel", "stride", "pad" or "dilation", stored for both or for each."""
        kind = _KINDS.get(self.type)
        both = self.settings.get(f"{kind}.kernel_size" if name == "kernel" else f"{kind}.{name}", (default,))
        height, width = (self.settings.get(f"{kind}.{name}_{side}", ()) for side in "hw")
        if height or width:
            return (*(height or (default,)), *(width or (default,)))
        return both * 2 if len(both) == 1 else both

    def check(self, what: str, found: Any, expected: Any) -> None:
        """Raises a ValueError that names the layer, unless the two are equal."""
        if found != expected:
            raise ValueError(f"layer {self.name}: {what} is {found}, expected {expected}")

    def check_blobs(self, *shapes: tuple[int, ...]) -> None:
        """Raises a ValueError unless the parameters have these shapes; the older form has ones before them."""
        self.check("number of blobs", len(self.blobs), len(shapes))
        for index, (blob, shape) in enumerate(zip(self.blobs, shapes, strict=True)):
            if blob.shape != (1,) * (len(blob.shape) - len(shape)) + shape:
                self.check(f"shape of blob {index}", blob.shape, shape)


def layer_inputs(layers: Sequence[CaffeLayer]) -> dict[str, tuple[str, ...]]:
    """What each layer takes, by its name: the layer that gave it, "ReLU of" that, or "array" and a name if none did."""
    givers: dict[str, str] = {}
    inputs: dict[str, tuple[str, ...]] = {}
    for layer in layers:
        found = tuple(givers.get(bottom, f"array {bottom}") for bottom in layer.bottoms)
        inputs[layer.name], giver = found, layer.name
        if len(found) == 1 and layer.type == "Split":
            # Caffe puts one in wherever an array is taken twice.
            giver = found[0]
        elif len(found) == 1 and layer.type == "ReLU" and not any(layer.settings.get("relu.negative_slope", ())):
            giver = found[0] if found[0].startswith("ReLU of ") else f"ReLU of {found[0]}"
        givers |= dict.fromkeys(layer.tops, giver)
    return inputs
