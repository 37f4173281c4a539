"""What a step makes smaller: the logistic loss of all classes at sampled anchors or regions, and one class's boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from resnet_jax.detection.boxes import encode
from resnet_jax.detection.objective import BoxBatch
from resnet_jax.detection.rpn import Proposals
from resnet_jax.detection.settings import Anchors, AnchorSampling, RegionSampling
from resnet_jax.detection.targets import Truth
from resnet_jax.localization.losses import NO_OBJECT, LocalizationSums, sampled_losses, weighted
from resnet_jax.localization.objective import per_class_proposals, per_class_regions
from resnet_jax.localization.per_class_rpn import PerClassRpn
from resnet_jax.localization.region_net import RegionNet
from resnet_jax.localization.settings import CROP_SAMPLING
from resnet_jax.localization.warping import warp
from resnet_jax.models.resnet import ResNet

NET = ResNet((1, 1), num_classes=None, stem="imagenet", width=4, norm="frozen")
RPN = PerClassRpn(NET, 3, Anchors((12.0, 20.0), (0.5, 1.0, 2.0)))
REGIONS = RegionNet(NET, 3, 16)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def variables():
    return random_variables(RPN, (32, 32, 3), train=False)


@pytest.fixture(scope="module")
def region_variables():
    return random_variables(REGIONS, (16, 16, 3), train=False)


def batch(**changes):
    """Two images of classes 2 and 1; the second object of the first is ignored."""
    image = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    boxes = np.zeros((2, 3, 4), np.float32)
    boxes[0, :2], boxes[1, 0] = [[2, 3, 15, 14], [20, 20, 31, 31]], [9, 8, 30, 29]
    truth = Truth(
        jnp.asarray(boxes),
        jnp.array([[2, 2, 0], [1, 0, 0]]),
        jnp.array([[True, True, False], [True, False, False]]),
        jnp.array([[False, True, False], [False, False, False]]),
    )
    found = BoxBatch(jnp.asarray(image), jnp.full((2, 2), 32), truth, jnp.ones(2), jnp.array([4, 9]))
    return found.replace(**changes)


def close(found, expected, tolerance=1e-4):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_the_loss_of_sampled_outputs_by_hand():
    logits = jnp.array([[2.0, -1.0], [0.5, 0.0], [3.0, 3.0]])
    offsets, wanted = jnp.array([[0.0, 0.0, 0.0, 2.0]] * 3), jnp.array([[0.0, 0.5, 0.0, 0.0]] * 3)
    labels, valid = jnp.array([1, NO_OBJECT, 0]), jnp.array([True, True, False])
    found = sampled_losses(logits, offsets, labels, wanted, valid, beta=1.0)
    classes = np.log1p(np.exp(2.0)) + np.log1p(np.exp(1.0)) + np.log1p(np.exp(0.5)) + np.log(2.0)
    close(found.classes, classes)
    close(found.boxes, 0.5 * 0.25 + 1.5)
    close(found.loss, (classes + 1.625) / 2)
    assert (found.sampled, found.positives, found.errors, found.images) == (2, 1, 1, 1)
    right = sampled_losses(logits, offsets, jnp.array([0, NO_OBJECT, 0]), wanted, valid, beta=1.0)
    assert right.errors == 0


def test_sums_have_means():
    sums = LocalizationSums(*(jnp.array(value) for value in (6.0, 8.0, 4.0, 16.0, 5.0, 2.0, 2.0)))
    assert sums.means() == {"loss": 3.0, "classes": 0.5, "boxes": 0.25, "object_error": pytest.approx(0.4), "count": 2}
    assert sums.wrong == (2.0, 5.0) and sums.counted == 2.0
    with pytest.raises(ValueError, match="no image was counted"):
        LocalizationSums.zero().means()
    images = LocalizationSums(*(jnp.array([1.0, jnp.nan]) for _ in range(7)))
    assert all(float(value) == 1.0 for value in weighted(images, jnp.array([1.0, 0.0])))


def test_anchors_near_the_objects_are_of_their_class_and_only_it_has_boxes(variables):
    """With all anchors sampled nothing is drawn: the loss is that of all outputs, computed whole."""
    sampling = AnchorSampling(most=400, fraction=1.0, positive=0.5, negative=0.3, cross_boundary=True)
    objective = per_class_proposals(RPN, sampling, seed=0, beta=0.5)
    loss, sums, statistics = jax.jit(objective.losses)(variables, batch(), KEY)
    jax.tree.map(np.testing.assert_array_equal, statistics, variables["batch_stats"])
    logits, offsets = jax.jit(lambda images: RPN.apply(variables, images, train=False))(batch().image)
    logits, offsets = np.asarray(logits), np.asarray(offsets)
    anchors, boxes = np.asarray(RPN.all_anchors(jnp.zeros((1, 4, 4, 1)))), np.asarray(batch().truth.boxes)
    total, sampled, positives = 0.0, 0, 0
    for image, (objects, ignored, label) in enumerate((((0, 1), {1}, 2), ((0,), set(), 1))):
        overlaps = np.array([[_overlap(boxes[image, own], anchor) for anchor in anchors] for own in objects])
        best, largest = overlaps.argmax(0), overlaps.max(0)
        of_object = (largest >= 0.5) | (overlaps == overlaps.max(1, keepdims=True)).any(0)
        near_ignored = np.isin(best, list(ignored)) & (largest >= 0.3)
        positive, negative = of_object & ~near_ignored, (largest < 0.3) & ~of_object
        targets = np.zeros(logits[image].shape)
        targets[positive, label] = 1
        entropy = np.logaddexp(0, logits[image]) - targets * logits[image]
        wanted = encode(jnp.asarray(boxes[image, best]), jnp.asarray(anchors), (1.0, 1.0, 1.0, 1.0))
        difference = np.abs(offsets[image, :, label] - wanted)
        smooth = np.where(difference < 0.5, difference**2, difference - 0.25).sum(1)
        counted = positive | negative
        total += (entropy[counted].sum() + smooth[positive].sum()) / counted.sum()
        sampled, positives = sampled + counted.sum(), positives + positive.sum()
    assert positives > 3 and sums.sampled == sampled < 2 * len(anchors) and sums.positives == positives
    close(loss, total, 1e-3)
    close(sums.loss, total, 1e-3)


def _overlap(box, anchor):
    """Intersection over union, one at a time."""
    sides = np.minimum(box[2:], anchor[2:]) - np.maximum(box[:2], anchor[:2])
    common = np.prod(np.maximum(sides, 0))
    return np.float32(common / (np.prod(box[2:] - box[:2]) + np.prod(anchor[2:] - anchor[:2]) - common))


@pytest.fixture(scope="module")
def losses(variables):
    """From a batch to the loss, the sums and the gradients, with the paper's sampling."""
    own = per_class_proposals(RPN, seed=0).losses

    @jax.jit
    def loss_and_gradients(batch):
        function = jax.value_and_grad(lambda params: own({**variables, "params": params}, batch, KEY)[:2], has_aux=True)
        (loss, sums), gradients = function(variables["params"])
        return loss, sums, gradients

    return loss_and_gradients


