"""Exact tests of a detector: every image once, whatever the batch size and the number of devices and processes."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from resnet_jax.data.device_augment import normalize
from resnet_jax.data.input_description import InputDescription
from resnet_jax.detection.annotations import Annotated, BoxSource, truths
from resnet_jax.detection.batches import BoxExample, Framing, in_file_pixels
from resnet_jax.detection.coco_ap import coco_ap_of_file, coco_results
from resnet_jax.detection.coco_json import CocoJson
from resnet_jax.detection.detected import Detected
from resnet_jax.detection.faster_rcnn import FasterRcnn
from resnet_jax.detection.gathering import detected_by_all
from resnet_jax.detection.measures import measure, with_error
from resnet_jax.detection.nms import Detections
from resnet_jax.detection.ordered_batches import OrderedBoxes
from resnet_jax.detection.testing import DetectionProtocol, Member, Scaled, detect
from resnet_jax.distributed import replicated, split_batch
from resnet_jax.evaluation.shares import own_copies, own_mesh
from resnet_jax.evaluation.streamed_scores import divisible

Find = Callable[..., list[tuple[int, Detected]]]


def make_finder(
    detectors: Sequence[FasterRcnn],
    mesh: Mesh,
    *,
    input: InputDescription,
    protocol: DetectionProtocol,
    framing: Framing,
    short_sides: Sequence[int] = (),
    batch_size: int,
    workers: int | None = None,
    compiler_options: Mapping[str, Any] | None = None,
    look: Callable[..., Detections] = detect,
) -> Find:
    """Returns the function (variables of each detector, source, share=None) -> [(index, detections)] of the images.

    Args:
      detectors: one, or an ensemble.
      mesh: devices of this process that share each batch.
      input: what the detectors expect of their input.
      protocol: how images are tested.
      framing: how they are scaled, for the proposals.
      short_sides: scales at which regions are classified instead, rising; empty: the framing's.
      batch_size: images per step over all devices; raised to a multiple of their number.
      workers: decoding processes, see `Stream`.
      compiler_options: XLA's.
      look: what is wanted, `detect` or `proposed`.
    """
    batch_size = divisible(batch_size, mesh)
    framings = [framing, *(framing.at(side) for side in short_sides)]

    @partial(jax.jit, out_shardings=replicated(mesh), compiler_options=dict(compiler_options or {}))
    def find_in(variables: Sequence[dict], images: Sequence[jax.Array], sizes: Sequence[jax.Array]) -> Detections:
        normal = [normalize(image, input.mean, input.std) for image in images]
        members = [Member(*each) for each in zip(detectors, variables, strict=True)]
        pyramid = [Scaled(*each) for each in zip(normal[1:], sizes[1:], strict=True)]
        return look(members, normal[0], sizes[0], protocol, pyramid=pyramid)

    def find(variables: Sequence[dict], source: BoxSource, *, share: range | None = None) -> list[tuple[int, Detected]]:
        batches, found = OrderedBoxes(source, framings, batch_size=batch_size, share=share), []
        with batches.stream(workers=workers) as stream:
            for scaled in stream:
                images, sizes = (
                    [jax.device_put(getattr(each, name), split_batch(mesh)) for each in scaled]
                    for name in ("image", "size")
                )
                found += _on_the_host(find_in(variables, images, sizes), scaled[0])
        return [(index, detected) for index, detected in found if index >= 0]

    return find


def _on_the_host(detections: Detections, examples: BoxExample) -> list[tuple[int, Detected]]:
    boxes, scores, labels, valid = (
        np.asarray(getattr(detections, name)) for name in ("boxes", "scores", "labels", "valid")
    )
    return [
        (
            int(index),
            Detected(
                in_file_pixels(boxes[row][kept], examples.scale[row]),
                scores[row][kept].astype(np.float32),
                labels[row][kept].astype(np.int32),
            ),
        )
        for row, index in enumerate(examples.image_index)
        for kept in [valid[row]]
    ]


def make_evaluator(
    detectors: Sequence[FasterRcnn], mesh: Mesh, *, metric: str, protocol: DetectionProtocol, **options: Any
) -> Callable[..., dict[str, Any]]:
    """Returns the function (variables of each detector, source) -> what `measure` gives.

    In a run of several processes all call it together and get the same numbers: each decodes and tests its own share of
    the images on its own devices, and then all have the detections of all.

    Args:
      detectors: one, or an ensemble.
      mesh: devices of all processes.
      metric: a name that `measure` knows.
      protocol: how images are tested.
      **options: the rest of `make_finder`'s.
    """
    find_all = make_collector(detectors, mesh, protocol=protocol, **options)
    known: dict[BoxSource, list[Annotated]] = {}

    def evaluate(variables: Sequence[dict], source: BoxSource) -> dict[str, Any]:
        # A run tests the same images many times over, and of TFDS sets every record would be read again.
        if source not in known:
            known[source] = truths(source)
        return measured(metric, find_all(variables, source), source, known[source])

    return evaluate


def measured(metric: str, found: Sequence[Detected], source: BoxSource, objects: Sequence[Annotated]) -> dict[str, Any]:
    """As `measure`, of all images of a source with their objects; COCO's of a `CocoJson` are by the file itself."""
    if metric == "coco" and isinstance(source, CocoJson):
        return with_error(coco_ap_of_file(coco_results(found, source.image_ids, source.category_ids), source.path))
    return measure(metric, found, objects, source.class_names)


def make_collector(
    detectors: Sequence[FasterRcnn],
    mesh: Mesh,
    *,
    protocol: DetectionProtocol,
    batch_size: int,
    look: Callable[..., Detections] = detect,
    **options: Any,
) -> Callable[[Sequence[dict], BoxSource], list[Detected]]:
    """Returns the function (variables of each detector, source) -> detections of each image, in the source's order.

    All processes call it together, and each gets all.
    """
    own = own_mesh(mesh)
    size = -(-batch_size * own.size // mesh.size)
    find = make_finder(detectors, own, protocol=protocol, batch_size=size, look=look, **options)
    most = protocol.detecting.most if look is detect else len(detectors) * protocol.proposing.after

    def find_all(variables: Sequence[dict], source: BoxSource) -> list[Detected]:
        copies = [own_copies(each, mesh) for each in variables]
        return detected_by_all(mesh, len(source), lambda share: find(copies, source, share=share), most=most)

    return find_all
