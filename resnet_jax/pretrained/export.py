"""A net as one function of uint8 images, in a file that jax alone can run."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from resnet_jax.atomic_files import check_new_file, open_atomically, write_text_atomically
from resnet_jax.data.device_augment import normalize
from resnet_jax.data.input_description import InputDescription
from resnet_jax.models.resnet import ResNet
from resnet_jax.pretrained import folding
from resnet_jax.pretrained.description import Description, input_settings, plain_metrics
from resnet_jax.pretrained.layout import MEAN, STD, check_layout, tensor_name
from resnet_jax.pretrained.net_settings import net_settings
from resnet_jax.pretrained.weights import check_statistics

# jax's documentation names no ending. The StableHLO is inside jax's own envelope, so ".stablehlo" would mislead.
SUFFIX = ".jax_export"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_inference(
    path: str | os.PathLike,
    model: ResNet,
    variables: Mapping[str, Any],
    *,
    input: InputDescription,
    fold_batch_norm: bool = False,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    name: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    source: str | None = None,
    license: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the net as one function, its parameters inside, for programs that have jax and not this library.

    The function takes images, uint8 [b, height, width, channels] for any b from 1, and gives logits, float32
    [b, num_classes]; without a classifier, the pooled features. It normalises by itself, and has no gradient. With the
    package flatbuffers beside jax, these lines run it, and compile once for each b::

        import jax.export
        with open("net.jax_export", "rb") as file:
            run = jax.jit(jax.export.deserialize(file.read()).call)
        logits = run(images)

    Images of another dtype or shape are a ValueError there. NAME.jax_export.json beside the file says what else its use
    needs: the class names, to which shorter side and how images are resized before their centre is cropped, the net's
    settings, what was passed here, jax's version, and the file's SHA-256.

    jax promises that a jaxlib built up to six months after the exporting one runs the file, and one built up to three
    weeks before it (jax's documentation, "Exporting and serializing staged-out computations", compatibility
    guarantees). For longer keep the weights, see `save_pretrained`, and export again.

    Args:
      path: NAME.jax_export; folders that are missing are made.
      model: the net; its dtype is kept.
      variables: its {"params", "batch_stats"}.
      input: what the net expects of its input, as many class names as the net has classes.
      fold_batch_norm: fold the normalizations into the convolutions (see there); the logits differ by rounding.
      platforms: where it can run, of "cpu", "cuda", "rocm" and "tpu"; none of them has to be here.
      name: what the net is called, e.g. "cifar_resnet20".
      metrics: numbers that were measured, e.g. {"error_top1": 0.0875}.
      source: where the parameters are from.
      license: on what terms they may be used.
      overwrite: whether the two files may take the place of others.

    Returns:
      The path written.

    Raises:
      FileExistsError: one of the two files is there already, and `overwrite` is not set; nothing is done then.
      ValueError: another ending, unknown platforms, variables that are not the net's, or a description that cannot be
        kept; nothing is written then.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"a net is exported as NAME{SUFFIX}, found {path.name!r}")
    if not platforms or not set(platforms) <= set(PLATFORMS):
        raise ValueError(f"platforms={tuple(platforms)}; allowed are one or more of {', '.join(PLATFORMS)}")
    beside = path.with_name(f"{path.name}.json")
    if not overwrite:
        check_new_file(path, beside)
    try:
        description = Description(model, input_settings(input), name, plain_metrics(metrics or {}), source, license)
        _check(description, variables, input)
    except ValueError as error:
        raise ValueError(f"{path} was not written: {error}") from error
    if fold_batch_norm:
        variables = folding.fold_batch_norm(model, variables)
    exported = _export(model, variables, input, tuple(platforms))
    content = exported.serialize()
    about = {
        "file": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "jax": jax.__version__,
        "calling_convention_version": exported.calling_convention_version,
        "platforms": exported.platforms,
        "takes": f"{exported.in_avals[0].str_short()}: images, not normalised",
        "gives": f"{exported.out_avals[0].str_short()}: {'features' if model.num_classes is None else 'logits'}",
        "image_shape": input.image_shape,
        "class_names": input.class_names,
        "short_side": input.short_side,
        "resize": input.resize,
        "fold_batch_norm": fold_batch_norm,
        "net": net_settings(model),
        **{key: getattr(description, key) for key in ("name", "metrics", "source", "license")},
    }
    with open_atomically(path) as file:
        file.write(content)
    write_text_atomically(beside, json.dumps(about, indent=1))
    return path


def _check(description: Description, variables: Mapping[str, Any], input: InputDescription) -> None:
    """Raises a ValueError unless all of it could be a weight file, see `save_pretrained`."""
    leaves = {tensor_name(place): leaf for place, leaf in jax.tree.leaves_with_path(dict(variables))}
    statistics = {MEAN: input.mean, STD: input.std}
    leaves |= statistics
    found = {name: (leaf.dtype.name, leaf.shape) for name, leaf in leaves.items()}
    check_layout(found, Description.from_json(description.to_json()))
    check_statistics(statistics)


def _export(
    model: ResNet, variables: Mapping[str, Any], input: InputDescription, platforms: tuple[str, ...]
) -> export.Exported:
    def classify(images):
        return model.apply(variables, normalize(images, input.mean, input.std), train=False)

    (batch,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *input.image_shape), jnp.uint8)
    return export.export(jax.jit(classify), platforms=platforms)(images)
