"""Exact tests of localizers: every image once, whatever the batch size and the number of devices and processes."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32

from resnet_jax.data.input_description import InputDescription
from resnet_jax.detection.annotations import Annotated, BoxSource, truths
from resnet_jax.detection.detected import Detected
from resnet_jax.detection.gathering import detected_by_all
from resnet_jax.detection.settings import Proposing
from resnet_jax.distributed import replicated, split_batch
from resnet_jax.evaluation.shares import own_copies, own_mesh
from resnet_jax.evaluation.streamed_scores import divisible
from resnet_jax.localization.image_label import image_label
from resnet_jax.localization.localization_error import localization_errors
from resnet_jax.localization.ordered_views import Looking, OrderedViews, ViewBatch
from resnet_jax.localization.region_testing import RegionMember, best_of, update
from resnet_jax.localization.testing import BestBoxes, RpnMember, best_boxes, class_proposals, view_of
from resnet_jax.localization.views import HostView


class Nets(NamedTuple):
    """What localizes together: the modules, or, in the same order, their variables.

    Attributes:
      rpns: that propose.
      regions: that look at the proposals again; none: the best proposal is the answer.
    """

    rpns: tuple[Any, ...]
    regions: tuple[Any, ...] = ()

    @classmethod
    def of(cls, members: Sequence[Any], proposers: Sequence[Any]) -> "Nets":
        """Of runs' own nets, and of what proposes their regions if they have any."""
        return cls(tuple(proposers), tuple(members)) if proposers else cls(tuple(members))


def make_collector(
    nets: Nets,
    mesh: Mesh,
    *,
    input: InputDescription,
    looking: Looking,
    proposing: Proposing,
    batch_size: int,
    workers: int | None = None,
    compiler_options: Mapping[str, Any] | None = None,
) -> Callable[[Nets, BoxSource, Int32[np.ndarray, "images k"]], list[Detected]]:
    """Returns the function (variables, source, labels) -> of each image a box of each of its k classes.

    All processes call it together: each decodes and tests its own share of the images on its own devices, and then all
    have the boxes of all.

    Args:
      nets: `PerClassRpn` and `RegionNet` modules.
      mesh: devices of all processes.
      input: what the nets expect of their input.
      looking: what is made of an image.
      proposing: the choice of regions; without nets of regions there is none.
      batch_size: images per step over all devices; raised to a multiple of their number.
      workers: decoding processes, see `Stream`.
      compiler_options: XLA's.
    """
    own = own_mesh(mesh)
    size = divisible(-(-batch_size * own.size // mesh.size), own)
    stride = nets.rpns[0].stride

    @partial(jax.jit, out_shardings=replicated(own), compiler_options=dict(compiler_options or {}))
    def look(variables: Nets, views: tuple[HostView, ...], labels: jax.Array) -> BestBoxes:
        seen = [view_of(view, input.mean, input.std) for view in views]
        rpns = [RpnMember(*each) for each in zip(nets.rpns, variables.rpns, strict=True)]
        if not nets.regions:
            return best_boxes(rpns, seen, labels)
        regions = [RegionMember(*each) for each in zip(nets.regions, variables.regions, strict=True)]
        *proposers, cut = seen
        return best_of(update(regions, cut, class_proposals(rpns, proposers, labels, proposing), labels))

    def find(variables: Nets, source: BoxSource, labels: np.ndarray, share: range | None) -> list[tuple[int, Detected]]:
        batches, found = OrderedViews(source, labels, looking, stride=stride, batch_size=size, share=share), []
        with batches.stream(workers=workers) as stream:
            for batch in stream:
                views, own_labels = jax.device_put((batch.views, batch.labels), split_batch(own))
                found += _on_the_host(look(variables, views, own_labels), batch)
        return found

    def find_all(variables: Nets, source: BoxSource, labels: np.ndarray) -> list[Detected]:
        copies = own_copies(variables, mesh)
        return detected_by_all(
            mesh, len(source), lambda share: find(copies, source, labels, share), most=labels.shape[1]
        )

    return find_all


def _on_the_host(best: BestBoxes, batch: ViewBatch) -> list[tuple[int, Detected]]:
    boxes, scores = (np.asarray(each, np.float32) for each in best)
    return [
        (int(index), Detected(boxes[row], scores[row], batch.labels[row]))
        for row, index in enumerate(batch.image_index)
        if index >= 0
    ]


def make_evaluator(nets: Nets, mesh: Mesh, **options: Any) -> Callable[[Nets, BoxSource], dict[str, Any]]:
    """Returns the function (variables, source) -> what `measured` gives, of the boxes of each image's true class.

    Args:
      nets: modules.
      mesh: devices of all processes.
      **options: the rest of `make_collector`'s.
    """
    find_all = make_collector(nets, mesh, **options)
    known: dict[BoxSource, tuple[list[Annotated], np.ndarray]] = {}

    def evaluate(variables: Nets, source: BoxSource) -> dict[str, Any]:
        # A run tests the same images many times over, and of TFDS sets every record would be read again.
        if source not in known:
            objects = truths(source)
            known[source] = objects, true_labels(objects, source)
        objects, labels = known[source]
        return measured(find_all(variables, source, labels), objects, source)

    return evaluate


def true_labels(objects: Sequence[Annotated], source: BoxSource) -> Int32[np.ndarray, "images 1"]:
    """The class of each image's objects; ValueError, with the image, where they have several or none."""
    found = [image_label(each, source.where(index)) for index, each in enumerate(objects)]
    return np.array(found, np.int32)[:, None]


def measured(found: Sequence[Detected], objects: Sequence[Annotated], source: BoxSource) -> dict[str, Any]:
    """{"error_localization": a fraction, "count": images} of the boxes of all images, see `localization_errors`."""
    errors = localization_errors(found, objects, num_classes=len(source.class_names))
    return {"error_localization": errors.error, "count": errors.images}
