"""The depth of emergence: closed forms, an interval by hand, and what must not move it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midblock.evaluation import TokenMean
from midblock.interventions.probe.emergence import Emergence, emergence, first_half


def curve_of(*rows, counts=None):
    """One TokenMean a row of right tokens by prompt."""
    index = torch.arange(len(rows[0]))
    counts = torch.tensor(counts) if counts else torch.full_like(index, 10)
    return [TokenMean.of(index, torch.tensor(row, dtype=torch.float64), counts) for row in rows]


@pytest.mark.parametrize(
    ("shares", "layer"),
    [
        ([0, 0, 0, 8], 2),
        ([0, 0, 4, 8], 1),  # half is reached
        ([0, 3.99, 3.99, 8], 2),  # nearly is not
        ([0, 6, 1, 8], 0),  # the first time counts, though it falls again
        ([8, 8, 8, 8], -1),
        ([9, 0, 0, 1], -1),
    ],
)
def test_the_first_layer_with_half_of_the_last_value(shares, layer):
    found = emergence(curve_of(*([share] * 8 for share in shares)))
    assert found == Emergence(layer, (layer + 1) / 3, layer, layer)  # prompts that agree leave no doubt


def test_nothing_emerges_where_nothing_is_right():
    assert emergence(curve_of([5, 5], [0, 0])) is None


def test_an_interval_by_hand():
    """Four of eight prompts are right from block 0 on, the others only behind block 2.

    A draw holds four or more of the first in 64 of 100 cases (block 0 has half), else fewer (block 2). So the 2.5 %
    quantile is block 0, the 97.5 % quantile block 2.
    """
    early, nothing = [10] * 4 + [0] * 4, [0] * 8
    found = emergence(curve_of(nothing, early, early, [10] * 8))
    assert found == Emergence(0, 1 / 3, 0, 2)
    late = emergence(curve_of(nothing, [9] * 4 + [0] * 4, early, [10] * 8))
    assert late == Emergence(1, 2 / 3, 0, 2)


@pytest.mark.parametrize("prompts", [1, 7])
def test_few_prompts_have_no_interval(prompts):
    assert emergence(curve_of([0] * prompts, [5] * prompts)) == Emergence(0, 1.0, None, None)


def test_draws_without_anything_right_say_nothing():
    """One of eight prompts is ever right, in the last block: 3 draws in 10 miss it, and do not count as emergence at
    the embedding."""
    found = emergence(curve_of([0] * 8, [0] * 8, [7] + [0] * 7))
    assert found == Emergence(1, 1.0, 1, 1)


ROWS = st.lists(st.lists(st.integers(0, 10), min_size=8, max_size=8), min_size=2, max_size=6)


@settings(max_examples=20, deadline=None)
@given(ROWS, st.sampled_from([0.25, 2.0, 64.0]))
def test_scale_is_nothing(rows, factor):
    plain = emergence(curve_of(*rows))
    assert emergence(curve_of(*([value * factor for value in row] for row in rows))) == plain
    if plain is not None:
        assert plain.low <= plain.high
        # a copy of the last layer changes neither the layer nor its interval
        deeper = emergence(curve_of(*rows, rows[-1]))
        assert (deeper.layer, deeper.low, deeper.high) == (plain.layer, plain.low, plain.high)


def test_first_half_of_many_curves():
    curves = np.array([[0.0, 0.2, 0.4], [0.0, 0.1, 0.4], [0.3, 0.0, 0.6]])
    assert first_half(curves).tolist() == [1, 2, 0]
