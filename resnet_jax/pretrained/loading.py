"""Parameters from a weight file into a net: all of them, with a new classifier, or those that fit."""

import logging
import os
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax.data.input_description import InputDescription
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.stacking import stack_blocks, unstack_blocks
from resnet_jax.pretrained.layout import tensor_name, variable_shapes
from resnet_jax.pretrained.net_settings import make_net, net_settings
from resnet_jax.pretrained.reading import load_weights
from resnet_jax.pretrained.weight_file import WeightFile

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors, by their names, e.g. "stage1_block1/conv1/kernel".

    Attributes:
      loaded: the net's, from the file.
      skipped: the file's that the net has not, or has of another shape.
      initialised: the net's that are as before training, since the file does not have them, or of another shape.
      differing: what the file's net computes otherwise from the same tensors, e.g. "stride_in: 3x3 there, 1x1 here".
    """

    loaded: tuple[str, ...]
    skipped: tuple[str, ...]
    initialised: tuple[str, ...]
    differing: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line, with the names of all that is not simply loaded."""
        parts = [f"loaded {len(self.loaded)} tensors"]
        for verb in ("skipped", "initialised"):
            names = getattr(self, verb)
            parts.append(f"{verb} {len(names)}" + (f" ({', '.join(names)})" if names else ""))
        return ", ".join(parts) + "".join(f"; {difference}" for difference in self.differing)


def load_pretrained(
    path: str | os.PathLike, *, num_classes: int | None = None, key: jax.Array | None = None
) -> tuple[ResNet, dict]:
    """Reads a net, to use in one's own code; `load_weights` also reads what it expects as input.

    Args:
      path: a file or folder that `load_weights` reads, or the name of a net in the catalogue, see `list_pretrained`.
      num_classes: gives the net a new classifier of that many classes, as it is before training (He initialised, its
        biases 0), and keeps everything else; None keeps the file's.
      key: a PRNG key for the new classifier; None is `jax.random.key(0)`.

    Returns:
      The module and its variables {"params", "batch_stats"}, on the first device.

    Raises:
      FileNotFoundError: there is no such file, and no net of that name.
      ValueError: num_classes is below 1, or the file is none that can be used, see `load_weights`.
    """
    file = load_weights(path)
    if num_classes is None:
        return file.model, _to_device(file.variables)
    model = make_net({**net_settings(file.model), "num_classes": num_classes})
    variables, report = _fill(model, file, key, new_classifier=True)
    _log.info("%s: %s", path, report)
    return model, variables


def load_partial(path: str | os.PathLike, model: ResNet, *, key: jax.Array | None = None) -> tuple[dict, LoadReport]:
    """Makes variables for a net of one's own of all that fits in a weight file, and initialises the rest.

    A tensor fits if it has the same name and shape, e.g. the first two stages of a net that is cut off behind them,
    or all convolutions of a plain net and its residual twin. Batch norm may be frozen and blocks stacked in either.
    Tensors do not show where a bottleneck has its stride, for example (torchvision's resnet50 is resnet50_v1_5 here):
    what differs so is in the report and in a warning.

    Args:
      path: a file or folder that `load_weights` reads, or a name from the catalogue.
      model: the net.
      key: a PRNG key for what is initialised, as `initialize` does with it; None is `jax.random.key(0)`.

    Returns:
      Variables {"params", "batch_stats"} of the net, on the first device, and the report.

    Raises:
      FileNotFoundError: there is no such file, and no net of that name.
      ValueError: nothing fits, or the file is none that can be used.
    """
    return _fill_partly(load_weights(path), model, path, key)


