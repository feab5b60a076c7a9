"""TokenMean: sums over counts, intervals by a bootstrap of prompts that is written out once more here."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midblock.base import Estimate, MidblockError, generator
from midblock.base.clusters import Clusters
from midblock.evaluation import TokenMean, difference, differences, part_of_way

PROMPTS = st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 9)), min_size=4, max_size=12)


def mean_of(sums, counts, index=None, seed=0):
    index = torch.arange(len(sums)) if index is None else torch.tensor(index)
    return TokenMean.of(index, torch.tensor(sums, dtype=torch.float64), torch.tensor(counts), seed)


def draws_by_hand(sums, counts, seed):
    """The textbook's bootstrap: how often each prompt is drawn, then the mean over all their tokens."""
    N = len(sums)
    times = generator(seed, "bootstrap", N).multinomial(N, [1 / N] * N, 1000)
    found = []
    for row in times:
        drawn = [prompt for prompt, often in enumerate(row) for _ in range(often)]
        assert len(drawn) == N
        found.append(math.fsum(sums[prompt] for prompt in drawn) / sum(counts[prompt] for prompt in drawn))
    return np.array(found)


def test_tokens_weigh_the_same_whatever_their_prompt():
    found = mean_of([1.0, 10.0], [1, 4])
    assert (found.value, found.n) == (11 / 5, 2)
    # a draw holds twice the first, both, or twice the second prompt
    assert set(found.draws().round(12)) == {1.0, 2.2, 2.5}


