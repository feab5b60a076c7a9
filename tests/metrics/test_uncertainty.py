import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midblock.base.clusters import Clusters
from midblock.base.ratios import Ratios
from midblock.metrics.uncertainty import SKEW, Folds, bootstrap_means, halves, jackknife, permutations

few = settings(deadline=None, max_examples=25)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mean_of(values):
    return lambda keep: {"mean": values[keep].mean(1)}


def covered(estimates, truth):
    return np.mean([estimate.low <= truth <= estimate.high for estimate in estimates])


# A 95 % interval of 400 datasets covers 380 ± 4.4; small samples make the bootstrap's a little narrow.
BAND = (0.90, 0.98)


def test_bootstrap_intervals_cover_the_mean():
    assert BAND[0] <= covered(bootstrap_means(gaussian(40, 400) + 3, seed=0), 3) <= BAND[1]


def test_bootstrap_intervals_cover_a_skewed_mean():
    values = gaussian(80, 400).square()
    assert 0.88 <= covered(bootstrap_means(values, seed=0), 1) <= BAND[1]


def test_jackknife_intervals_cover_the_mean():
    values = gaussian(60, 400) + 3
    estimates = jackknife(lambda keep: {str(c): values[keep, c].mean(1) for c in range(400)}, Folds.of(60, 0))
    assert BAND[0] <= covered(estimates.values(), 3) <= BAND[1]


def test_jackknife_intervals_cover_a_variance():
    """A statistic that is no mean: with two-sample copies, as a bootstrap makes them, it would be biased low."""
    values = gaussian(100, 300)
    estimates = jackknife(lambda keep: {str(c): values[keep, c].var(1) for c in range(300)}, Folds.of(100, 0))
    assert 0.86 <= covered(estimates.values(), 1) <= 0.99


def reach_of(deviations, seed=0):
    """How many standard errors the house's jackknife goes to either side."""
    deviations = np.asarray(deviations, dtype=float)[:, None]
    down, up = Ratios.of(deviations, np.ones((len(deviations), 1)), seed).reach(SKEW)
    return max(float(down[0]), float(up[0]))


@few
@given(st.integers(8, 30), st.integers(0, 1000))
def test_jackknife_of_a_mean_is_the_classical_standard_error(N, seed):
    values = gaussian(N, seed=seed)
    folds = Folds.of(N, 0)
    found = jackknife(mean_of(values), folds)["mean"]
    error = float(values.std()) / math.sqrt(N)
    alone = [int(np.setdiff1d(np.arange(N), fold)[0]) for fold in folds.kept[0].numpy()]
    far = reach_of(values[alone] - values.mean())
    assert far >= scipy.stats.t.ppf(0.975, N - 1) - 1e-12
    assert found.value == pytest.approx(float(values.mean()))
    assert (found.value - found.low, found.high - found.value) == pytest.approx((far * error, far * error))
    assert found.n == N


@pytest.mark.parametrize(("N", "groups"), [(8, 8), (40, 40), (41, 20), (1000, 20)])
def test_few_prompts_are_groups_of_their_own(N, groups):
    assert sum(map(len, Folds.of(N, 0).kept)) == groups


def test_a_bounded_number_has_its_interval_within_the_bounds_and_longer_where_there_is_room():
    values = torch.linspace(0.9, 0.99, 10, dtype=torch.float64)
    plain = jackknife(mean_of(values), Folds.of(10, 0))["mean"]
    bounded = jackknife(mean_of(values), Folds.of(10, 0), {"mean": (0, 1)})["mean"]
    assert 0 < bounded.low < bounded.value < bounded.high < 1
    assert bounded.value - bounded.low > bounded.high - bounded.value
    assert plain.value - plain.low == pytest.approx(plain.high - plain.value, rel=0.05)


def test_prompts_that_are_variants_of_one_question_are_left_out_together():
    clusters = Clusters.of([*"aaabbbcccd", *"efghij"])
    folds = Folds.of(16, 3, clusters=clusters)
    assert sum(map(len, folds.kept)) == clusters.count == folds.units == 10
    for fold in (fold for kept in folds.kept for fold in kept):
        left_out = np.setdiff1d(np.arange(16), fold)
        assert len({clusters.numbers[place] for place in left_out}) == 1
        assert np.isin(clusters.numbers, clusters.numbers[left_out]).sum() == len(left_out)


def test_clusters_of_one_are_no_clusters():
    assert Clusters.of(["a", "b", "", ""]) is None
    values, alone = gaussian(12, 2), Clusters(np.arange(12), 12)
    assert bootstrap_means(values, 3, clusters=alone) == bootstrap_means(values, 3)
    mean = mean_of(values[:, 0])
    assert jackknife(mean, Folds.of(12, 3, clusters=alone)) == jackknife(mean, Folds.of(12, 3))