def test_eight_anchors_of_an_image_at_most_half_of_them_positive(losses):
    assert CROP_SAMPLING.most == 8 and CROP_SAMPLING.fraction == 0.5
    assert (CROP_SAMPLING.positive, CROP_SAMPLING.negative) == (0.7, 0.3)
    _, sums, _ = losses(batch())
    assert sums.sampled == 16 and 2 <= sums.positives <= 8


def test_what_is_drawn_depends_on_the_position_and_an_image_counts_by_its_weight(losses):
    both = losses(batch())[0]
    parts = [losses(batch(weight=jnp.eye(2)[number])) for number in range(2)]
    close(both, parts[0][0] + parts[1][0])
    assert [each[1].images for each in parts] == [1, 1]
    assert abs(losses(batch(position=jnp.array([5, 10])))[0] - both) > 1e-3


def test_only_the_image_s_class_moves_the_offsets(losses):
    gradients = losses(batch())[2]
    regressor = np.asarray(gradients["regressor"]["kernel"]).reshape(-1, 6, 3, 4)
    assert not regressor[:, :, 0].any() and regressor[:, :, 1].any() and regressor[:, :, 2].any()
    classifier = np.asarray(gradients["classifier"]["kernel"]).reshape(-1, 6, 3)
    assert all(classifier[:, :, label].any() for label in range(3))
    assert np.any(gradients["trunk"]["stem"]["conv"]["kernel"])


