"""Boxes at test: the best of all positions and views, proposals, what regions make of them, and ensembles of both."""

import io
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from random_variables import random_variables
from shape_pictures import ShapePictures

from resnet_jax.detection.boxes import clip, decode, intersection_over_union
from resnet_jax.detection.objective import BoxBatch
from resnet_jax.detection.rpn import Proposals
from resnet_jax.detection.settings import Anchors, Proposing
from resnet_jax.detection.targets import Truth
from resnet_jax.localization import region_testing, testing
from resnet_jax.localization.per_class_rpn import PerClassRpn
from resnet_jax.localization.region_net import RegionNet
from resnet_jax.localization.region_testing import RegionMember, best_of
from resnet_jax.localization.testing import RpnMember, View, best_classes, log_mean, view_of
from resnet_jax.localization.views import centre_view, shape_of, stacked_views, whole_views
from resnet_jax.models.resnet import ResNet

NET = ResNet((1, 1), num_classes=None, stem="imagenet", width=4)
RPN = PerClassRpn(NET, 3, Anchors((12.0, 20.0), (0.5, 1.0, 2.0)))
REGIONS = RegionNet(NET, 3, 16)
PROPOSING = Proposing(before=180, after=8, threshold=0.5, min_side=22.0)
LABELS = jnp.array([[2, 0], [1, 2]])
PLAIN = np.full(3, 75, np.float32), np.full(3, 60, np.float32)
SOURCE = ShapePictures(4)


@pytest.fixture(scope="module")
def variables():
    """Of two networks and of two nets of regions."""
    return {
        "rpn": [calm(random_variables(RPN, (32, 32, 3), seed=seed, train=False)) for seed in range(2)],
        "regions": [calm(random_variables(REGIONS, (16, 16, 3), seed=seed, train=False)) for seed in range(2)],
    }


def calm(variables):
    """The same with small outputs: boxes that do not leave their image, and probabilities that are not 1."""
    scales = {"trunk": 1.0, "classifier": 0.1, "regressor": 0.03}
    params = {
        name: jax.tree.map(lambda leaf, by=by: by * leaf, variables["params"][name]) for name, by in scales.items()
    }
    return {**variables, "params": params}


def view(height=40, width=48, *, sizes=((31, 48), (40, 33)), scale=(0.5, 0.8), corner=(3.0, 1.0), seed=0):
    """Two images of noise that were scaled by half and 0.8, and cut."""
    images = np.random.default_rng(seed).normal(size=(2, height, width, 3)).astype(np.float32)
    files = jnp.array([[90, 62], [88, 54]])
    return View(
        jnp.asarray(images),
        jnp.asarray(np.array(sizes, np.int32)),
        jnp.tile(jnp.array([scale]), (2, 1)),
        jnp.tile(jnp.array([corner]), (2, 1)),
        files,
    )


@jax.jit
def best_boxes(variables, views, labels=LABELS):
    return testing.best_boxes([RpnMember(RPN, each) for each in variables], views, labels)


@partial(jax.jit, static_argnames="settings")
def class_proposals(variables, views, settings=PROPOSING):
    return testing.class_proposals([RpnMember(RPN, each) for each in variables], views, LABELS, settings)


@jax.jit
def update(variables, view, proposals):
    return region_testing.update([RegionMember(REGIONS, each) for each in variables], view, proposals, LABELS)


def close(found, expected, tolerance=1e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), found, expected)


def test_the_highest_logit_of_a_class_is_its_box(variables):
    own, seen = variables["rpn"][0], view()
    found = best_boxes([own], [seen])
    logits, offsets = jax.jit(lambda view: RPN.apply(own, view.images, train=False, sizes=view.sizes))(seen)
    anchors = RPN.all_anchors(jnp.zeros((1, 5, 6, 32)))
    for image in range(2):
        centre = (anchors[:, :2] + anchors[:, 2:]) / 2
        inside = np.asarray((centre < seen.sizes[image][None, ::-1]).all(1))
        assert 0 < inside.sum() < len(inside)
        for place, label in enumerate(LABELS[image]):
            best = np.where(inside, logits[image, :, label], -np.inf).argmax()
            assert found.scores[image, place] == pytest.approx(
                float(jax.nn.log_sigmoid(logits[image, best, label])), abs=1e-5
            )
            box = decode(offsets[image, best, label], anchors[best], (1.0, 1.0, 1.0, 1.0))
            box = (np.asarray(box) + np.array([1.0, 3.0, 1.0, 3.0])) / np.array([0.8, 0.5, 0.8, 0.5])
            close(found.boxes[image, place], clip(jnp.asarray(box, jnp.float32), seen.file_sizes[image]), 1e-3)


