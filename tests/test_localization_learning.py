"""A small net learns to localize shapes on noise, and regions make its boxes better."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shape_pictures import ShapePictures

from resnet_jax.detection.annotations import truths
from resnet_jax.detection.detected import Detected, overlaps
from resnet_jax.detection.settings import Anchors, Proposing
from resnet_jax.detection.streaming import BoxBatches, make_prepare
from resnet_jax.localization import region_testing, testing
from resnet_jax.localization.crops import CropFraming
from resnet_jax.localization.localization_error import localization_errors
from resnet_jax.localization.objective import per_class_proposals, per_class_regions
from resnet_jax.localization.per_class_rpn import PerClassRpn
from resnet_jax.localization.region_net import RegionNet
from resnet_jax.localization.region_testing import RegionMember
from resnet_jax.localization.testing import RpnMember, view_of
from resnet_jax.localization.views import centre_view, stacked_views
from resnet_jax.models.resnet import ResNet
from resnet_jax.training import schedules
from resnet_jax.training.optimizers import sgd
from resnet_jax.training.state import Progress, TrainState
from resnet_jax.training.steps import make_train_step

pytestmark = pytest.mark.slow

NET = ResNet((1, 1, 1), num_classes=None, stem="imagenet", width=8)
RPN = PerClassRpn(NET, 3, Anchors((32.0, 48.0)))
REGIONS = RegionNet(NET, 3, 32)
PROPOSING = Proposing(before=200, after=40, threshold=0.7, min_side=4.0)
COLOURS = np.full(3, 75, np.float32), np.full(3, 60, np.float32)
SOURCE, TEST = ShapePictures(300), ShapePictures(60, seed=1)
TRUTHS = truths(TEST)
LABELS = jnp.array([[truth.labels[0]] for truth in TRUTHS])


def train(objective, variables, batches, steps, prepare):
    """The state after a few steps, and the mean loss of the first and of the last 20."""
    optimizer = sgd(momentum=0.9, nesterov=False, weight_decay=1e-4, decay="kernels")
    schedule = schedules.with_linear_warmup(schedules.cosine(0.05, total=steps), steps=10)
    step = jax.jit(make_train_step(objective, optimizer, schedule, seed=0), donate_argnums=(0, 1))
    state, losses, parts = TrainState.create(variables, optimizer, schedule), [], (range(20), range(20, steps - 20))
    for numbers in (*parts, range(steps - 20, steps)):
        # Donated with the progress, so not the objective's own.
        progress = Progress.zero(jax.tree.map(jnp.copy, objective.zero))
        for number in numbers:
            state, progress = step(state, progress, prepare(batches[number]))
        assert int(progress.skipped) == 0
        losses.append(progress.sums.means()["loss"])
    return state.variables, losses[0], losses[-1]


@pytest.fixture(scope="module")
def trained():
    """The network's variables before and after 200 steps."""
    start = jax.jit(lambda: RPN.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))()
    batches = BoxBatches(SOURCE, CropFraming(64, (64, 80)), seed=0, batch_size=16)
    objective = per_class_proposals(RPN, seed=0)
    # Copies, because a step takes what it is given.
    copy = jax.tree.map(jnp.copy, start)
    end, first, last = train(objective, copy, batches, 200, jax.jit(lambda batch: make_prepare(*COLOURS)(*batch, 0)))
    assert last < 0.5 * first
    return start, end


@pytest.fixture(scope="module")
def crops():
    """The test images' centres, which are most of them."""
    views = [centre_view(example.image, side=64, short_side=64) for example in TEST]
    return view_of(stacked_views(views, (64, 64)), *COLOURS)


def error(boxes, labels=LABELS):
    """The share of images that are not localized."""
    guesses = [
        Detected(*(np.asarray(part) for part in (own, np.zeros(len(own), np.float32), classes.astype(jnp.int32))))
        for own, classes in zip(boxes, labels, strict=True)
    ]
    found = localization_errors(guesses, TRUTHS, num_classes=3)
    assert found.images == 60
    return found.error


@jax.jit
def best_boxes(variables, view, labels):
    return testing.best_boxes([RpnMember(RPN, variables)], [view], labels).boxes


def test_the_error_with_the_true_class_falls(trained, crops):
    before, after = (error(best_boxes(variables, crops, LABELS)) for variables in trained)
    assert before > 0.6 and after < 0.2
    # Another class's logits are lower.
    both = jnp.concatenate([LABELS, (LABELS + 1) % 3], axis=1)
    scores = jax.jit(lambda labels: testing.best_boxes([RpnMember(RPN, trained[1])], [crops], labels).scores)(both)
    assert (scores[:, 0] > scores[:, 1]).mean() > 0.8


def test_regions_make_boxes_better(trained, crops):
    member = RpnMember(RPN, trained[1])
    start = jax.jit(lambda: REGIONS.init(jax.random.key(1), jnp.zeros((1, 32, 32, 3)), train=False))()
    # One shape: squares.
    batches = BoxBatches(SOURCE, CropFraming(64, (64, 80), least_share=0.9), seed=1, batch_size=8)
    prepare = jax.jit(lambda batch: testing.with_proposals([member], make_prepare(*COLOURS)(*batch, 0), PROPOSING))
    end, first, last = train(per_class_regions(REGIONS, seed=0), start, batches, 150, prepare)
    assert last < 0.6 * first

    @jax.jit
    def updated(variables):
        proposals = testing.class_proposals([member], [crops], LABELS, PROPOSING)
        found = region_testing.update([RegionMember(REGIONS, variables)], crops, proposals, LABELS)
        return region_testing.best_of(found).boxes

    plain, better = best_boxes(trained[1], crops, LABELS), updated(end)
    mean = [
        np.mean([overlaps(np.asarray(own), truth.boxes).max() for own, truth in zip(boxes, TRUTHS, strict=True)])
        for boxes in (plain, better)
    ]
    assert mean[1] > mean[0] + 0.02
    assert error(better) <= error(plain) + 0.05