def test_an_image_without_a_target_has_negatives_alone_and_finite_gradients(losses):
    nothing = batch().truth._replace(valid=jnp.zeros((2, 3), bool))
    _, sums, gradients = losses(batch(truth=nothing))
    assert sums.positives == 0 and sums.boxes == 0 and sums.sampled == 16
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def with_proposals():
    """Each image has a proposal next to its first object and two elsewhere."""
    boxes = jnp.array(
        [[[3, 3, 15, 15], [0, 20, 12, 31], [19, 21, 31, 31]], [[9, 9, 29, 29], [0, 0, 8, 8], [20, 2, 31, 9]]],
        jnp.float32,
    )
    return batch(proposals=Proposals(boxes, jnp.zeros((2, 3)), jnp.ones((2, 3), bool)))


def test_regions_are_cut_from_the_image_and_of_its_class_at_half_an_overlap(region_variables):
    sampling = RegionSampling(most=6, fraction=0.5)
    objective = per_class_regions(REGIONS, sampling, seed=0)
    loss, sums, _ = jax.jit(objective.losses)(region_variables, with_proposals(), KEY)
    given, total = with_proposals(), 0.0
    apply = jax.jit(
        lambda image, boxes: REGIONS.apply(
            region_variables, warp(image, boxes, given.sizes[:1], size=16)[0], train=False
        )
    )
    # Of the first image the third proposal covers the ignored object, and counts in neither way.
    lists = ((0, 1), (0, 1, 2))
    for image, (numbers, label) in enumerate(zip(lists, (2, 1), strict=True)):
        target = given.truth.boxes[image, 0]
        boxes = np.stack([target, *(given.proposals.boxes[image, number] for number in numbers)])
        padded = np.zeros((1, 4, 4), np.float32)
        padded[0, : len(boxes)] = boxes
        logits, offsets = (np.asarray(each)[: len(boxes)] for each in apply(given.image[image : image + 1], padded))
        positive = np.arange(len(boxes)) < 2
        targets = np.zeros(logits.shape)
        targets[positive, label] = 1
        entropy = (np.logaddexp(0, logits) - targets * logits).sum()
        wanted = encode(jnp.broadcast_to(target, boxes.shape), jnp.asarray(boxes), (10.0, 10.0, 5.0, 5.0))
        difference = np.abs(offsets[:, label] - wanted)[positive]
        smooth = np.where(difference < 1, 0.5 * difference**2, difference - 0.5).sum()
        total += (entropy + smooth) / len(boxes)
    assert (sums.sampled, sums.positives, sums.images) == (7, 4, 2)
    close(loss, total, 1e-3)


def test_statistics_are_of_whole_images():
    net = NET.clone(norm="batch", bn_group_size=8)
    assert per_class_proposals(RPN.clone(net=net), seed=0)[2:] == (8, True)
    assert per_class_proposals(RPN, seed=0)[2:] == (1, False)
    regions = REGIONS.clone(net=net)
    assert per_class_regions(regions, RegionSampling(most=4), seed=0)[2:] == (2, True)
    assert per_class_regions(REGIONS.clone(net=net.clone(bn_group_size=None)), seed=0)[2:] == (None, True)
    with pytest.raises(
        ValueError, match="bn_group_size=8 splits the 3 regions of an image; allowed are multiples of 3"
    ):
        per_class_regions(regions, RegionSampling(most=3), seed=0)


def test_regions_need_proposals(region_variables):
    with pytest.raises(ValueError, match="the batch has no proposals; `testing.with_proposals`"):
        per_class_regions(REGIONS, seed=0).losses(region_variables, batch(), KEY)


def test_no_array_has_the_offsets_of_all_anchors_and_classes():
    rpn = RPN.clone(num_classes=200)
    variables = jax.eval_shape(lambda: rpn.init(jax.random.key(0), batch().image, train=False))
    anchors, params = 4 * 4 * 6, variables["params"]["regressor"]["kernel"].size
    program = jax.make_jaxpr(jax.grad(lambda own: per_class_proposals(rpn, seed=0).losses(own, batch(), KEY)[0]))
    assert max(_sizes(program(variables).jaxpr)) <= max(2 * anchors * 200, params)


def _sizes(jaxpr):
    """The sizes of all arrays that a program makes, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _sizes(inner)