@settings(max_examples=10, deadline=None)
@given(PROMPTS, st.integers(0, 3))
def test_draws_are_those_of_a_bootstrap_by_hand(prompts, seed):
    sums, counts = map(list, zip(*prompts, strict=True))
    found, expected = mean_of(sums, counts, seed=seed), draws_by_hand(sums, counts, seed)
    np.testing.assert_allclose(found.draws(seed), expected, rtol=1e-12, atol=1e-12)
    other = [value + 1.0 for value in sums]
    change = difference(found, mean_of(other, counts, seed=seed), seed=seed)
    # a difference of means over the same tokens is the mean of the differences
    ones = mean_of([1.0] * len(sums), counts, seed=seed)
    assert change.value == pytest.approx(len(sums) / sum(counts), abs=1e-12)
    assert (change.low, change.high) == pytest.approx((ones.low, ones.high), abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(PROMPTS, st.randoms())
def test_the_order_of_prompts_is_nothing(prompts, random):
    index = list(range(len(prompts)))
    random.shuffle(index)
    sums, counts = map(list, zip(*prompts, strict=True))
    ordered = mean_of(sums, counts)
    shuffled = mean_of([sums[place] for place in index], [counts[place] for place in index], index)
    assert shuffled.interval == ordered.interval
    assert shuffled.index.tolist() == sorted(index)
    assert shuffled.draws(5).tolist() == ordered.draws(5).tolist()


@settings(max_examples=20, deadline=None)
@given(PROMPTS)
def test_nothing_differs_from_itself(prompts):
    found = mean_of(*map(list, zip(*prompts, strict=True)))
    assert difference(found, found) == Estimate(0.0, 0.0, 0.0, len(prompts))


def test_pairing_narrows_what_prompts_share():
    hard = torch.linspace(0, 50, 12).tolist()
    easier = [value - 1 for value in hard]
    change = difference(mean_of(hard, [1] * 12), mean_of(easier, [1] * 12))
    assert (change.value, change.low, change.high) == pytest.approx((-1, -1, -1))


def test_prompts_without_a_token_are_left_out():
    found = mean_of([1.0, 9.0, 2.0], [2, 0, 2], index=[8, 3, 5])
    assert (found.value, found.index.tolist()) == (0.75, [5, 8])
    with pytest.raises(MidblockError, match=r"no token counts \(the region is empty in every prompt\)"):
        mean_of([0.0], [0])


def test_a_single_prompt_has_no_interval():
    found = mean_of([3.0], [2])
    assert found.value == 1.5
    assert found.interval.as_record() == {"value": 1.5, "low": None, "high": None}
    assert found.interval.exponential().as_record() == {"value": math.exp(1.5), "low": None, "high": None}
    assert math.isnan(found.interval.exponential().low)
    change = difference(found, mean_of([4.0], [2]))
    assert (change.value, math.isnan(change.low), math.isnan(change.high)) == (0.5, True, True)


def test_means_over_other_prompts_are_not_compared():
    with pytest.raises(MidblockError, match="not about the same prompts"):
        difference(mean_of([1.0, 2.0], [1, 1]), mean_of([1.0, 2.0], [1, 1], index=[0, 2]))


def test_of_several_differences_the_intervals_hold_together():
    """Twelve cells that change nothing but for noise: each alone is narrower than all at once."""
    draw = np.random.default_rng(0)
    counts = [20] * 16
    plain = mean_of(draw.normal(size=16).tolist(), counts)
    cells = [mean_of((plain.sums.numpy() + draw.normal(size=16)).tolist(), counts) for _ in range(12)]
    alone = [difference(plain, cell) for cell in cells]
    together = differences([(plain, cell) for cell in cells], together=True)
    assert [each.value for each in together] == [each.value for each in alone]
    widths = [[each.high - each.low for each in found] for found in (alone, together)]
    assert np.median(np.divide(*widths[::-1])) > 1.2
    # of one, both are much the same
    (single,) = differences([(plain, cells[0])], together=True)
    assert single.high - single.low == pytest.approx(alone[0].high - alone[0].low, rel=0.25)


def test_a_difference_of_means_over_other_tokens():
    """To first order: the two means' own pulls, prompt by prompt."""
    a, b = mean_of([1.0, 4.0, 2.0, 6.0, 3.0], [1, 3, 2, 4, 2]), mean_of([2.0, 5.0, 2.5, 8.0, 3.0], [2, 3, 2, 5, 2])
    found = difference(a, b)
    assert found.value == pytest.approx(b.value - a.value)
    pulls = [(m.sums.double() - m.value * m.counts) / m.counts.double().mean() for m in (a, b)]
    expected = mean_of((pulls[1] - pulls[0] + b.value - a.value).tolist(), [1] * 5)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_shares_of_prompts_that_are_all_right_are_not_certain():
    found = TokenMean.of(torch.arange(12), torch.full((12,), 5.0).double(), torch.full((12,), 5), share=True)
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(0.025 ** (1 / 12))  # as if each prompt were one value
    change = difference(found, found)
    assert change.value == 0
    assert change.low == pytest.approx(-change.high)
    assert 0.02 < change.high < 0.1  # a token lost and one won, of 60


def test_copies_of_a_question_are_drawn_together():
    sums, counts = [1.0, 2.0, 5.0, 3.0, 8.0], [2, 3, 4, 2, 5]
    own = mean_of(sums, counts)
    copies = TokenMean.of(
        torch.arange(15), torch.tensor(sums).double().repeat(3), torch.tensor(counts).repeat(3),
        clusters=Clusters.of([*"abcde"] * 3),
    )  # fmt: skip
    assert (copies.value, copies.low, copies.high) == pytest.approx((own.value, own.low, own.high))
    assert (copies.n, copies.units) == (15, 5)
    np.testing.assert_allclose(copies.draws(), own.draws())


def test_part_of_the_way_from_one_mean_to_another():
    counts = [3, 5, 2, 7, 4, 6]
    start, end = mean_of([3.0, 9, 2, 8, 6, 9], counts), mean_of([1.0, 4, 1, 3, 2, 5], counts)
    half = mean_of(((start.sums + end.sums) / 2).tolist(), counts)
    assert part_of_way(start, half, end) == pytest.approx((0.5, 0.5))
    assert part_of_way(start, start, end) == (0, 0)


@pytest.mark.parametrize("n", [8, 30, 200])
def test_a_part_of_shares_that_all_agree_is_not_known_to_the_last_digit(n):
    """No prompt went another way: the interval still has the width that a difference of such shares has."""
    none, every = (
        TokenMean.of(torch.arange(n), torch.full((n,), value, dtype=torch.float64), torch.ones(n), share=True)
        for value in (0.0, 1.0)
    )
    low, high = part_of_way(none, every, every)
    assert low < 1 < high
    assert low == pytest.approx(difference(none, every).low)
    below, above = part_of_way(none, none, every)
    assert (below, above) == pytest.approx((low - 1, high - 1))
