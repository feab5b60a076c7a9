"""Correlations between depth curves: which curves there are, point values, intervals that keep their promise."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from midblock.base import LayerRow, LayerTable, MidblockError
from midblock.metrics.correlation import (
    COLUMNS,
    autocorrelation,
    correlate,
    effective_size,
    pearson,
    spearman,
    write_correlations,
)
from midblock.metrics.depth_curves import depth_curves

L = 12
RISE = np.arange(L, dtype=float)


def rows(metric, values, layers=None, **where):
    layers = range(len(values)) if layers is None else layers
    facts = {"model": "sft", "n": 1} | where
    return [
        LayerRow(layer=layer, blocks=L, metric=metric, value=float(value), **facts)
        for layer, value in zip(layers, values, strict=True)
    ]


def table(*parts):
    return LayerTable.from_rows([row for part in parts for row in part])


def noise(seed, n=L):
    return np.random.default_rng(seed).standard_normal(n)


def autoregressive(rho, n, count, rng):
    """Stationary AR(1) series, count×n."""
    series = rng.standard_normal((count, n))
    series[:, 1:] *= math.sqrt(1 - rho**2)
    for step in range(1, n):
        series[:, step] += rho * series[:, step - 1]
    return series


# Curves


def test_a_curve_is_named_by_what_tells_it_apart():
    found = depth_curves(
        table(
            rows("effective_rank", RISE, model="base"),
            rows("effective_rank", RISE**2),
            rows("cka", noise(0)),
            rows("delta_rel", noise(1), module="block"),
            rows("delta_rel", noise(2), module="mlp"),
            rows("swap_accuracy", RISE, module="base_head", model="base"),
            rows("swap_accuracy", RISE, module="base_head"),
        )
    )
    assert list(found) == [
        "effective_rank · base",
        "effective_rank · sft",
        "cka",
        "delta_rel · block",
        "delta_rel · mlp",
        "swap_accuracy · base_head · base",
        "swap_accuracy · base_head · sft",
    ]
    assert found.index.tolist() == list(range(L))
    assert found["effective_rank · sft"].tolist() == (RISE**2).tolist()


def test_only_blocks_and_only_estimates_are_curves():
    found = depth_curves(
        table(
            rows("cka", np.arange(L + 2.0), layers=range(-1, L + 1)),
            rows("cka.null", noise(0)),
            rows("cka.seed1", noise(0)),
            rows("delta_rel", noise(1), module="q_proj"),
            rows("changed_fraction", np.ones(L), module="block"),
            rows("nearly_constant", 1 + 1e-15 * noise(2)),
            rows("four_blocks", [1, 2, 3, 4], layers=[0, 3, 6, 9]),
            rows("unknown", [math.nan] * 8 + [1, 2, 3, 4]),
        )
    )
    assert found["cka"].tolist() == list(range(1, L + 1))
    assert list(found) == ["cka"]


def test_of_several_datasets_the_first_counts():
    first, second = rows("cka", RISE, dataset="gsm8k"), rows("cka", -RISE, dataset="mmlu")
    other = rows("exit_nll", noise(0), dataset="mmlu")
    found = depth_curves(table(first, second, other))
    assert found["cka"].tolist() == RISE.tolist()
    assert list(found) == ["cka", "exit_nll"]


def test_curves_that_share_few_blocks_are_compared_there():
    cells = [1, 3, 5, 8, 11]
    swap = rows("swap_accuracy_change", RISE[cells] ** 2, layers=cells, module="base_head", model="base")
    even = rows("even", [1, 5, 2, 2, 9, 4], layers=[0, 2, 4, 6, 8, 10])
    pairs = correlate(table(rows("cka", noise(3)), swap, even)).frame.set_index(["a", "b"])
    both = pairs.loc["cka", "swap_accuracy_change · base_head"]
    assert both.n == 5
    assert both.pearson == pytest.approx(stats.pearsonr(noise(3)[cells], RISE[cells] ** 2).statistic, abs=1e-12)
    assert np.isnan(both.pearson_differences)
    # One block in common says nothing.
    alone = pairs.loc["swap_accuracy_change · base_head", "even"]
    assert alone.n == 1
    assert alone.drop("n").isna().all()


# Point values


@given(arrays(float, (2, 9), elements=st.integers(-5, 5).map(float)))
def test_points_are_scipys(values):
    x, y = values
    assume(np.ptp(x) > 0 and np.ptp(y) > 0)
    assert pearson(x, y).value == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert spearman(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


FINITE = arrays(float, (2, 10), elements=st.integers(-1000, 1000).map(float))
SCALE = st.floats(0.01, 100)


@given(FINITE, SCALE, SCALE, st.floats(-100, 100))
def test_shift_and_scale_of_a_curve_move_nothing_but_the_sign(values, a, b, shift):
    x, y = values
    assume(np.ptp(x) > 0 and np.ptp(y) > 0)
    for correlation in (pearson, spearman):
        before, after = correlation(x, y), correlation(-a * x + shift, b * y)
        mirrored = (-after.value, -after.high, -after.low, after.n_effective)
        assert (before.value, before.low, before.high, before.n_effective) == pytest.approx(mirrored, abs=1e-6)
        assert -1 <= before.low <= before.value <= before.high <= 1
        assert correlation(y, x) == before
        assert 1 <= before.n_effective <= 10


@given(FINITE)
def test_monotone_maps_leave_spearman(values):
    x, y = values
    assume(np.ptp(x) > 0 and np.ptp(y) > 0)
    assert spearman(np.exp(x / 500), y**3) == spearman(x, y)


# Intervals


def test_where_neighbours_are_not_alike_the_interval_is_fishers():
    n = 14
    x, y = noise(4, n) + 3 * (-1.0) ** np.arange(n), noise(5, n)
    assert effective_size(x, y) == n
    ours, theirs = pearson(x, y), stats.pearsonr(x, y).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    # Bonett and Wright: Fisher's half width times √(1 + r²/2).
    ranks = spearman(x, y)
    half = 1.959963984540054 * math.sqrt((1 + ranks.value**2 / 2) / (n - 3))
    bounds = np.tanh(np.arctanh(ranks.value) + np.array([-half, half]))
    assert (ranks.low, ranks.high) == pytest.approx(tuple(bounds), abs=1e-12)


def test_effective_size_in_closed_form():
    """Pairs of +1 and −1: ρ(1) = 1/7, corrected by (1 + 3/7)/8 to 9/28, and ρ(2) is negative."""
    x = np.array([1.0, 1, -1, -1, 1, 1, -1, -1])
    restless = np.array([1.0, 0, 1, 0, 1, 0, 1, 0])  # its own neighbours are unlike: no lag counts
    assert autocorrelation(x)[1] == pytest.approx(9 / 28, rel=1e-12)
    assert effective_size(x, restless) == 8
    # two turns are those of five independent points, fewer than 8/(1 + 2 (7/8) (9/28)²)
    assert effective_size(x, x) == 1.5 * 2 + 2


def test_effective_size_of_a_long_series_is_the_known_one():
    """Two AR(1) series of coefficient ρ count for n (1 − ρ²)/(1 + ρ²) points (Bartlett 1935)."""
    rho, n = 0.8, 20000
    x, y = autoregressive(rho, n, 2, np.random.default_rng(0))
    assert autocorrelation(x)[1] == pytest.approx(rho, abs=0.02)
    assert effective_size(x, y) / n == pytest.approx((1 - rho**2) / (1 + rho**2), rel=0.1)


@pytest.mark.parametrize("true", [0.0, 0.6])
def test_intervals_of_smooth_noise_cover_as_promised(true):
    count, n = 500, 30
    rng = np.random.default_rng(1)
    x, other = autoregressive(0.8, n, count, rng), autoregressive(0.8, n, count, rng)
    y = true * x + math.sqrt(1 - true**2) * other
    found = [pearson(a, b) for a, b in zip(x, y, strict=True)]
    assert 0.92 <= np.mean([each.low <= true <= each.high for each in found]) <= 0.995
    naive = [stats.pearsonr(a, b).confidence_interval() for a, b in zip(x, y, strict=True)]
    assert np.mean([each.low <= true <= each.high for each in naive]) < 0.8
    # Of normal variables Spearman's is 6/π arcsin(r/2).
    rank = 6 / math.pi * math.asin(true / 2)
    ranks = [spearman(a, b) for a, b in zip(x, y, strict=True)]
    assert 0.9 <= np.mean([each.low <= rank <= each.high for each in ranks]) <= 0.998


def test_walks_that_have_nothing_to_do_with_each_other_are_rarely_called_correlated():
    walks = np.random.default_rng(2).standard_normal((300, 2, 30)).cumsum(axis=2)
    assert np.mean([pearson(*pair).low <= 0 <= pearson(*pair).high for pair in walks]) > 0.92


@pytest.mark.parametrize("n", [12, 24, 32, 48])
def test_two_curves_that_only_rise_say_nothing_of_each_other(n):
    """Whatever makes them rise: every rank is the same, and once that was told as 1 [1, 1]."""
    for x, y in np.random.default_rng(n).exponential(size=(20, 2, n)).cumsum(axis=2):
        for found in (pearson(x, y), spearman(x, y)):
            assert (found.low, found.high) == (-1, 1)
    assert spearman(x, y).value == pytest.approx(1)


def test_five_blocks_of_a_straight_line_say_nothing():
    both = pearson(np.arange(5.0), np.arange(5.0))
    assert both.value == 1
    assert (both.low, both.high) == (-1, 1)
    assert both.n_effective <= 3


# Differences


def test_differences_take_out_a_common_rise():
    first, second = RISE + 0.2 * noise(6), RISE + 0.2 * noise(7)
    row = correlate(table(rows("a", first), rows("b", second))).frame.iloc[0]
    assert row.pearson > 0.98
    expected = stats.pearsonr(np.diff(first), np.diff(second)).statistic
    assert row.pearson_differences == pytest.approx(expected, abs=1e-12)
    assert abs(expected) < 0.6


@pytest.mark.parametrize("layers", [range(5), [0, 1, 2, 3, 4, 6, 7]], ids=["five blocks", "a gap"])
def test_differences_need_six_blocks_in_a_row(layers):
    layers = list(layers)
    row = correlate(table(rows("a", noise(8)), rows("b", noise(9)[layers], layers=layers))).frame.iloc[0]
    assert row.n == len(layers)
    assert np.isfinite(row.pearson)
    assert np.isnan(row.pearson_differences)


def test_a_straight_line_has_no_differences():
    row = correlate(table(rows("a", 0.1 * RISE), rows("b", noise(10)))).frame.iloc[0]
    assert np.isnan(row.pearson_differences)


# All pairs


@pytest.fixture
def families():
    """Two families of two curves each, interleaved, one of them mirrored, and one curve of its own."""
    wave, rise = np.sin(RISE * 2), RISE
    return table(
        rows("wave", wave + 0.05 * noise(11)),
        rows("rise", rise + 0.05 * noise(12)),
        rows("mirrored", -wave + 0.05 * noise(13)),
        rows("slope", rise + 0.05 * noise(14)),
        rows("single", noise(19)),
    )


def test_like_curves_stand_side_by_side_in_one_cluster(families):
    found = correlate(families)
    assert found.curves == ("wave", "rise", "mirrored", "slope", "single")
    assert sorted(found.order) == list(range(5))
    place = {found.curves[at]: position for position, at in enumerate(found.order)}
    assert abs(place["wave"] - place["mirrored"]) == 1
    assert abs(place["rise"] - place["slope"]) == 1
    cluster = dict(zip(found.curves, found.clusters, strict=True))
    assert cluster["wave"] == cluster["mirrored"]
    assert cluster["rise"] == cluster["slope"]
    assert len(set(cluster.values())) == 3
    in_order = [found.clusters[at] for at in found.order]
    assert in_order == sorted(in_order)


@pytest.mark.parametrize(("r", "clusters"), [(0.72, 1), (0.68, 2)])
def test_clusters_are_cut_at_seven_tenths(r, clusters):
    x, y = noise(15), noise(16)
    x = (x - x.mean()) / x.std()
    y = y - y.mean() - (y @ x) / (x @ x) * x
    y = r * x - math.sqrt(1 - r**2) * y / y.std()
    assert len(set(correlate(table(rows("a", x), rows("b", y))).clusters)) == clusters


def test_every_pair_is_written_once_and_read_back_exactly(families, tmp_path):
    found = correlate(families)
    assert tuple(found.frame) == COLUMNS
    assert len(found.frame) == 10
    assert len({frozenset(pair) for pair in zip(found.frame.a, found.frame.b, strict=True)}) == 10
    write_correlations(found, tmp_path / "correlations.csv")
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "correlations.csv", float_precision="round_trip"),
        found.frame,
        check_exact=True,
        check_dtype=False,
    )
    assert [file.name for file in tmp_path.iterdir()] == ["correlations.csv"]


@pytest.mark.parametrize("count", [0, 1])
def test_one_curve_has_no_correlation(count):
    found = correlate(table(rows("constant", np.ones(L)), rows("cka", RISE)[: L * count]))
    assert len(found.curves) == count
    assert tuple(found.frame) == COLUMNS
    assert found.frame.empty
    assert found.order == found.clusters == tuple(range(count))


def test_a_table_without_blocks_is_refused():
    with pytest.raises(MidblockError, match="no decoder block"):
        correlate(table())