def test_views_compete(variables):
    views = [view(), view(32, 32, sizes=((32, 32), (30, 32)), scale=(0.4, 0.6), corner=(0.0, 0.0), seed=1)]
    alone = [best_boxes(variables["rpn"][:1], [each]) for each in views]
    both = best_boxes(variables["rpn"][:1], views)
    first = alone[0].scores >= alone[1].scores
    assert first.any() and not first.all()
    close(both.scores, np.maximum(alone[0].scores, alone[1].scores))
    close(both.boxes, np.where(first[..., None], alone[0].boxes, alone[1].boxes), 1e-3)


def test_padding_and_the_other_images_have_no_influence(variables):
    seen = view()
    canvas = np.full((2, 48, 56, 3), np.nan, np.float32)
    for place, image, size in zip(canvas, seen.images, seen.sizes, strict=True):
        place[: size[0], : size[1]] = image[: size[0], : size[1]]
    padded = best_boxes(variables["rpn"], [seen._replace(images=jnp.asarray(canvas))])
    close(padded, best_boxes(variables["rpn"], [seen]), 1e-3)
    alone = jax.tree.map(lambda each: each[1:], seen)
    close(best_boxes(variables["rpn"], [alone], LABELS[1:]), jax.tree.map(lambda each: each[1:], padded), 1e-3)


def test_anchors_beyond_an_image_find_nothing(variables):
    # Features are 0 there and not negative elsewhere, so that with such a kernel logits are highest there.
    own = variables["rpn"][0]
    classifier = own["params"]["classifier"]
    falling = {"kernel": -jnp.abs(classifier["kernel"]), "bias": 0 * classifier["bias"]}
    own = {**own, "params": own["params"] | {"classifier": falling}}
    found = best_boxes([own], [view(sizes=((16, 16), (24, 16)))])
    logits = jax.jit(lambda x: RPN.apply(own, x, train=False, sizes=jnp.array([[16, 16], [24, 16]])))(view().images)[0]
    assert (logits.max(1) == 0).all() and (found.scores < jnp.log(0.5)).all()


def test_dense_at_the_crop_s_own_size_is_the_crop(variables):
    # The centre of 40 x 40 pixels of a square image at 40 is all of it.
    encoded = SOURCE[0].image
    square = centre_view(encoded, side=64, short_side=64).image
    file = io.BytesIO()
    Image.fromarray(square).save(file, "PNG")
    crop = centre_view(file.getvalue(), side=40, short_side=40)
    dense = whole_views(file.getvalue(), short_sides=(40,))
    views = [view_of(stacked_views([each], shape_of(each, stride=8)), *PLAIN) for each in (crop, *dense)]
    assert views[1].images.shape[2] > 40
    found = [best_boxes(variables["rpn"][:1], [each], LABELS[:1]) for each in views]
    close(found[0], found[1], 1e-3)


def test_members_are_averaged(variables):
    seen = [view(sizes=((40, 48), (40, 48)))]
    alone = best_boxes(variables["rpn"][:1], seen)
    close(best_boxes([variables["rpn"][0]] * 2, seen), alone, 1e-3)
    close(log_mean([jnp.log(0.2), jnp.log(0.6)]), jnp.log(0.4), 1e-6)
    # Probabilities next to 1 keep their order.
    nearly = log_mean([jax.nn.log_sigmoid(jnp.array([20.0, 25.0, 30.0]))])
    assert (jnp.diff(nearly) > 0).all()
    # Where offsets lead nowhere both members have the anchors' own boxes, and the score decides.
    still = [
        {**each, "params": each["params"] | {"regressor": jax.tree.map(jnp.zeros_like, each["params"]["regressor"])}}
        for each in variables["rpn"]
    ]
    logits = [
        jax.jit(lambda own: RPN.apply(own, seen[0].images, train=False, sizes=seen[0].sizes))(each)[0] for each in still
    ]
    mean = (jax.nn.sigmoid(logits[0]) + jax.nn.sigmoid(logits[1])) / 2
    expected = jnp.log(mean[0, :, LABELS[0]].max(1))
    close(best_boxes(still, seen).scores[0], expected, 1e-4)


