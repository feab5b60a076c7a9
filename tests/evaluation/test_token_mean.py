"""TokenMean: sums over counts, intervals by a bootstrap of prompts that is written out once more here."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midblock.base import Estimate, MidblockError, generator
from midblock.evaluation import TokenMean, difference

PROMPTS = st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 9)), min_size=2, max_size=12)


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
    assert (found.low, found.high) == (1.0, 2.5)
    assert set(found.draws().round(12)) == {1.0, 2.2, 2.5}


@settings(max_examples=10, deadline=None)
@given(PROMPTS, st.integers(0, 3))
def test_intervals_are_those_of_a_bootstrap_by_hand(prompts, seed):
    sums, counts = map(list, zip(*prompts, strict=True))
    found, expected = mean_of(sums, counts, seed=seed), draws_by_hand(sums, counts, seed)
    np.testing.assert_allclose(found.draws(seed), expected, rtol=1e-12, atol=1e-12)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(expected, [2.5, 97.5])), abs=1e-12)
    other = [value + 1.0 for value in sums]
    change = difference(found, mean_of(other, counts, seed=seed), seed=seed)
    paired = draws_by_hand(other, counts, seed) - expected
    assert change.value == pytest.approx(len(sums) / sum(counts), abs=1e-12)
    assert (change.low, change.high) == pytest.approx(tuple(np.percentile(paired, [2.5, 97.5])), abs=1e-12)


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
