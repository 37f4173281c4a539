"""Loss and errors of a batch against numpy, padding without influence, ties and NaN against the net."""

import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.evaluation.metrics import Sums, classification_sums
from resnet_jax.training.losses import cross_entropy_sum

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(64, 10)).astype(np.float32)
LABELS = RANDOM.integers(0, 10, 64).astype(np.int32)
ONES = np.ones(64, np.float32)


def sums_of(logits, labels, weights):
    return classification_sums(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(weights))


def test_errors_and_loss_equal_numpy_s():
    means = sums_of(LOGITS, LABELS, ONES).means()
    order = np.argsort(-LOGITS, axis=-1)
    log_softmax = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))
    assert means["error_top1"] == np.mean(order[:, 0] != LABELS)
    assert means["error_top5"] == np.mean([label not in row[:5] for label, row in zip(LABELS, order, strict=True)])
    assert means["loss"] == pytest.approx(-log_softmax[np.arange(64), LABELS].mean(), rel=1e-6)
    assert means["count"] == 64


def test_padding_has_no_influence_even_when_it_is_not_finite():
    logits, labels = LOGITS.copy(), LABELS.copy()
    logits[40:], labels[40:] = np.inf, 0
    weights = np.where(np.arange(64) < 40, 1.0, 0.0).astype(np.float32)
    padded = sums_of(logits, labels, weights).means()
    assert padded == pytest.approx(sums_of(LOGITS[:40], LABELS[:40], ONES[:40]).means(), rel=1e-6)
    assert padded["count"] == 40


def test_ties_and_nan_count_against_the_net():
    labels, weights = np.zeros(2, np.int32), np.ones(2, np.float32)
    assert sums_of(np.zeros((2, 10), np.float32), labels, weights).means()["error_top1"] == 1.0
    assert sums_of(np.full((2, 10), np.nan, np.float32), labels, weights).means()["error_top5"] == 1.0


def test_sums_add_up_to_the_whole():
    whole = sums_of(LOGITS, LABELS, ONES).means()
    parts = sums_of(LOGITS[:10], LABELS[:10], ONES[:10]) + sums_of(LOGITS[10:], LABELS[10:], ONES[10:])
    assert parts.means() == pytest.approx(whole, rel=1e-6)


def test_a_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no example was counted"):
        Sums.zero().means()


def test_label_smoothing_spreads_the_target():
    smoothed = cross_entropy_sum(jnp.asarray(LOGITS), jnp.asarray(LABELS), jnp.asarray(ONES), label_smoothing=0.1)
    log_softmax = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))
    target = 0.9 * np.eye(10)[LABELS] + 0.1 / 10
    assert float(smoothed) == pytest.approx(-(target * log_softmax).sum(), rel=1e-5)
