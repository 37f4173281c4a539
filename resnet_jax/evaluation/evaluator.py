"""Exact evaluation: every image once, whatever the batch size and the number of devices."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from resnet_jax.build import Split
from resnet_jax.data.batch import Batch
from resnet_jax.data.device_augment import normalize
from resnet_jax.data.examples import Examples
from resnet_jax.data.input_description import InputDescription
from resnet_jax.data.resident import ResidentData, take_rows
from resnet_jax.distributed import replicate, replicated, split_batch
from resnet_jax.evaluation.metrics import Sums, classification_sums
from resnet_jax.evaluation.protocols import Protocol, center, make_protocol
from resnet_jax.evaluation.scores import sums_of
from resnet_jax.evaluation.shares import add_shares, own_copies, own_mesh
from resnet_jax.evaluation.streamed_scores import divisible, score_streamed
from resnet_jax.models.resnet import ResNet
from resnet_jax.xla_options import backend_options

Evaluate = Callable[..., dict[str, float]]
Score = Callable[..., tuple[np.ndarray, np.ndarray]]


def make_evaluator(
    model: ResNet,
    mesh: Mesh,
    *,
    protocol: str,
    batch_size: int,
    input: InputDescription,
    workers: int | None = None,
    compiler_options: Mapping[str, Any] | None = None,
) -> Evaluate:
    """Returns the function (variables, split, unreadable="stop") -> {"loss", "error_top1", "error_top5", "count"}.

    With unreadable="skip", images on disk that cannot be decoded are left out, and of the count, too.

    In a run of several processes all call it together, and get the same numbers. Of a split on disk each decodes its
    own share of the images and scores them on its own devices, see `add_shares`; of one in device memory every device
    takes its rows of each batch.

    Args:
      model: the net.
      mesh: devices that share each batch.
      protocol: a name of `PROTOCOLS`, with the paper's options.
      batch_size: images per step over all devices, see `make_scorer`.
      input: what the net expects of its input.
      workers: processes that decode a split on disk, see `ViewedExamples.stream`.
      compiler_options: XLA's; None: those that suit the backend.

    Raises:
      ValueError: for an unknown protocol; and, when called, as `make_scorer`'s function and `add_shares` do.
    """
    made = make_protocol(protocol, input)
    own = own_mesh(mesh)
    own_batch_size = -(-batch_size * own.size // mesh.size)
    options = backend_options() if compiler_options is None else dict(compiler_options)
    score = make_scorer(model, own, protocol=made, batch_size=own_batch_size, workers=workers, compiler_options=options)
    batch_size = divisible(batch_size, mesh)
    fetch = _make_fetch(mesh, batch_size, input)

    # Apart from `fetch`, so that splits of different sizes share the compiled net.
    @partial(jax.jit, donate_argnums=0, out_shardings=replicated(mesh), compiler_options=options)
    def add_batch(sums: Sums, variables: dict, batch: Batch) -> Sums:
        return sums + classification_sums(center(model, variables, batch.image), batch.label, batch.weight)

    def evaluate(variables: dict, split: Split, *, unreadable: str = "stop") -> dict[str, float]:
        if isinstance(split, Examples):
            copies = own_copies(variables, mesh)

            def test(share: range) -> Sums:
                return sums_of(*score(copies, split, unreadable=unreadable, share=share))

            return add_shares(len(split), mesh, test, unreadable=unreadable)
        refuse_resident(made)
        sums = replicate(Sums.zero(), mesh)
        for start in range(0, len(split), batch_size):
            sums = add_batch(sums, variables, fetch(split, start))
        means = sums.means()
        if means["count"] != len(split):
            raise RuntimeError(f"evaluated {means['count']} of {len(split)} images; every one must count once")
        return means

    return evaluate


def make_scorer(
    model: ResNet,
    mesh: Mesh,
    *,
    protocol: Protocol,
    batch_size: int,
    workers: int | None = None,
    compiler_options: Mapping[str, Any] | None = None,
) -> Score:
    """Returns the function (variables, split) -> (scores float32 [n, classes], labels int32 [n]), in the split's order.

    With `share`, a range, it scores that stretch of a split on disk alone. If the mesh has devices of several
    processes, all call it together, and each gets the scores of all images, for which each decodes all images; where
    sums will do, `make_evaluator` divides that work.

    Args:
      model: the net.
      mesh: devices that share each batch.
      protocol: from `make_protocol`.
      batch_size: images of the net's input size per step over all devices, fewer where the protocol sees more pixels
        of an image; raised to a multiple of the number of devices. It changes nothing but speed: what a batch has too
        many is dropped.
      workers: as for `make_evaluator`.
      compiler_options: likewise.

    Raises:
      ValueError: when the function is called, for a split in device memory and a protocol that needs the images' own
        sizes, or a split on disk and a net that takes images as they are.
      UndecodableImage: for an image on disk that cannot be decoded; the message names it.
      RuntimeError: if not every image was scored exactly once.
    """
    resident_batch_size = divisible(batch_size, mesh)
    fetch = _make_fetch(mesh, resident_batch_size, protocol.input)

    options = backend_options() if compiler_options is None else dict(compiler_options)
    jit = partial(jax.jit, out_shardings=replicated(mesh), compiler_options=options)

    @jit
    def score_normalized(variables: dict, images):
        return center(model, variables, images)

    score_batch = jit(partial(protocol.scores, model))

    def score(
        variables: dict, split: Split, *, unreadable: str = "stop", share: range | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(split, Examples):
            if model.num_classes is None:
                raise ValueError("a net without a classifier (num_classes=None) has no scores")
            (scores,), labels = score_streamed(
                [partial(score_batch, variables)],
                split,
                mesh=mesh,
                protocol=protocol,
                num_classes=model.num_classes,
                batch_size=batch_size,
                workers=workers,
                unreadable=unreadable,
                share=share,
            )
            return scores, labels
        refuse_resident(protocol)
        starts = range(0, len(split), resident_batch_size)
        batches = [np.asarray(score_normalized(variables, fetch(split, start).image)) for start in starts]
        return np.concatenate(batches)[: len(split)], np.asarray(split.labels)

    return score


def score_together(
    nets: Sequence[tuple[ResNet, dict]],
    split: Examples,
    mesh: Mesh,
    *,
    protocols: Sequence[Protocol],
    batch_size: int,
    workers: int | None = None,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Scores of several nets on a split on disk, each of whose images is decoded once for all, and the labels.

    Args:
      nets: models and variables, of as many classes.
      split: the images.
      mesh: devices that share each batch.
      protocols: of each net; they may differ in what happens to an image on the devices, not in what is seen of it.
      batch_size: as for `make_scorer`.
      workers: likewise.

    Raises:
      ValueError: the protocols see an image differently.
      UndecodableImage: for an image that cannot be decoded; the message names it.
      RuntimeError: if not every image was scored exactly once.
    """
    if any((other.view, other.average) != (protocols[0].view, protocols[0].average) for other in protocols):
        raise ValueError("nets are scored together that see the same of an image and average alike")
    jit = partial(jax.jit, out_shardings=replicated(mesh), compiler_options=backend_options())
    return score_streamed(
        [
            partial(jit(partial(protocol.scores, model)), variables)
            for (model, variables), protocol in zip(nets, protocols, strict=True)
        ],
        split,
        mesh=mesh,
        protocol=protocols[0],
        num_classes=nets[0][0].num_classes or 0,
        batch_size=batch_size,
        workers=workers,
    )


def _make_fetch(mesh: Mesh, batch_size: int, input: InputDescription) -> Callable[[ResidentData, int], Batch]:
    @jax.jit
    def fetch(data: ResidentData, start) -> Batch:
        rows = jax.lax.with_sharding_constraint(start + jnp.arange(batch_size), split_batch(mesh))
        images, labels = take_rows(data, jnp.minimum(rows, len(data) - 1))
        weights = (rows < len(data)).astype(jnp.float32)
        return Batch(image=normalize(images, input.mean, input.std), label=labels, weight=weights)

    return fetch


def refuse_resident(protocol: Protocol) -> None:
    """Raises ValueError for a protocol that a split in device memory cannot serve."""
    if protocol.name != "center":
        raise ValueError(
            f"protocol={protocol.name!r} needs images of varying size (data.pipeline=streamed); those of a data set in "
            "device memory have one size: protocol=center"
        )
