"""Mirrored images beside the images: what is found does not depend on which of the two comes first, nor on padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from resnet_jax.detection.anchors import anchors
from resnet_jax.detection.backbones import ResidualTail, ResidualTrunk
from resnet_jax.detection.boxes import mirror
from resnet_jax.detection.faster_rcnn import FasterRcnn
from resnet_jax.detection.objective import propose_all
from resnet_jax.detection.settings import ANCHOR_WEIGHTS, Anchors, Detecting, Proposing
from resnet_jax.detection.testing import DetectionProtocol, Member, Scaled, detect
from resnet_jax.models.resnet import ResNet

STRIDE, CLASSES = 4, 2
ANCHORS = Anchors((6.0, 10.0), (0.5, 1.0))
# Of different widths, in a canvas that is wider than both; multiples of the stride, so that anchors lie symmetrically.
SIZES = np.array([[12, 20], [16, 16]], np.int32)
CANVAS = 16, 24
# Every anchor is a proposal.
EVERYTHING = Proposing(before=96, after=96, threshold=1.0, min_side=1.0)
PLAIN = DetectionProtocol(EVERYTHING, Detecting(score=0.0, threshold=0.3, most=10))
# Every region of every class is a detection: suppression would leave one of two mirror images that overlap.
ALL = DetectionProtocol(EVERYTHING, Detecting(score=0.0, threshold=1.0, most=200))


def member(seed, *, context=False):
    """A small net that proposes the same boxes in every image, symmetrical to its middle."""
    net = ResNet((1, 1), None, width=8)
    detector = FasterRcnn(
        ResidualTrunk(net),
        ResidualTail(net),
        num_classes=CLASSES,
        anchors=ANCHORS,
        rpn_features=4,
        roi="align",
        roi_size=2,
        context=context,
    )
    variables = variables_of(detector, seed)
    params = variables["params"]
    rpn = jax.tree.map(jnp.zeros_like, params["rpn"])
    # Anchors are centred on the first pixel of each stride; to the middle of the stride.
    at_first = anchors(1, 1, stride=STRIDE, sizes=ANCHORS.sizes, ratios=ANCHORS.ratios)
    offsets = jnp.zeros((len(at_first), 4)).at[:, 0].set(STRIDE / 2 / (at_first[:, 2] - at_first[:, 0]))
    rpn["boxes"]["bias"] = (offsets * jnp.array(ANCHOR_WEIGHTS)[None]).ravel()
    return Member(detector, {**variables, "params": params | {"rpn": rpn}})


def variables_of(detector, seed):
    boxes = jnp.array([[[0.0, 0.0, 8.0, 8.0]]])
    return random_variables(detector, (8, 8, 3), seed=seed, sizes=np.array([[8, 8]]), boxes=boxes)


@pytest.fixture(scope="module")
def members():
    return [member(0), member(1)]


@pytest.fixture(scope="module")
def of_both(members):
    """Detects in images and mirrored images."""
    return detecting(members[:1], ALL._replace(flip=True))


def noise(sizes, seed=0, canvas=CANVAS):
    """Images within their sizes, and nonsense beyond."""
    rng = np.random.default_rng(seed)
    images = np.full((len(sizes), *canvas, 3), 1e4, np.float32)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:height, :width] = rng.normal(size=(height, width, 3))
    return images


def mirrored(images, sizes):
    """Each image with left and right exchanged, where it was."""
    images = images.copy()
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:height, :width] = image[:height, :width][:, ::-1].copy()
    return images


def turned_back(boxes):
    """Boxes of each image with left and right exchanged."""
    return np.stack([mirror(own, int(width)) for own, (_, width) in zip(boxes, SIZES, strict=True)])


def detecting(members, protocol, sizes=SIZES):
    """The function from images, and a pyramid of [(images, sizes)], to detections."""
    nets, variables = zip(*members, strict=True)

    @jax.jit
    def compiled(variables, images, pyramid):
        own = [Member(*each) for each in zip(nets, variables, strict=True)]
        return detect(own, images, sizes, protocol, pyramid=[Scaled(*each) for each in pyramid])

    return lambda images, pyramid=(): compiled(variables, images, pyramid)


def assert_mirrored(left, right):
    assert left.valid.sum() > 10
    np.testing.assert_array_equal(left.valid, right.valid)
    np.testing.assert_array_equal(left.labels, right.labels)
    np.testing.assert_allclose(left.scores, right.scores, rtol=0, atol=2e-5)
    boxes = np.where(left.valid[..., None], turned_back(left.boxes), 0)
    np.testing.assert_allclose(boxes, right.boxes, rtol=0, atol=2e-3)


@pytest.mark.parametrize("way", ["refinement and voting", "pyramid", "ensemble", "context"])
def test_the_mirrored_images_have_the_mirrored_detections(members, way):
    ensemble = {"ensemble": members, "context": [member(2, context=True)]}.get(way, members[:1])
    refined = {"refinement": True, "voting": 0.5} if way == "refinement and voting" else {}
    protocol = PLAIN._replace(flip=True, **refined)
    pyramid = [(noise(k * SIZES, k, (24 * k, 24 * k)), k * SIZES) for k in (1, 2)] if way == "pyramid" else []
    found, images = detecting(ensemble, protocol), noise(SIZES)
    turned = [(mirrored(each, sizes), sizes) for each, sizes in pyramid]
    assert_mirrored(found(images, pyramid), found(mirrored(images, SIZES), turned))


def test_images_that_are_their_own_mirror_images_have_symmetric_detections(of_both):
    images = noise(SIZES)
    for image, (height, width) in zip(images, SIZES, strict=True):
        image[:height, width // 2 : width] = image[:height, : width // 2][:, ::-1]
    for boxes, scores, labels, valid, (_, width) in zip(*of_both(images), SIZES, strict=True):
        assert valid.sum() > 60 and len(np.unique(scores[valid])) > 60
        boxes, scores, labels = boxes[valid], scores[valid], labels[valid]
        distance = np.abs(np.asarray(mirror(boxes, int(width)))[:, None] - np.asarray(boxes)[None]).max(-1)
        distance += 100 * np.abs(scores[:, None] - scores[None]) + 100 * (labels[:, None] != labels[None])
        assert distance.min(1).max() < 1e-2


def test_probabilities_and_boxes_are_means_of_both_images(members, of_both):
    images = noise(SIZES)
    alone = detecting(members[:1], ALL)
    straight, turned, both = alone(images), alone(mirrored(images, SIZES)), of_both(images)
    # Sums over all regions do not depend on their order.
    count = straight.valid.sum(1)
    np.testing.assert_array_equal(count, both.valid.sum(1))
    np.testing.assert_allclose(both.scores.sum(1), (straight.scores + turned.scores).sum(1) / 2, rtol=1e-5)
    width = count * SIZES[:, 1]
    for mine, other in ((0, 2), (2, 0)):
        expected = (straight.boxes[..., mine].sum(1) + width - turned.boxes[..., other].sum(1)) / 2
        np.testing.assert_allclose(both.boxes[..., mine].sum(1), expected, rtol=1e-5)
    assert np.abs(straight.scores - turned.scores).max() > 1e-2


def test_padding_and_the_other_images_have_no_influence(members):
    sizes = np.array([[10, 18], [15, 16]], np.int32)
    found = detecting(members[:1], PLAIN._replace(flip=True), sizes)
    images, others = noise(sizes), noise(sizes, seed=1)
    others[others == 1e4] = -7.0
    others[0, :10, :18] = images[0, :10, :18]
    one, other = found(images), found(others)
    assert one.valid[0].sum() > 5 and np.abs(one.scores[1] - other.scores[1]).max() > 1e-3
    for left, right in zip(one, other, strict=True):
        np.testing.assert_allclose(left[0], right[0], rtol=0, atol=1e-5)


def test_proposals_are_those_of_the_images_alone(members):
    # It prefers some boxes by what it sees, and one box of an image is left, which does not move.
    net, variables = members[0]
    params, seeing = variables["params"], variables_of(net, 0)["params"]
    rpn = {**seeing["rpn"], "boxes": params["rpn"]["boxes"]}
    still = jax.tree.map(jnp.zeros_like, params["regressor"])
    variables = {**variables, "params": params | {"rpn": rpn, "regressor": still}}
    proposing = EVERYTHING._replace(after=1)

    @jax.jit
    def proposed(variables, images):
        features = net.apply(variables, images, SIZES, method="features")
        outputs = net.apply(variables, features, method="proposing")
        return propose_all(*outputs, net.all_anchors(features), jnp.asarray(SIZES), proposing).boxes[:, 0]

    images = noise(SIZES)
    found = detecting([Member(net, variables)], PLAIN._replace(proposing=proposing, flip=True))(images)
    own, turned = (proposed(variables, each) for each in (images, mirrored(images, SIZES)))
    np.testing.assert_allclose(found.boxes[:, 0], own, atol=1e-4)
    # In the mirrored images it prefers others.
    assert np.abs(turned_back(turned) - own).max() > 1


def test_what_is_not_asked_for_is_not_computed(members):
    def convolutions(flip):
        protocol = PLAIN._replace(flip=flip)
        program = jax.make_jaxpr(lambda images: detect(members[:1], images, SIZES, protocol))(noise(SIZES))
        return str(program).count("conv_general_dilated[")

    def parts(method, *arguments):
        net, variables = members[0]
        program = jax.make_jaxpr(lambda *own: net.apply(variables, *own, method=method))(*arguments)
        return str(program).count("conv_general_dilated[")

    trunk = parts("features", noise(SIZES), SIZES)
    assert trunk == 3
    rpn = parts("proposing", jnp.zeros((2, 4, 6, 8)))
    tail = convolutions(False) - trunk - rpn
    assert rpn == 3 and 2 <= tail <= 3
    assert convolutions(True) == convolutions(False) + trunk + tail
