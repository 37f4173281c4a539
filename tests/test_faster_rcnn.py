"""The detector: torchvision's numbers with torchvision's parameters, and what has to hold of any."""

import json

import detector_parity as shared
import jax
import jax.numpy as jnp
import numpy as np
import parity_nets
import pytest

from resnet_jax.detection.backbones import ResidualTail, ResidualTrunk, VggTail, VggTrunk, frozen_names, split_net
from resnet_jax.detection.faster_rcnn import FasterRcnn, Level
from resnet_jax.detection.losses import DetectionSums
from resnet_jax.detection.objective import BoxBatch, Sampling, detection, detection_losses, propose_all
from resnet_jax.detection.settings import Anchors, AnchorSampling, Detecting, Proposing, RegionSampling
from resnet_jax.detection.targets import Truth
from resnet_jax.detection.testing import DetectionProtocol, Member, Scaled, detect
from resnet_jax.models.normalization import freeze_batch_norm
from resnet_jax.pretrained.pytorch.infer_torch import infer_torch
from resnet_jax.pretrained.pytorch.torch_variables import read_variables

PROPOSING = Proposing(shared.BEFORE, shared.AFTER, shared.RPN_THRESHOLD, shared.MIN_SIDE)
PROTOCOL = DetectionProtocol(PROPOSING, Detecting(shared.SCORE, shared.THRESHOLD, shared.COUNT))
# All anchors and all proposals there are.
EVERYTHING = Sampling(
    PROPOSING,
    AnchorSampling(most=432, fraction=1.0, cross_boundary=True),
    RegionSampling(most=shared.AFTER + 2, fraction=1.0),
    region_beta=shared.BETA,
)
SIZES = np.full((shared.IMAGES, 2), (shared.HEIGHT, shared.WIDTH), np.int32)
# Of PyTorch's names: ours, and what makes the layout ours.
LAYERS = {
    "rpn.head.conv.0.0": ("rpn", "conv"),
    "rpn.head.cls_logits": ("rpn", "objectness"),
    "rpn.head.bbox_pred": ("rpn", "boxes"),
    "roi_heads.box_predictor.cls_score": ("classifier",),
    "roi_heads.box_predictor.bbox_pred": ("regressor",),
}


@pytest.fixture(scope="module")
def theirs():
    with np.load(shared.FIXTURE) as file:
        return {name: file[name] for name in file.files}


def ours(layer, value):
    """A kernel or bias of the heads in our layout; there is no offset of the background."""
    if layer == "regressor":
        value = value[4:]
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


@pytest.fixture(scope="module")
def detectors(theirs):
    """By the way of region pooling, with torchvision's parameters."""
    values = shared.fill({name: tuple(shape) for name, shape in json.loads(str(theirs["names"])).items()})
    body = {name.removeprefix("body."): value for name, value in values.items() if name.startswith("body.")}
    net = infer_torch(parity_nets.stored(body))
    variables = freeze_batch_norm(read_variables(net, parity_nets.stored(body)))
    model = net.model.clone(norm="frozen", num_classes=None)
    trunk, tail = split_net(variables, stages=len(model.stage_sizes))
    params = {"trunk": trunk["params"], "tail": tail["params"]}
    for layer, path in LAYERS.items():
        own = {key: ours(path[-1], values[f"{layer}.{name}"]) for key, name in (("kernel", "weight"), ("bias", "bias"))}
        if len(path) == 2:
            params.setdefault(path[0], {})[path[1]] = own
        else:
            params[path[0]] = own
    statistics = {"trunk": trunk["batch_stats"], "tail": tail["batch_stats"]}
    variables = jax.tree.map(jnp.asarray, {"params": params, "batch_stats": statistics})
    return {
        operation: Member(
            FasterRcnn(
                trunk=ResidualTrunk(model),
                tail=ResidualTail(model),
                num_classes=shared.CLASSES,
                anchors=Anchors(shared.ANCHOR_SIZES, shared.RATIOS),
                rpn_features=256,
                roi=operation,
            ),
            variables,
        )
        for operation in shared.OPERATIONS
    }


def truth(count=4):
    """The objects of all images, padded to a number."""
    boxes, labels = np.zeros((shared.IMAGES, count, 4), np.float32), np.zeros((shared.IMAGES, count), np.int32)
    valid = np.zeros((shared.IMAGES, count), bool)
    for image, label, *box in shared.OBJECTS:
        place = valid[image].sum()
        boxes[image, place], labels[image, place], valid[image, place] = box, label, True
    return Truth(*map(jnp.asarray, (boxes, labels, valid, np.zeros_like(valid))))


