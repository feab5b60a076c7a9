"""Agreement and signal-to-noise of gradients from their inner products: closed forms, invariances, numpy."""

from dataclasses import astuple

import numpy as np
import pytest
import torch
from scipy.stats import t

from midblock.tuning.flow.agreement import agreement, signal_to_noise


def gram(vectors):
    vectors = torch.as_tensor(vectors, dtype=torch.float64)
    return vectors @ vectors.T


def steps_of(K, width=500, signal=0.0, seed=0):
    """K draws of μ + noise, ‖μ‖ = `signal`, mean squared length of the noise 1."""
    draw = np.random.default_rng(seed)
    mean = np.full(width, signal / width**0.5)
    return mean + draw.normal(size=(K, width)) / width**0.5


def test_equal_gradients_agree_fully_and_have_no_noise():
    found = agreement(gram(np.ones((5, 3))))
    assert (found.value, found.low, found.high, found.n) == pytest.approx((1, 1, 1, 5))
    assert signal_to_noise(gram(np.ones((5, 3)))) is None


def test_orthogonal_gradients_do_not_agree():
    found = agreement(gram(np.eye(6)))
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert signal_to_noise(gram(np.eye(6))).value == 0


def test_opposite_gradients():
    found = agreement(gram([[1, 2, 3], [-2, -4, -6]]))
    assert found.value == pytest.approx(-1)
    assert np.isnan(found.low)
    # half of ± v: the mean over pairs of v·v is −1/(K−1)
    assert agreement(gram([[1, 0], [1, 0], [-1, 0], [-1, 0]])).value == pytest.approx(-1 / 3)


def test_signal_and_noise_by_hand():
    # mean (2, 0), deviations (0, ±1): pairs 4 − 1, noise 1/(2−1)·(1 + 1)
    assert signal_to_noise(gram([[2, 1], [2, -1]])).value == pytest.approx(3 / 2)


@pytest.mark.parametrize("signal", [0.0, 1.0, 3.0])
def test_noise_around_a_mean(signal):
    """Over many draws the estimate is the truth on average, and its interval holds it about as often as it says."""
    found = [signal_to_noise(gram(steps_of(8, signal=signal, seed=seed))) for seed in range(200)]
    values = np.array([each.value for each in found])
    spread = values.std() / len(found) ** 0.5
    assert values.mean() == pytest.approx(signal**2, abs=4 * spread)
    held = np.mean([each.low <= signal**2 <= each.high for each in found])
    assert held > 0.9
    if signal == 0:
        assert (values < 0).any()  # the unbiased value is told, not cut at 0


def test_agreement_of_noise_around_a_mean():
    found = [agreement(gram(steps_of(8, width=2000, signal=1.0, seed=seed))) for seed in range(200)]
    assert np.mean([each.value for each in found]) == pytest.approx(0.5, abs=0.01)
    assert 0.9 < np.mean([each.low <= 0.5 <= each.high for each in found]) < 1


def test_against_numpy():
    steps = steps_of(7, width=40, signal=0.7)
    cosines = np.corrcoef(np.hstack([steps, -steps]))  # rows of mean zero: a correlation is then a cosine
    pairs = np.triu_indices(7, 1)
    found = agreement(gram(steps))
    assert found.value == pytest.approx(cosines[pairs].mean())
    without = [np.delete(np.delete(cosines, k, 0), k, 1)[np.triu_indices(6, 1)].mean() for k in range(7)]
    without, centre = np.arctanh(without), np.arctanh(found.value)
    error = (6 / 7 * np.square(without - np.mean(without)).sum()) ** 0.5
    half = t.ppf(0.975, 6) * error * (7 / 5) ** 0.5
    assert (found.low, found.high) == pytest.approx(tuple(np.tanh([centre - half, centre + half])))
    signal = (steps @ steps.T)[pairs].mean()
    noise = steps.var(axis=0, ddof=1).sum()
    assert signal_to_noise(gram(steps)).value == pytest.approx(signal / noise)


def test_lengths_of_gradients_do_not_change_agreement():
    steps = steps_of(6, signal=1.0)
    lengths = np.random.default_rng(1).uniform(0.01, 100, size=(6, 1))
    plain, scaled = agreement(gram(steps)), agreement(gram(lengths * steps))
    assert (scaled.value, scaled.low, scaled.high) == pytest.approx((plain.value, plain.low, plain.high))


def test_a_common_scale_changes_neither():
    steps = steps_of(6, signal=1.0)
    for measure in (agreement, signal_to_noise):
        plain, scaled = measure(gram(steps)), measure(gram(1e-6 * steps))
        assert (scaled.value, scaled.low, scaled.high) == pytest.approx((plain.value, plain.low, plain.high))


def test_the_order_of_steps_and_a_rotation_change_neither():
    steps = steps_of(6, width=20, signal=1.0)
    turn, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(20, 20)))
    for measure in (agreement, signal_to_noise):
        plain = measure(gram(steps))
        for other in (steps[::-1].copy(), steps @ turn):
            assert measure(gram(other)).value == pytest.approx(plain.value)
            assert measure(gram(other)).high == pytest.approx(plain.high)


def test_one_step_says_nothing_and_two_have_no_interval():
    assert agreement(gram([[1, 2]])) is None
    assert signal_to_noise(gram([[1, 2]])) is None
    for measure in (agreement, signal_to_noise):
        found = measure(gram([[1, 2], [2, 1]]))
        assert found.n == 2
        assert np.isnan([found.low, found.high]).all()


def test_a_step_without_a_gradient_has_no_direction_and_is_left_out():
    steps = steps_of(4)
    padded = np.vstack([steps[:2], np.zeros((1, 500)), steps[2:]])
    assert astuple(agreement(gram(padded))) == pytest.approx(astuple(agreement(gram(steps))))
    assert agreement(gram(np.zeros((3, 2)))) is None


def test_intervals_end_where_cosines_do():
    found = agreement(gram([[1, 0], [1, 0.01], [1, 0], [0, 1]]))
    assert -1 <= found.low < found.value < found.high <= 1