@pytest.mark.parametrize("way", ["bootstrap", "jackknife"])
def test_copies_of_a_prompt_are_worth_no_more_than_one(way):
    """Ten questions, four variants each that say the same: the interval is that of ten prompts."""
    own = gaussian(10, 1)
    copies, clusters = own.repeat_interleave(4, 0), Clusters.of([str(place // 4) for place in range(40)])
    if way == "bootstrap":
        ours, theirs = bootstrap_means(own, 0)[0], bootstrap_means(copies, 0, clusters=clusters)[0]
        blind = bootstrap_means(copies, 0)[0]
    else:
        ours, theirs, blind = (
            jackknife(mean_of(values[:, 0]), folds)["mean"]
            for values, folds in ((own, Folds.of(10, 0)), (copies, Folds.of(40, 0, clusters=clusters)),
                                  (copies, Folds.of(40, 0)))
        )  # fmt: skip
    assert (theirs.low, theirs.high) == pytest.approx((ours.low, ours.high))
    assert theirs.n == 40
    assert blind.high - blind.low < 0.7 * (theirs.high - theirs.low)


@pytest.mark.parametrize("N", [41, 50, 59])
def test_jackknife_is_that_of_weighted_pseudo_values(N):
    """Busing et al. 1999, equations 9 and 10, group by group, for a statistic that is no mean."""
    values, folds, G = gaussian(N), Folds.of(N, 0), 20
    whole, pseudo, weight, size, centre = float(values.var()), [], [], [], G * float(values.var())
    for fold in (fold for kept in folds.kept for fold in kept):
        h, without = N / (N - len(fold)), float(values[fold].var())
        pseudo.append(h * whole - (h - 1) * without)
        weight.append(1 / (h - 1))
        size.append(float(N - len(fold)))
        centre -= (1 - 1 / h) * without
    variance = np.mean(np.array(weight) * (np.array(pseudo) - centre) ** 2)
    sizes = np.array(size)[:, None]
    far = np.max(Ratios.of(sizes * (np.array(pseudo)[:, None] - whole), sizes, 0).reach(SKEW))
    found = jackknife(lambda keep: {"variance": values[keep].var(1)}, folds)["variance"]
    assert found.high - found.value == pytest.approx(far * math.sqrt(variance))
    assert found.value - found.low == pytest.approx(far * math.sqrt(variance))


def test_jackknife_of_equal_groups_is_the_standard_error_of_the_groups_means():
    values, folds = gaussian(60), Folds.of(60, 3, groups=12)
    left_out = [np.setdiff1d(np.arange(60), fold) for fold in folds.kept[0].numpy()]
    means = [values[group].mean().item() for group in left_out]
    found = jackknife(mean_of(values), folds)["mean"]
    far = reach_of(np.array(means) - np.mean(means), seed=3)
    error = scipy.stats.sem(means)
    assert (found.value - found.low, found.high - found.value) == pytest.approx((far * error, far * error))


@pytest.mark.parametrize("N", [40, 41, 50, 59])
def test_groups_of_unequal_size_do_not_widen_a_jackknife(N):
    """√n·mean grows with the prompts as a spectral norm does; its relative error is the mean's own."""
    values = gaussian(N) + 10
    found = jackknife(lambda keep: {"x": keep.shape[1] ** 0.5 * values[keep].mean(1)}, Folds.of(N, 0))["x"]
    own = jackknife(mean_of(values), Folds.of(N, 0))["mean"]
    assert (found.high - found.low) / found.value == pytest.approx((own.high - own.low) / own.value, rel=0.3)


def test_jackknife_of_a_constant_has_no_width():
    found = jackknife(lambda keep: {"one": torch.ones(len(keep), dtype=torch.float64)}, Folds.of(30, 0))["one"]
    assert (found.value, found.low, found.high) == (1, 1, 1)


def test_a_fold_without_a_value_leaves_the_estimate_without_an_interval():
    def undefined_when_few(keep):
        return {"x": torch.full((len(keep),), 2.0 if keep.shape[1] == 5 else torch.nan, dtype=torch.float64)}

    found = jackknife(undefined_when_few, Folds.of(5, 0))["x"]
    assert found.value == 2
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@few
@given(st.integers(2, 90), st.integers(0, 1000), st.integers(2, 25))
def test_folds_part_everyone_once(N, seed, groups):
    folds = Folds.of(N, seed, groups)
    left_out = [set(range(N)) - set(fold.tolist()) for kept in folds.kept for fold in kept]
    assert sorted(prompt for group in left_out for prompt in group) == list(range(N))
    assert len(left_out) == min(groups, N)
    assert max(map(len, left_out)) - min(map(len, left_out)) <= 1
    assert len(folds.kept) <= 2
    assert folds.whole.tolist() == [list(range(N))]


@few
@given(st.integers(2, 40), st.integers(0, 1000))
def test_no_fold_holds_a_prompt_twice(N, seed):
    for kept in Folds.of(N, seed).kept:
        for fold in kept:
            assert len(fold.unique()) == len(fold)


def test_prompts_without_a_value_are_counted_out():
    values = gaussian(30, 2)
    values[10:, 1] = torch.nan
    found = bootstrap_means(values, seed=0)[1]
    assert found.value == pytest.approx(float(values[:10, 1].mean()))
    assert found.n == 10
    # as wide as ten prompts make it, not thirty
    half = 2.26 * float(values[:10, 1].std()) / math.sqrt(10)
    assert 2 * half <= found.high - found.low < 4 * half


@pytest.mark.parametrize(("known", "value"), [(0, math.nan), (1, 5.0)])
def test_fewer_than_two_values_have_no_interval(known, value):
    values = torch.full((8, 1), torch.nan, dtype=torch.float64)
    values[:known] = 5.0
    found = bootstrap_means(values, seed=0)[0]
    assert found.n == known
    assert found.value == pytest.approx(value, nan_ok=True)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_the_same_seed_gives_the_same_numbers():
    values = gaussian(25, 1)
    assert bootstrap_means(values, seed=4) == bootstrap_means(values, seed=4)
    assert jackknife(mean_of(values[:, 0]), Folds.of(25, 4)) == jackknife(mean_of(values[:, 0]), Folds.of(25, 4))
    assert torch.equal(permutations(25, 4), permutations(25, 4))
    assert all(torch.equal(a, b) for a, b in zip(halves(25, 4)[0], halves(25, 4)[0], strict=True))


def test_another_seed_gives_another_interval_of_the_same_value():
    values = gaussian(25, 1)
    for one, other in [
        (bootstrap_means(values, seed=4)[0], bootstrap_means(values, seed=5)[0]),
        [jackknife(mean_of(values[:, 0]), Folds.of(25, seed))["mean"] for seed in (4, 5)],
    ]:
        assert one.value == other.value
        assert (one.low, one.high) != (other.low, other.high)


@few
@given(st.integers(0, 1000), st.floats(-50, 50), st.floats(0.1, 10))
def test_intervals_shift_and_scale_with_the_values(seed, shift, scale):
    values = gaussian(12, 1, seed=seed)
    for interval in (
        lambda x: bootstrap_means(x, seed=1)[0],
        lambda x: jackknife(mean_of(x[:, 0]), Folds.of(12, 1, groups=6))["mean"],
    ):
        before, after = interval(values), interval(scale * values + shift)
        for end in ("value", "low", "high"):
            assert getattr(after, end) == pytest.approx(scale * getattr(before, end) + shift, abs=1e-9)


def test_other_columns_never_matter_to_a_bootstrap():
    values = gaussian(20, 3)
    alone = [bootstrap_means(values[:, [column]], seed=0)[0] for column in range(3)]
    for together, single in zip(bootstrap_means(values, seed=0), alone, strict=True):
        assert (together.low, together.high) == pytest.approx((single.low, single.high), rel=1e-12)


@pytest.mark.parametrize("N", [4, 5, 50])
def test_halves_are_disjoint_and_equal(N):
    for first, second in halves(N, 0):
        together = torch.cat([first, second], dim=1)[0]
        assert first.shape == second.shape == (1, N // 2)
        assert len(together.unique()) == N // 2 * 2


def test_permutations_are_permutations_and_differ():
    orders = permutations(12, 0, count=50)
    assert torch.equal(orders.sort(1).values, torch.arange(12).expand(50, -1))
    assert len(orders.unique(dim=0)) == 50


def test_copies_move_and_are_halved_together():
    copies = Clusters.of(["a", "b", "c", "d"] * 3)
    for order in permutations(12, 0, 50, copies).numpy():
        assert sorted(order) == list(range(12))
        taken = copies.numbers[order]
        assert all(len(set(taken[copies.numbers == each])) == 1 for each in range(4))
    for first, second in halves(12, 0, copies):
        assert first.shape == second.shape == (1, 6)
        assert not set(copies.numbers[first[0]]) & set(copies.numbers[second[0]])
    uneven = Clusters.of(["a"] * 5 + ["b", "c", "c"])
    assert all(sorted(order) == list(range(8)) for order in permutations(8, 0, 20, uneven).tolist())
    assert halves(4, 0, Clusters.of(["a"] * 4)) == []


def test_one_cluster_has_no_fold():
    folds = Folds.of(5, 0, clusters=Clusters.of(["a"] * 5))
    found = jackknife(lambda keep: {"size": keep.double().mean(1)}, folds)["size"]
    assert (found.value, found.n) == (2, 5)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
