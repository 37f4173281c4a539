"""The losses against the formulas, written out in NumPy in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.training.losses import binary_cross_entropy_sum, cross_entropy_sum, loss_named

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 0.3, -3.0], [1.0, 1.0, 4.0]])
LABELS = np.array([0, 1, 1])
PARTNERS = np.array([2, 0, 1])
SHARES = np.array([0.7, 0.1, 0.4])
MIXED = {"partner_labels": jnp.asarray(PARTNERS), "shares": jnp.asarray(SHARES, jnp.float32)}


def total(loss, weights=(1, 1, 1), logits=LOGITS, **options):
    return float(
        loss(jnp.asarray(logits, jnp.float32), jnp.asarray(LABELS), jnp.asarray(weights, jnp.float32), **options)
    )


def one_hot(labels):
    return np.eye(3)[labels]


def softmax_losses(targets):
    return -(targets * (LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True)))).sum(-1)


def sigmoid_losses(targets):
    """-log of the probability of every answer, the mean over classes."""
    probabilities = 1 / (1 + np.exp(-LOGITS))
    return -(targets * np.log(probabilities) + (1 - targets) * np.log(1 - probabilities)).mean(-1)


def test_a_mixed_target_is_the_shares_of_both_classes():
    targets = SHARES[:, None] * one_hot(LABELS) + (1 - SHARES[:, None]) * one_hot(PARTNERS)
    assert total(cross_entropy_sum, **MIXED) == pytest.approx(softmax_losses(targets).sum(), rel=1e-6)
    smooth = 0.9 * targets + 0.1 / 3
    found = total(cross_entropy_sum, label_smoothing=0.1, **MIXED)
    assert found == pytest.approx(softmax_losses(smooth).sum(), rel=1e-6)


def test_the_sigmoid_loss_asks_of_every_class_whether_it_is_there():
    assert total(binary_cross_entropy_sum) == pytest.approx(sigmoid_losses(one_hot(LABELS)).sum(), rel=1e-6)


def test_both_classes_of_a_mixed_image_are_there_unless_one_has_at_most_a_fifth():
    targets = np.array([[1.0, 0, 1], [1, 0, 0], [0, 1, 0]])  # 0.7 and 0.3; 0.1 and 0.9; the same class twice
    assert total(binary_cross_entropy_sum, **MIXED) == pytest.approx(sigmoid_losses(targets).sum(), rel=1e-6)
    smooth = 0.9 * targets + 0.1 / 3
    found = total(binary_cross_entropy_sum, label_smoothing=0.1, **MIXED)
    assert found == pytest.approx(sigmoid_losses(smooth).sum(), rel=1e-6)


@pytest.mark.parametrize("loss", [cross_entropy_sum, binary_cross_entropy_sum])
def test_a_share_of_one_is_no_mixing(loss):
    ones = {"partner_labels": jnp.asarray(PARTNERS), "shares": jnp.ones(3)}
    assert total(loss, **ones) == total(loss)


@pytest.mark.parametrize("loss", [cross_entropy_sum, binary_cross_entropy_sum])
def test_weights_multiply_and_padding_counts_for_nothing_even_where_it_is_infinite(loss):
    alone = [total(loss, np.eye(3)[k], **MIXED) for k in range(3)]
    assert total(loss, (1, 2, 0), **MIXED) == pytest.approx(alone[0] + 2 * alone[1], rel=1e-6)
    broken = LOGITS.copy()
    broken[2] = np.inf
    assert total(loss, (1, 2, 0), broken, **MIXED) == total(loss, (1, 2, 0), **MIXED)
    gradients = jax.grad(lambda shift: loss(shift + LOGITS, jnp.asarray(LABELS), jnp.array([1.0, 1, 0]), **MIXED))
    assert not np.any(gradients(jnp.zeros((3, 3)))[2])


def test_a_partner_without_a_share_is_refused():
    with pytest.raises(ValueError, match="give both or neither"):
        total(cross_entropy_sum, shares=jnp.ones(3))


def test_losses_have_names():
    assert loss_named("softmax") is cross_entropy_sum
    assert loss_named("sigmoid") is binary_cross_entropy_sum
    with pytest.raises(ValueError, match="loss='hinge' is not one of softmax, sigmoid"):
        loss_named("hinge")