def batch_of(truth, image=None):
    image = jnp.asarray(shared.pictures()) if image is None else image
    count = len(image)
    return BoxBatch(image, jnp.asarray(SIZES[:count]), truth, jnp.ones(count), jnp.arange(count))


def gradients_of(member, truth):
    """Of the loss as torchvision divides it, by all that was sampled of the batch; and the sums."""
    net, variables = member
    keys = jax.random.split(jax.random.key(0), shared.IMAGES)

    @jax.jit
    def objective(params):
        own = {**variables, "params": params}
        found = detection_losses(net, own, batch_of(truth), keys, EVERYTHING, dropout_key=keys[0])
        sums = DetectionSums(*(each.sum() for each in found))
        proposing = (sums.objectness + sums.anchor_boxes) / sums.anchors
        return proposing + (sums.classes + sums.region_boxes) / sums.regions, sums

    return jax.grad(objective, has_aux=True)(variables["params"])


def close(found, expected, tolerance=2e-5):
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1e-6))


@pytest.mark.slow
@pytest.mark.parametrize("operation", shared.OPERATIONS)
def test_features_proposals_and_regions_are_torchvision_s(detectors, theirs, operation):
    net, variables = detectors[operation]
    features = net.apply(variables, jnp.asarray(shared.pictures()), SIZES, method="features")
    close(features[:, ::2, ::2, ::16], theirs[f"{operation}/features"])
    logits, offsets = net.apply(variables, features, method="proposing")
    close(logits, theirs[f"{operation}/logits"].reshape(shared.IMAGES, -1))
    close(offsets, theirs[f"{operation}/offsets"].reshape(shared.IMAGES, -1, 4))
    proposals = propose_all(logits, offsets, net.all_anchors(features), SIZES, PROPOSING)
    assert proposals.valid.all()
    close(proposals.boxes, theirs[f"{operation}/proposals"])
    scores, boxes = net.apply(
        variables, [Level(features, jnp.asarray(SIZES))], proposals.boxes, SIZES, method="classify"
    )
    close(scores, theirs[f"{operation}/scores"], 1e-4)
    close(boxes, theirs[f"{operation}/boxes"][:, :, 1:], 1e-4)


