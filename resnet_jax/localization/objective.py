"""The losses of images with boxes, of the per-class proposals and of the warped regions (appendix C)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from resnet_jax.detection.objective import BoxBatch
from resnet_jax.detection.settings import AnchorSampling, RegionSampling
from resnet_jax.detection.targets import anchor_targets, region_targets
from resnet_jax.localization.losses import NO_OBJECT, LocalizationSums, sampled_losses, weighted
from resnet_jax.localization.per_class_rpn import PerClassRpn
from resnet_jax.localization.region_net import RegionNet
from resnet_jax.localization.settings import CROP_SAMPLING, WARPED_SAMPLING
from resnet_jax.localization.warping import warp
from resnet_jax.models.resnet import ResNet
from resnet_jax.random_keys import Seed, named_key
from resnet_jax.training.objective import Objective


def per_class_proposals(
    rpn: PerClassRpn, sampling: AnchorSampling = CROP_SAMPLING, *, seed: Seed, beta: float = 1.0 / 9.0
) -> Objective:
    """Sampled anchors of crops; batches are `BoxBatch`, of images whose objects are all of one class.

    Args:
      rpn: the net.
      sampling: of the anchors.
      seed: of the sampling.
      beta: of the smooth L1 loss, that of Ren et al.'s anchors.
    """
    sampling_key = named_key(seed, "sampling")

    def losses(variables, batch: BoxBatch, key):
        found: Any = rpn.apply(
            variables, batch.image, train=True, method="features", mutable=["batch_stats"], rngs={"dropout": key}
        )
        features, updated = found
        anchors, labels = rpn.all_anchors(features), batch.truth.labels[:, 0]
        targets = jax.vmap(lambda key, truth, size: anchor_targets(key, anchors, truth, size, sampling))(
            _keys(sampling_key, batch), batch.truth, batch.sizes
        )
        outputs: Any = rpn.apply(variables, features, targets.anchor, labels, method="at_anchors")
        own = jnp.where(targets.positive, labels[:, None], NO_OBJECT)
        of_images = jax.vmap(lambda *each: sampled_losses(*each, beta=beta))(
            *outputs, own, targets.offsets, targets.valid
        )
        sums = weighted(of_images, batch.weight)
        return sums.loss, sums, updated.get("batch_stats", {})

    return Objective(losses, LocalizationSums.zero(), *_statistics(rpn.net, 1))


def per_class_regions(
    net: RegionNet, sampling: RegionSampling = WARPED_SAMPLING, *, seed: Seed, beta: float = 1.0
) -> Objective:
    """Sampled proposals, cut out of their images and warped; batches are `BoxBatch` with proposals.

    The proposals and the objects of an image are all of one class. A proposal is positive that overlaps an object by
    `sampling.positive`, and so are the objects themselves.

    Args:
      net: of the regions.
      sampling: of the regions, `sampling.most` of each image.
      seed: of the sampling.
      beta: of the smooth L1 loss, that of Girshick's regions.

    Raises:
      ValueError: the net's bn_group_size is not that of whole images. From `losses`: a batch without proposals.
    """
    sampling_key = named_key(seed, "sampling")

    def losses(variables, batch: BoxBatch, key):
        if batch.proposals is None:
            raise ValueError("the batch has no proposals; `testing.with_proposals` adds those of a PerClassRpn")
        targets = jax.vmap(lambda key, proposals, truth: region_targets(key, proposals, truth, sampling))(
            _keys(sampling_key, batch), batch.proposals, batch.truth
        )
        regions = warp(batch.image, targets.boxes, batch.sizes, size=net.region_size)
        found: Any = net.apply(
            variables,
            regions.reshape(-1, *regions.shape[2:]),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        (logits, offsets), updated = found
        images, most = targets.classes.shape
        labels = batch.truth.labels[:, 0]
        of_class = jnp.take_along_axis(
            offsets.reshape(images, most, *offsets.shape[1:]), labels[:, None, None, None], axis=2
        )
        of_images = jax.vmap(lambda *each: sampled_losses(*each, beta=beta))(
            logits.reshape(images, most, -1), of_class[:, :, 0], targets.classes - 1, targets.offsets, targets.valid
        )
        sums = weighted(of_images, batch.weight)
        return sums.loss, sums, updated.get("batch_stats", {})

    return Objective(losses, LocalizationSums.zero(), *_statistics(net.net, sampling.most))


def _keys(key: Array, batch: BoxBatch) -> Array:
    """Of what is drawn for each image: by its position alone."""
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(batch.position)


def _statistics(net: ResNet, examples: int) -> tuple[int | None, bool]:
    """Images that share batch statistics, where a net sees several examples of each, and whether running ones move."""
    if net.norm != "batch":
        return 1, False
    if net.bn_group_size is None:
        return None, True
    if net.bn_group_size % examples:
        raise ValueError(
            f"bn_group_size={net.bn_group_size} splits the {examples} regions of an image; allowed are multiples of "
            f"{examples}"
        )
    return net.bn_group_size // examples, True