def test_boxes_of_members_are_averaged_too(variables):
    first, second = variables["rpn"]
    # The same logits, other offsets.
    other = {**first, "params": first["params"] | {"regressor": second["params"]["regressor"]}}
    seen = [view()]
    alone = [best_boxes([each], seen) for each in (first, other)]
    both = best_boxes([first, other], seen)
    close(both.scores, alone[0].scores, 1e-4)
    inside = (alone[0].boxes > 0) & (alone[1].boxes > 0) & (alone[0].boxes < 50) & (alone[1].boxes < 50)
    assert inside.sum() > 4
    mean = (alone[0].boxes + alone[1].boxes) / 2
    np.testing.assert_allclose(both.boxes[inside], mean[inside], rtol=1e-3, atol=1e-2)


def test_what_cannot_be_averaged_is_refused(variables):
    member, seen = RpnMember(RPN, variables["rpn"][0]), [view()]
    other = RpnMember(RPN.clone(anchors=Anchors((12.0, 24.0), (0.5, 1.0, 2.0))), member.variables)
    with pytest.raises(ValueError, match="different anchors and strides"):
        testing.best_boxes([member, other], seen, LABELS)
    with pytest.raises(ValueError, match="0 members and 1 views"):
        testing.best_boxes([], seen, LABELS)
    with pytest.raises(ValueError, match="1 members and 0 views"):
        testing.best_boxes([member], [], LABELS)
    with pytest.raises(ValueError, match="no members"):
        region_testing.update([], seen[0], Proposals(jnp.zeros((2, 2, 1, 4)), *[jnp.zeros((2, 2, 1))] * 2), LABELS)


def test_proposals_are_the_best_boxes_that_do_not_overlap_too_much(variables):
    found = class_proposals(variables["rpn"][:1], [view()])
    assert found.boxes.shape == (2, 2, 8, 4)
    everything = PROPOSING._replace(min_side=0.0)
    best = best_boxes(variables["rpn"][:1], [view()])
    own = class_proposals(variables["rpn"][:1], [view()], everything)
    close((own.scores[:, :, 0], own.boxes[:, :, 0]), (best.scores, best.boxes))
    assert ((own.boxes[..., 2:] - own.boxes[..., :2]).min(-1) < 22).any()
    for image in range(2):
        for place in range(2):
            valid = found.valid[image, place]
            boxes, scores = found.boxes[image, place][valid], found.scores[image, place][valid]
            assert len(boxes) > 1 and (jnp.diff(scores) <= 0).all()
            assert (jnp.triu(intersection_over_union(boxes, boxes), 1) <= 0.5).all()
            assert (boxes >= 0).all() and (boxes[:, 2:] <= view().file_sizes[image][None, ::-1]).all()
            assert (boxes[:, 2:] - boxes[:, :2] >= 22).all()
            assert (found.scores[image, place][~valid] == -jnp.inf).all()


def test_a_training_batch_gets_proposals_of_its_class_in_its_own_pixels(variables):
    seen = view(scale=(1.0, 1.0), corner=(0.0, 0.0))
    seen = seen._replace(file_sizes=seen.sizes)
    boxes = jnp.zeros((2, 3, 4))
    truth = Truth(boxes, jnp.tile(LABELS[:, :1], (1, 3)), jnp.zeros((2, 3), bool), jnp.zeros((2, 3), bool))
    batch = BoxBatch(seen.images, seen.sizes, truth, jnp.ones(2), jnp.arange(2))
    own = variables["rpn"][0]
    found = jax.jit(lambda batch: testing.with_proposals([RpnMember(RPN, own)], batch, PROPOSING))(batch)
    expected = class_proposals([own], [seen])
    close(found.proposals, jax.tree.map(lambda each: each[:, 0], expected), 1e-3)


def proposals():
    """Six of each image and class, the last of which is none, with falling scores."""
    rng = np.random.default_rng(3)
    corners = rng.uniform(4, 30, (2, 2, 6, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 22, (2, 2, 6, 2))], -1).astype(np.float32)
    valid = np.arange(6) < 5
    return Proposals(
        jnp.asarray(boxes),
        jnp.where(valid[None, None], -jnp.arange(6.0)[None, None], -jnp.inf) * jnp.ones((2, 2, 1)),
        jnp.tile(jnp.asarray(valid), (2, 2, 1)),
    )