@pytest.mark.parametrize("operation", shared.OPERATIONS)
def test_detections_are_torchvision_s(detectors, theirs, operation):
    found = detect([detectors[operation]], jnp.asarray(shared.pictures()), SIZES, PROTOCOL)
    for image in range(shared.IMAGES):
        expected = {name: theirs[f"{operation}/detections/{image}/{name}"] for name in ("boxes", "labels", "scores")}
        count = len(expected["scores"])
        assert count > 5 and found.valid[image].sum() == count
        close(found.scores[image, :count], expected["scores"], 1e-4)
        assert (found.labels[image, :count] + 1 == expected["labels"]).all()
        close(found.boxes[image, :count], expected["boxes"], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("operation", shared.OPERATIONS)
def test_losses_and_gradients_are_torchvision_s(detectors, theirs, operation):
    gradients, sums = gradients_of(detectors[operation], truth())
    expected = {name: theirs[f"{operation}/loss/{name}"] for name in ("loss_objectness", "loss_rpn_box_reg")}
    assert sums.objectness / sums.anchors == pytest.approx(expected["loss_objectness"], rel=1e-4)
    assert sums.anchor_boxes / sums.anchors == pytest.approx(expected["loss_rpn_box_reg"], rel=1e-4)
    assert sums.classes / sums.regions == pytest.approx(theirs[f"{operation}/loss/loss_classifier"], rel=1e-4)
    assert sums.region_boxes / sums.regions == pytest.approx(theirs[f"{operation}/loss/loss_box_reg"], rel=1e-4)
    for layer, path in LAYERS.items():
        own = gradients
        for name in path:
            own = own[name]
        for key, name in (("kernel", "weight"), ("bias", "bias")):
            value = np.asarray(own[key])
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
            if path == ("regressor",):
                value = np.concatenate([np.zeros_like(value[:4]), value])
            summary = parity_nets.tensor_summary(f"{layer}.{name}", value)
            close(summary, theirs[f"{operation}/gradient/{layer}.{name}"], 1e-3)
    kernel = np.asarray(gradients["trunk"]["stem"]["conv"]["kernel"]).transpose(3, 2, 0, 1)
    close(
        parity_nets.tensor_summary("body.conv1.weight", kernel), theirs[f"{operation}/gradient/body.conv1.weight"], 1e-3
    )


@pytest.mark.slow
def test_padding_and_the_other_images_have_no_influence(detectors):
    net = detectors["align"]
    alone = detect([net], jnp.asarray(shared.pictures()[:1]), SIZES[:1], PROTOCOL)
    canvas = np.full((2, 160, 192, 3), 1e4, np.float32)
    canvas[0, : shared.HEIGHT, : shared.WIDTH] = shared.pictures()[0]
    canvas[1] = np.random.RandomState(1).standard_normal(canvas[1].shape)
    together = detect([net], jnp.asarray(canvas), np.array([SIZES[0], (160, 192)], np.int32), PROTOCOL)
    assert alone.valid[0].sum() == together.valid[0].sum() > 5
    close(together.scores[0], alone.scores[0], 1e-4)
    close(together.boxes[0], alone.boxes[0], 1e-4)


def test_without_objects_everything_is_background_and_boxes_cost_nothing(detectors):
    nothing = truth()._replace(valid=jnp.zeros((shared.IMAGES, 4), bool))
    gradients, sums = gradients_of(detectors["pool"], nothing)
    assert sums.anchor_boxes == 0 and sums.region_boxes == 0
    assert sums.anchors == 2 * 432 and sums.regions == 2 * shared.AFTER
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert not np.any(gradients["regressor"]["kernel"]) and np.any(gradients["classifier"]["kernel"])


@pytest.mark.slow
def test_an_ensemble_of_copies_of_one_net_is_the_net(detectors):
    net = detectors["align"]
    pictures = jnp.asarray(shared.pictures())
    one = detect([net], pictures, SIZES, PROTOCOL)
    # The copies' proposals are suppressed by the first's own.
    two = detect([net, net], pictures, SIZES, PROTOCOL)
    assert (one.valid == two.valid).all()
    close(two.boxes, one.boxes, 1e-4)
    close(two.scores, one.scores, 1e-4)


def still(member):
    """The net whose regions do not move."""
    variables = jax.tree.map(lambda leaf: leaf, member.variables)
    variables["params"] = variables["params"] | {
        "regressor": jax.tree.map(jnp.zeros_like, member.variables["params"]["regressor"])
    }
    return Member(member.detector, variables)


def test_refinement_of_boxes_that_do_not_move_and_voting_of_one_change_nothing(detectors):
    net, pictures = still(detectors["align"]), jnp.asarray(shared.pictures())
    plain = detect([net], pictures, SIZES, PROTOCOL)
    refined = detect([net], pictures, SIZES, PROTOCOL._replace(refinement=True))
    close(refined.boxes, plain.boxes, 1e-5)
    close(refined.scores, plain.scores, 1e-5)
    # Only a box that is the same overlaps by all of itself.
    voted = detect([net], pictures, SIZES, PROTOCOL._replace(voting=0.9999))
    close(voted.boxes, plain.boxes, 1e-5)
    moved = detect([detectors["align"]], pictures, SIZES, PROTOCOL._replace(refinement=True, voting=0.5))
    assert np.abs(moved.boxes - detect([detectors["align"]], pictures, SIZES, PROTOCOL).boxes).max() > 1


def test_context_joins_the_whole_image_s_vector_to_each_region_s(detectors):
    net, variables = detectors["align"]
    features = net.apply(variables, jnp.asarray(shared.pictures()), SIZES, method="features")
    boxes = jnp.asarray(np.array([[[0, 0, 50, 60]], [[10, 20, 90, 80]]], np.float32))
    whole = jnp.asarray(np.tile(np.array([0, 0, shared.WIDTH, shared.HEIGHT], np.float32), (2, 1, 1)))
    joined = net.clone(context=True).apply(
        variables, [Level(features, jnp.asarray(SIZES))], boxes, SIZES, method="vectors"
    )
    apart = [
        net.apply(variables, [Level(features, jnp.asarray(SIZES))], own, SIZES, method="vectors")
        for own in (boxes, whole)
    ]
    close(joined, np.concatenate(apart, axis=-1), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("freeze_at", [0, 1, 2, 4])
def test_what_is_frozen_gets_no_gradient_and_the_rest_does(detectors, freeze_at):
    net, variables = detectors["align"]
    trunk = net.trunk.clone(freeze_at=freeze_at)

    def total(params):
        own = {"params": params, "batch_stats": variables["batch_stats"]["trunk"]}
        return jnp.square(trunk.apply(own, jnp.asarray(shared.pictures()), SIZES)).sum()

    gradients = jax.grad(total)(variables["params"]["trunk"])
    moved = {name for name, tree in gradients.items() if any(np.any(leaf) for leaf in jax.tree.leaves(tree))}
    frozen = ("stem", "stage1_block1", "stage2_block1", "stage3_block1")[:freeze_at]
    assert moved == set(gradients) - set(frozen)


def test_several_scales_that_are_one_give_what_one_gives(detectors):
    net, pictures = detectors["align"], jnp.asarray(shared.pictures())
    same = [Scaled(pictures, SIZES)] * 3
    alone = detect([net], pictures, SIZES, PROTOCOL)
    found = detect([net], pictures, SIZES, PROTOCOL, pyramid=same)
    close(found.boxes, alone.boxes, 1e-5)
    close(found.scores, alone.scores, 1e-5)


@pytest.mark.slow
def test_a_region_is_looked_at_where_its_area_is_next_to_224_squared(detectors):
    net, variables = detectors["align"]
    levels = []
    for value, side in ((0.1, 64), (0.5, 128), (0.9, 256)):
        sizes = jnp.array([[side, side]])
        features = net.apply(variables, jnp.full((1, side, side, 3), value), sizes, method="features")
        levels.append(Level(features, sizes))

    def vectors(chosen, side):
        boxes = jnp.array([[[0.0, 0.0, side, side]]])
        return net.apply(variables, chosen, boxes, jnp.array([[64, 64]]), method="vectors")

    # 60 pixels are 60, 120 and 240: the last two; 200 would be above the square in all but the first.
    close(vectors(levels, 60.0), vectors(levels[1:], 60.0), 1e-6)
    close(vectors(levels, 200.0), vectors(levels[:2], 200.0), 1e-6)
    assert np.abs(vectors(levels, 60.0) - vectors(levels, 200.0)).max() > 1e-3
    both = np.maximum(vectors(levels[:1], 200.0), vectors([levels[1]], 200.0))
    close(vectors(levels, 200.0), both, 1e-6)


@pytest.mark.slow
def test_vgg_16_has_its_parameters_and_does_not_see_the_padding():
    trunk, tail = VggTrunk(freeze_at=2), VggTail()
    shape = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(lambda x: trunk.init(jax.random.key(0), x, np.array([[32, 32]])), shape)
    # Of torchvision's vgg16: 14,714,688 in `features`, and fc6 and fc7 of the classifier.
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 14_714_688
    regions = jax.ShapeDtypeStruct((1, 7, 7, 512), jnp.float32)
    params = jax.eval_shape(lambda x: tail.init(jax.random.key(0), x, train=False), regions)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 102_764_544 + 16_781_312
    variables = trunk.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), np.array([[32, 32]]))
    picture = np.random.RandomState(0).standard_normal((1, 40, 35, 3)).astype(np.float32)
    canvas = np.full((1, 80, 64, 3), 1e4, np.float32)
    canvas[:, :40, :35] = picture
    small = np.pad(picture, ((0, 0), (0, 8), (0, 13), (0, 0)))
    alone = trunk.apply(variables, jnp.asarray(small), np.array([[40, 35]]))
    found = trunk.apply(variables, jnp.asarray(canvas), np.array([[40, 35]]))
    assert alone.shape == (1, 3, 3, 512) and np.any(alone)
    close(found[:, :3, :3], alone, 1e-5)
    assert not np.any(found[:, 3:]) and not np.any(found[:, :, 3:])


