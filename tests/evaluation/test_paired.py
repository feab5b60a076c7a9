import numpy as np
import pytest
from scipy.stats import permutation_test

from midblock.base.clusters import Clusters
from midblock.evaluation.paired import ALPHA, Marks, holm, mean_test, paired, share_test


def marks(values, clusters=None, weights=None, share=True):
    values = np.asarray(values, dtype=float)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    found = None if clusters is None else Clusters.of([str(each) for each in clusters])
    return Marks(values, weights, share, found)


def shares(seed, n=60, p=0.5, better=0.0):
    """Two models' right answers: the second turns some of the first's wrong ones right."""
    draw = np.random.default_rng(seed)
    first = draw.random(n) < p
    second = np.where(draw.random(n) < 0.3, draw.random(n) < p, first)
    return first.astype(float), np.where(draw.random(n) < better, 1.0, second)


@pytest.mark.parametrize("seed", range(4))
def test_shares_without_clusters_are_tested_as_statsmodels_mcnemar(seed):
    mcnemar = pytest.importorskip("statsmodels.stats.contingency_tables").mcnemar
    first, second = shares(seed)
    table = [[np.sum((first == a) & (second == b)) for b in (1, 0)] for a in (1, 0)]
    found = paired(marks(first), marks(second))
    assert found.p == pytest.approx(mcnemar(table, exact=True).pvalue)
    assert found.difference.value == pytest.approx(second.mean() - first.mean())
    assert found.difference.low <= found.difference.value <= found.difference.high


@pytest.mark.parametrize("pulls", [[3, -1, 2, 2, 0, -1, 1, 4], [1, 1, 1, 1, -1], [2, -2], [0, 0], [-5, -1, -2, -3]])
def test_whole_pulls_are_tested_as_by_turning_all_signs(pulls):
    data = np.array(pulls, dtype=float)
    expected = permutation_test(
        (data,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    ).pvalue if np.any(data) else 1.0  # fmt: skip
    assert share_test(np.array(pulls)) == pytest.approx(min(expected, 1.0))
    assert mean_test(data) == pytest.approx(min(expected, 1.0))


def test_drawn_signs_come_near_to_all_of_them():
    data = np.random.default_rng(1).normal(0.4, 1.0, 16)
    signs = 1 - 2 * ((np.arange(2**16)[:, None] >> np.arange(16)) & 1)
    exact = (np.abs(signs @ data) >= abs(data.sum()) * (1 - 1e-12)).mean()
    assert mean_test(data) == pytest.approx(exact, abs=0.01)


def test_holm_is_that_of_statsmodels():
    multipletests = pytest.importorskip("statsmodels.stats.multitest").multipletests
    p = [0.04, 0.001, 0.3, 0.012, 0.9, 0.04]
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist())
    assert holm([]) == []


def test_variants_of_a_question_count_once():
    """Ten variants that are all alike are no more evidence than one."""
    first, second = np.zeros(5), np.array([1.0, 1.0, 1.0, 1.0, 0.0])
    once = paired(marks(first), marks(second))
    many = paired(marks(first.repeat(10), np.arange(5).repeat(10)), marks(second.repeat(10), np.arange(5).repeat(10)))
    alone = paired(marks(first.repeat(10)), marks(second.repeat(10)))
    assert many.p == once.p == 0.125
    assert alone.p < 1e-9
    assert many.units == 5
    width = many.difference.high - many.difference.low
    assert width > 2 * (alone.difference.high - alone.difference.low)


def rejected(draws, **options):
    return np.mean([paired(marks(a, **options), marks(b, **options)).p < ALPHA for a, b in draws])


def test_where_neither_is_better_few_are_found_so_even_in_clusters():
    clusters = np.arange(12).repeat(8)
    draw = np.random.default_rng(3)
    pairs = []
    for _ in range(150):
        both = [(draw.random(12) < 0.5).repeat(8).astype(float) for _ in range(2)]
        pairs.append(both)
    assert rejected(pairs, clusters=clusters) <= 0.08
    assert rejected(pairs) > 0.3  # what happens to who takes variants for questions
    assert rejected([shares(seed) for seed in range(150)]) <= 0.08


def test_what_is_detectable_is_found_in_about_four_of_five_runs():
    draw, n = np.random.default_rng(5), 150
    found, powers = [], []
    for _ in range(10):
        first = draw.normal(0, 1, n)
        null = first + draw.normal(0, 0.5, n)
        found.append(paired(marks(first, share=False), marks(null, share=False)).detectable())
    planted = float(np.median(found))
    for _ in range(100):
        powers.append(mean_test(draw.normal(planted, 0.5, n)) < ALPHA)
    assert 0.68 <= np.mean(powers) <= 0.92
    assert planted == pytest.approx(2.8 * 0.5 / np.sqrt(n), rel=0.1)


def test_no_share_is_detectable_below_what_can_be_significant():
    same = np.ones(40)
    found = paired(marks(same), marks(same))
    assert (found.p, found.difference.value) == (1.0, 0.0)
    assert found.detectable() == pytest.approx(6 / 40)  # 2·2^−6 is the first below 0.05
    assert found.detectable(0.01) == pytest.approx(8 / 40)
    assert np.isnan(paired(marks(same, share=False), marks(same, share=False)).detectable())


def test_other_weights_are_compared_by_their_own_means():
    """Two tokenizers count the same text differently: the difference is that of the two means."""
    values, weights = np.array([1.0, 2.0, 4.0, 1.5, 3.0]), np.array([3.0, 1.0, 2.0, 5.0, 1.0])
    first = marks(values, weights=weights, share=False)
    second = marks(values + 1, weights=weights[::-1].copy(), share=False)
    found = paired(first, second)
    expected = np.average(values + 1, weights=weights[::-1]) - np.average(values, weights=weights)
    assert found.difference.value == pytest.approx(expected)
