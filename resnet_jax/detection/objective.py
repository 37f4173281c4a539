"""The loss of images with boxes: approximate joint training, in which proposals are constants (Ren et al. 2015)."""

from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resnet_jax.detection.faster_rcnn import FasterRcnn, Level
from resnet_jax.detection.losses import DetectionSums, anchor_losses, image_loss, region_losses
from resnet_jax.detection.rpn import Proposals, propose
from resnet_jax.detection.settings import AnchorSampling, Proposing, RegionSampling
from resnet_jax.detection.targets import RegionTargets, Truth, anchor_targets, region_targets
from resnet_jax.models.dense import Sizes
from resnet_jax.random_keys import Seed, named_key
from resnet_jax.training.objective import Objective


class BoxBatch(flax.struct.PyTreeNode):
    """Normalised images, padded at the bottom and right, and their objects.

    Attributes:
      image: [n, h, w, c].
      sizes: [n, 2], height and width of each without its padding, in pixels.
      truth: `Truth`, of arrays [n, ...].
      weight: 1 for an image, 0 for padding, float32 [n].
      position: of each image among all that the run trains on, int32 [n]; what is drawn for it depends on nothing else.
      proposals: another detector's, of arrays [n, ...]; None: the trained one's own.
    """

    image: Any
    sizes: Any
    truth: Truth
    weight: Any
    position: Any
    proposals: Proposals | None = None

    @property
    def unreadable(self) -> Array:
        """How many images could not be decoded: none, since one would have stopped the run."""
        return jnp.zeros((), jnp.int32)


class Sampling(NamedTuple):
    """How a training step chooses what it looks at.

    Attributes:
      proposing: of the proposals.
      anchors: of the anchors.
      regions: of the proposals and objects.
      anchor_beta: of the anchors' smooth L1 loss: sigma = 3 (Ren et al. 2015).
      region_beta: of the regions'.
    """

    proposing: Proposing = Proposing(before=12000, after=2000)
    anchors: AnchorSampling = AnchorSampling()
    regions: RegionSampling = RegionSampling()
    anchor_beta: float = 1.0 / 9.0
    region_beta: float = 1.0


# What of the loss a step makes smaller.
TRAINED = ("all", "proposals", "regions")


def detection(detector: FasterRcnn, sampling: Sampling, *, seed: Seed, trains: str = "all") -> Objective:
    """Proposals and regions trained together, or one of them; batches are `BoxBatch`.

    Of each image the loss is `image_loss`, or its part.

    Args:
      detector: the net.
      sampling: of anchors and regions.
      seed: of the sampling.
      trains: a name of `TRAINED`. With "proposals" no region is classified, with "regions" no anchor counts, and the
        proposals are the batch's or those of the variables as they are: the steps of alternating training.

    Raises:
      ValueError: for another `trains`.
    """
    if trains not in TRAINED:
        raise ValueError(f"trains={trains!r}: allowed are {', '.join(TRAINED)}")
    sampling_key = named_key(seed, "sampling")

    def losses(variables, batch: BoxBatch, key):
        keys = jax.vmap(lambda position: jax.random.fold_in(sampling_key, position))(batch.position)
        of_images = detection_losses(detector, variables, batch, keys, sampling, dropout_key=key, trains=trains)
        sums = DetectionSums(*(jnp.sum(jnp.where(batch.weight > 0, each, 0.0) * batch.weight) for each in of_images))
        return sums.loss, sums, variables["batch_stats"]

    return Objective(losses, DetectionSums.zero(), group_size=1, learns_statistics=False)


def detection_losses(
    detector: FasterRcnn,
    variables: dict,
    batch: BoxBatch,
    keys: Array,
    sampling: Sampling,
    *,
    dropout_key: Array,
    trains: str = "all",
) -> DetectionSums:
    """The sums of each image, arrays [n].

    Args:
      detector: the net.
      variables: of it, {"params", "batch_stats"}.
      batch: the images.
      keys: [n], of what is drawn for each image.
      sampling: of anchors and regions.
      dropout_key: of the tail's dropout, where there is any.
      trains: a name of `TRAINED`; the rest is 0.
    """
    # What `apply` returns depends on its arguments, which no type says.
    features: Any = detector.apply(variables, batch.image, batch.sizes, method="features")
    proposals, count = batch.proposals, len(features)
    found = {name: jnp.zeros(count) for name in DetectionSums._fields}
    if proposals is None:
        proposing: Any = detector.apply(variables, features, method="proposing")
        logits, offsets = proposing
        anchors = detector.all_anchors(features)
        if trains != "regions":
            found |= _of_anchors(logits, offsets, anchors, batch, keys, sampling)
        if trains != "proposals":
            own = propose_all(logits, offsets, anchors, batch.sizes, sampling.proposing)
            proposals = jax.lax.stop_gradient(own)
    if proposals is not None:
        targets = jax.vmap(
            lambda key, own, truth: region_targets(jax.random.fold_in(key, 1), own, truth, sampling.regions)
        )(keys, proposals, batch.truth)
        found |= _of_regions(detector, variables, features, targets, batch, sampling, dropout_key)
    return DetectionSums(**(found | {"loss": image_loss(found), "images": jnp.ones(count)}))


def _of_anchors(
    logits: Array, offsets: Array, anchors: Array, batch: BoxBatch, keys: Array, sampling: Sampling
) -> dict[str, Array]:
    """What `DetectionSums` has of each image's anchors."""

    def of_image(key, logits, offsets, truth, size):
        targets = anchor_targets(jax.random.fold_in(key, 0), anchors, truth, size, sampling.anchors)
        return anchor_losses(logits, offsets, targets, beta=sampling.anchor_beta)

    return jax.vmap(of_image)(keys, logits, offsets, batch.truth, batch.sizes)


def _of_regions(
    detector: FasterRcnn,
    variables: dict,
    features: Array,
    targets: RegionTargets,
    batch: BoxBatch,
    sampling: Sampling,
    dropout_key: Array,
) -> dict[str, Array]:
    """What `DetectionSums` has of each image's regions."""
    classified: Any = detector.apply(
        variables,
        [Level(features, batch.sizes)],
        targets.boxes,
        batch.sizes,
        train=True,
        method="classify",
        rngs={"dropout": dropout_key},
    )
    scores, boxes = classified
    return jax.vmap(lambda *own: region_losses(*own, beta=sampling.region_beta))(scores, boxes, targets)


def propose_from(
    detector: FasterRcnn, variables: dict, features: Float[Array, "n fh fw f"], sizes: Sizes, settings: Proposing
) -> Proposals:
    """The proposals of each image of a batch from what its regions share."""
    proposing: Any = detector.apply(variables, features, method="proposing")
    logits, offsets = proposing
    return propose_all(logits, offsets, detector.all_anchors(features), sizes, settings)


def propose_all(
    logits: Float[Array, "n a"],
    offsets: Float[Array, "n a 4"],
    anchors: Float[Array, "a 4"],
    sizes: Sizes,
    settings: Proposing,
) -> Proposals:
    """The proposals of each image of a batch, see `propose`."""
    return jax.vmap(lambda *own: propose(own[0], own[1], anchors, own[2], settings))(logits, offsets, sizes)