def test_frozen_names_are_those_without_gradient(detectors):
    trunk = detectors["align"].detector.trunk
    assert frozen_names(trunk.clone(freeze_at=0)) == ()
    assert frozen_names(trunk.clone(freeze_at=2)) == ("stem", "stage1_")
    assert frozen_names(VggTrunk(freeze_at=2)) == ("conv1_", "conv2_")


def test_an_image_is_drawn_for_by_its_position_and_counts_by_its_weight(detectors):
    net, variables = detectors["align"]
    sampling = EVERYTHING._replace(anchors=AnchorSampling(most=32), regions=RegionSampling(most=8))
    losses = jax.jit(detection(net, sampling, seed=3).losses)
    key, batch = jax.random.key(0), batch_of(truth())
    both, sums, statistics = losses(variables, batch, key)
    both = float(both)
    jax.tree.map(np.testing.assert_array_equal, statistics, variables["batch_stats"])
    one = jax.tree.map(lambda leaf: leaf[:1], batch)
    other = jax.tree.map(lambda leaf: leaf[1:], batch)
    alone = [float(losses(variables, each, key)[0]) for each in (one, other)]
    assert both == pytest.approx(sum(alone), rel=1e-5) and sums.images == 2
    weighted, sums, _ = losses(variables, batch.replace(weight=jnp.array([1.0, 0.0])), key)
    assert float(weighted) == pytest.approx(alone[0], rel=1e-5) and sums.images == 1 and sums.anchors == 32
    moved = losses(variables, batch.replace(position=jnp.array([7, 8])), key)[0]
    assert abs(moved - both) > 1e-3