def load_whole(path: str | os.PathLike, model: ResNet, *, named: str) -> tuple[dict, InputDescription | None]:
    """All variables of a net without a classifier from a weight file, on the host, and what they expect of their input.

    Args:
      path: as in `load_partial`.
      model: the net.
      named: what the path is of, for messages.

    Raises:
      FileNotFoundError: there is no such file, and no net of that name.
      ValueError: the file lacks something, or is none that can be used.
    """
    file = load_weights(path)
    variables, report = _fill_partly(file, model, path, None)
    if report.initialised:
        raise ValueError(
            f"{named}={path}: it lacks {len(report.initialised)} tensors of the net, such as {report.initialised[0]}"
        )
    # Not on a device, which would hold them twice from the first step on.
    return jax.device_get(variables), file.input


def _fill_partly(
    file: WeightFile, model: ResNet, path: str | os.PathLike, key: jax.Array | None
) -> tuple[dict, LoadReport]:
    variables, report = _fill(model, file, key)
    if not report.loaded:
        raise ValueError(f"{path}: none of its {len(report.skipped)} tensors fits the net")
    if report.differing:
        _log.warning("%s: the net computes something else: %s", path, "; ".join(report.differing))
    return variables, report


def _fill(
    model: ResNet, file: WeightFile, key: jax.Array | None, *, new_classifier: bool = False
) -> tuple[dict, LoadReport]:
    """The model's variables from the file's, which are used up, and from the key where there is none that fits."""
    channels = file.variables["params"]["stem"]["conv"]["kernel"].shape[2]
    variables = file.variables if file.model.scan == model.scan else unstack_blocks(file.variables)
    plain = model if file.model.scan == model.scan else model.clone(scan=False)
    found = {_own_name(place): leaf for place, leaf in jax.tree.leaves_with_path(variables)}
    shapes = variable_shapes(plain, channels)
    wanted = {_own_name(place): leaf.shape for place, leaf in jax.tree.leaves_with_path(shapes)}
    fits = {name for name, shape in wanted.items() if name in found and found[name].shape == shape}
    if new_classifier:
        fits -= {name for name in fits if name.startswith("classifier/")}
    report = LoadReport(
        loaded=tuple(name for name in wanted if name in fits),
        skipped=tuple(name for name in found if name not in fits),
        initialised=tuple(name for name in wanted if name not in fits),
        differing=_differing(file.model, model),
    )
    fresh = _initial_values(plain, report.initialised, channels, jax.random.key(0) if key is None else key)

    def pick(place: tuple, _: Any) -> Any:
        name = _own_name(place)
        return fresh[name] if name in fresh else found.pop(name)

    filled = _to_device(jax.tree.map_with_path(pick, shapes))
    return stack_blocks(filled) if model.scan and not plain.scan else filled, report


def _differing(there: ResNet, here: ResNet) -> tuple[str, ...]:
    """The settings that change what a net computes, but no tensor's shape."""
    settings = ["shortcut", "activation_order"]
    settings += ["stride_in"] if there.block == here.block == "bottleneck" else []
    settings += ["pool_padding"] if there.stem == here.stem == "imagenet" else []
    return tuple(
        f"{name}: {getattr(there, name)} there, {getattr(here, name)} here"
        for name in settings
        if getattr(there, name) != getattr(here, name)
    )


def _own_name(place: tuple) -> str:
    """A tensor's name without its collection, where freezing batch norm moves scales and biases from one to another."""
    return tensor_name(place[1:])


def _initial_values(model: ResNet, names: tuple[str, ...], channels: int, key: jax.Array) -> dict[str, jax.Array]:
    """Those of the net before training; the compiler drops all other work."""

    @jax.jit
    def initial(key: jax.Array) -> dict[str, jax.Array]:
        variables = model.init(key, jnp.zeros((1, 8, 8, channels)), train=False)
        leaves = {_own_name(place): leaf for place, leaf in jax.tree.leaves_with_path(variables)}
        return {name: leaves[name] for name in names}

    return initial(key) if names else {}


def _to_device(tree: dict) -> dict:
    """Moves the arrays one by one, each freed before the next is moved; the tree itself is changed."""
    for name, value in tree.items():
        tree[name] = _to_device(value) if isinstance(value, dict) else jax.device_put(value).block_until_ready()
    return tree
