"""Ratios of sums and their studentised bootstrap, written out once more here; shares with an exact interval."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, skew, t

from midblock.base import Estimate
from midblock.base.bootstrap import resample
from midblock.base.clusters import Clusters
from midblock.base.few import LEAST, enough, told, too_few
from midblock.base.ratios import LEAST_ERROR, SKEW, Ratios
from midblock.base.shares import clopper_pearson, independent, share_intervals, worth

few = settings(max_examples=15, deadline=None)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def ones(N):
    return np.ones((N, 1))


def by_hand(sums, counts, seed):
    """Low and high, sample by sample."""
    N, value = len(sums), sums.sum() / counts.sum()
    residuals = sums - value * counts
    error = math.sqrt(N / (N - 1) * (residuals**2).sum()) / counts.sum()
    drawn = []
    for times in resample(N, seed):
        places = np.repeat(np.arange(N), times)
        s, c = sums[places], counts[places]
        ratio = s.sum() / c.sum()
        own = math.sqrt(N / (N - 1) * ((s - ratio * c) ** 2).sum()) / c.sum()
        drawn.append((ratio - value) / max(own, LEAST_ERROR * error))
    below, above = np.quantile(drawn, [0.025, 0.975])
    student = t.ppf(0.975, N - 1)
    lean = skew(residuals + 0.0) if counts.var() == 0 else (residuals**3).mean() / (residuals**2).mean() ** 1.5
    down, up = max(above, student), max(-below, student)
    wider = 1 + SKEW * abs(lean) / N
    return value - error * down * (wider if lean < 0 else 1), value + error * up * (wider if lean > 0 else 1)


@few
@given(st.integers(4, 20), st.integers(0, 99), st.booleans())
def test_intervals_are_those_by_hand(N, seed, unequal):
    draw = np.random.default_rng(seed)
    sums = draw.exponential(size=N)
    counts = draw.integers(1, 9, size=N).astype(float) if unequal else np.ones(N)
    found = Ratios.of(sums[:, None], counts[:, None], seed)
    low, high = found.intervals()
    assert found.value[0] == pytest.approx(sums.sum() / counts.sum())
    assert (low[0], high[0]) == pytest.approx(by_hand(sums, counts, seed))


def test_a_mean_of_symmetric_values_has_students_interval_or_a_wider_one():
    values = np.concatenate([normal(30), -normal(30)])[:, None]
    found = Ratios.of(values, ones(60), 0)
    half = t.ppf(0.975, 59) * values.std(ddof=1) / math.sqrt(60)
    low, high = found.intervals()
    assert -low[0] >= half - 1e-12
    assert high[0] >= half - 1e-12
    assert (-low[0], high[0]) == pytest.approx((half, half), rel=0.12)


def test_the_side_of_the_longer_tail_is_the_longer_one():
    values = np.exp(normal(30))[:, None]
    found = Ratios.of(values, ones(30), 0)
    low, high = found.intervals()
    assert high[0] - found.value[0] > 1.3 * (found.value[0] - low[0])
    mirrored = Ratios.of(-values, ones(30), 0).intervals()
    assert (mirrored[0][0], mirrored[1][0]) == pytest.approx((-high[0], -low[0]))


@few
@given(st.integers(0, 99), st.floats(-50, 50), st.floats(0.1, 10))
def test_shift_and_scale(seed, shift, scale):
    values = normal(9, 1, seed=seed)
    before, after = (Ratios.of(x, ones(9), 1).intervals() for x in (values, scale * values + shift))
    for one, other in zip(before, after, strict=True):
        assert other == pytest.approx(scale * one + shift, abs=1e-8)


def test_what_counts_nothing_in_a_column_is_no_sample_of_it():
    values, counts = normal(12, 2), np.ones((12, 2))
    values[5:, 1] = counts[5:, 1] = 0
    found = Ratios.of(values, counts, 0)
    assert found.known.tolist() == [12, 5]
    assert found.value[1] == pytest.approx(values[:5, 1].mean())
    assert found.error[1] == pytest.approx(values[:5, 1].std(ddof=1) / math.sqrt(5))


def test_equal_values_are_certain_and_few_say_nothing():
    low, high = Ratios.of(np.full((6, 1), 0.1), ones(6), 0).intervals()
    assert (low[0], high[0]) == pytest.approx((0.1, 0.1), abs=1e-15)
    low, high = Ratios.of(normal(3, 1), ones(3), 0).intervals()
    assert np.isnan([low[0], high[0]]).all()


def test_one_value_unlike_the_others_is_not_infinitely_uncertain():
    """A third of the draws have only like values, and no spread to be measured by."""
    low, high = Ratios.of(np.array([[0.0]] * 7 + [[1.0]]), ones(8), 0).intervals()
    assert np.isfinite([low[0], high[0]]).all()
    assert low[0] < 0.125 < high[0] < 3


def test_together_is_wider_than_each_and_for_one_it_is_symmetric():
    values = normal(20, 15)
    found = Ratios.of(values, ones(20), 0)
    alone, together = found.intervals(), found.together()
    assert (together[0] < alone[0]).all()
    assert (together[1] > alone[1]).all()
    # all alike are worth one
    same = Ratios.of(np.repeat(values[:, :1], 15, axis=1), ones(20), 0).together()
    one = Ratios.of(values[:, :1], ones(20), 0).together()
    assert same[1][0] == pytest.approx(one[1][0])


# Shares


@pytest.mark.parametrize(("yes", "n"), [(0, 9), (9, 9), (4, 11), (199, 200)])
def test_a_share_of_single_values_has_clopper_and_pearsons_interval(yes, n):
    values = np.array([[1.0]] * yes + [[0.0]] * (n - yes))
    expected = binomtest(yes, n).proportion_ci(0.95, method="exact")
    low, high = share_intervals(Ratios.of(values, ones(n), 0))
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_prompts_that_are_all_right_are_one_value_each():
    counts = np.full((12, 1), 30.0)
    low, high = share_intervals(Ratios.of(counts.copy(), counts, 0))
    assert (low[0], high[0]) == pytest.approx((0.025 ** (1 / 12), 1))


def test_prompts_of_independent_values_are_worth_all_their_values():
    draw = np.random.default_rng(0)
    counts = np.full((400, 1), 10.0)
    yes = draw.binomial(10, 0.7, size=(400, 1)).astype(float)
    found = Ratios.of(yes, counts, 0)
    assert independent(found)[0] == pytest.approx(4000, rel=0.15)
    assert worth(found)[0] == 400
    low, high = share_intervals(found)
    expected = binomtest(int(yes.sum()), 4000).proportion_ci(0.95, method="exact")
    assert high[0] - low[0] == pytest.approx(expected.high - expected.low, rel=0.15)


@few
@given(st.lists(st.integers(0, 5), min_size=2, max_size=20))
def test_a_share_stays_between_0_and_1_and_never_leaves_the_widest_interval(right):
    yes, counts = np.array(right, dtype=float)[:, None], np.full((len(right), 1), 5.0)
    found = Ratios.of(yes, counts, 0)
    low, high = share_intervals(found)
    least, most = clopper_pearson(found.value * len(right), np.array([float(len(right))]))
    assert -1e-12 <= least[0] - 1e-12 <= low[0] <= found.value[0] + 1e-12
    assert found.value[0] - 1e-12 <= high[0] <= most[0] + 1e-12 <= 1 + 1e-9
    mirrored = share_intervals(Ratios.of(counts - yes, counts, 0))
    assert (mirrored[0][0], mirrored[1][0]) == pytest.approx((1 - high[0], 1 - low[0]), abs=1e-9)


# Clusters, and too few


def test_clusters_by_question():
    found = Clusters.of(["a", "b", "a", "", "", "b", "c"])
    assert found.numbers.tolist() == [0, 1, 0, 2, 3, 1, 4]
    assert found.count == 5
    assert found.effective == pytest.approx(49 / (4 + 4 + 1 + 1 + 1))
    assert found.sums(np.arange(7.0)[:, None])[:, 0].tolist() == [2, 6, 3, 4, 6]
    assert found.take(np.array([2, 5, 6])) is None
    assert found.take(np.array([1, 5, 6])).numbers.tolist() == [0, 0, 1]
    assert "7 prompts are variants or repeats of 5 questions" in found.note("prompts")
    assert Clusters.of(["a", "b", "", ""]) is None


@pytest.mark.parametrize("kind", LEAST)
def test_below_the_least_a_number_has_no_interval_and_it_is_said_why(kind):
    least = LEAST[kind]
    assert enough(kind, least)
    assert too_few(kind, least) == ""
    assert too_few(kind, least - 1) == f"{least - 1} are too few for an interval: {least} are needed"
    assert told(kind, Estimate(1.0, 0.0, 2.0, least)) == Estimate(1.0, 0.0, 2.0, least)
    assert math.isnan(told(kind, Estimate(1.0, 0.0, 2.0, least - 1)).low)