def between(values, places):
    """Values [k, c] at places between the first and the last one's, or of the nearest."""
    places = np.clip(places, 0, len(values) - 1)
    first = np.minimum(places.astype(int), len(values) - 2)
    share = (places - first)[:, None]
    return (1 - share) * values[first] + share * values[first + 1]


def test_regions_update_scores_and_boxes_of_each_class(variables):
    # Files that end before some of the boxes do.
    own, given = variables["regions"][0], proposals()
    seen = view()._replace(file_sizes=jnp.array([[40, 30], [35, 28]]))
    found = update([own], seen, given)
    apply = jax.jit(lambda regions: REGIONS.apply(own, regions, train=False))
    for image in range(2):
        height, width = map(int, seen.sizes[image])
        picture = np.asarray(seen.images)[image, :height, :width]
        for place, label in enumerate(LABELS[image]):
            for number in range(5):
                box = given.boxes[image, place, number]
                x1, y1, x2, y2 = np.asarray(box) * np.array([0.8, 0.5, 0.8, 0.5]) - np.array([1.0, 3.0, 1.0, 3.0])
                # Samples of the image at the middles of 16 x 16 cells of the region.
                steps = (np.arange(16) + 0.5) / 16
                rows, columns = y1 + steps * (y2 - y1) - 0.5, x1 + steps * (x2 - x1) - 0.5
                by_row = np.stack([between(picture[:, column], rows) for column in range(width)], 1)
                region = np.stack([between(row, columns) for row in by_row])
                logits, offsets = apply(jnp.asarray(region[None], jnp.float32))
                score = jax.nn.log_sigmoid(logits[0, label])
                assert found.scores[image, place, number] == pytest.approx(float(score), rel=1e-3, abs=1e-4)
                moved = clip(decode(offsets[0, label], box, (10.0, 10.0, 5.0, 5.0)), seen.file_sizes[image])
                close(found.boxes[image, place, number], moved, 1e-2)
    assert (found.scores[:, :, 5] == -jnp.inf).all() and not found.valid[:, :, 5].any()
    close(found.boxes[:, :, 5], given.boxes[:, :, 5])


def test_the_answer_is_the_best_region(variables):
    found = update(variables["regions"][:1], view(), proposals())
    best = best_of(found)
    for image in range(2):
        for place in range(2):
            number = int(found.scores[image, place].argmax())
            close(best.boxes[image, place], found.boxes[image, place, number])
            assert best.scores[image, place] == found.scores[image, place, number]
    assert len({int(number) for number in found.scores.argmax(-1).ravel()}) > 1


def test_regions_of_members_are_averaged(variables):
    seen, given = view(), proposals()
    alone = [update([each], seen, given) for each in variables["regions"]]
    both = update(variables["regions"], seen, given)
    mean = jnp.log((jnp.exp(alone[0].scores) + jnp.exp(alone[1].scores)) / 2)
    close(both.scores, mean, 1e-3)
    limits = seen.file_sizes[:, ::-1].min()
    inside = (
        (jnp.stack([each.boxes for each in alone]) > 0) & (jnp.stack([each.boxes for each in alone]) < limits)
    ).all(0)
    assert inside.sum() > 10
    np.testing.assert_allclose(both.boxes[inside], ((alone[0].boxes + alone[1].boxes) / 2)[inside], atol=1e-2)


def test_regions_do_not_see_the_padding(variables):
    seen, given = view(), proposals()
    canvas = np.full((2, 48, 56, 3), 1e6, np.float32)
    for place, image, size in zip(canvas, seen.images, seen.sizes, strict=True):
        place[: size[0], : size[1]] = image[: size[0], : size[1]]
    found = update(variables["regions"][:1], seen._replace(images=jnp.asarray(canvas)), given)
    close(found, update(variables["regions"][:1], seen, given), 1e-3)


def test_the_best_classes_of_a_classifier():
    scores = jnp.array([[0.1, 0.5, 0.2, 0.5, 0.0, 0.3, -1.0]])
    assert best_classes(scores).tolist() == [[1, 3, 5, 2, 0]]
    assert best_classes(scores, 1).tolist() == [[1]]
