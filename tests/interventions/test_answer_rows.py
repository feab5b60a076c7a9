"""Rows of answers in closed form: sums over counts, and shares with an exact interval."""

import math

import pytest
import torch

from midblock.evaluation import MatchResult, exact_interval
from midblock.interventions.answer_rows import keep_matches, share_right, token_means
from midblock.trace import RowStore


def test_means_over_tokens_are_sums_over_counts():
    store = RowStore()
    # NLL, right ones and tokens of prompts 1 and 0; the one without a token does not count
    store.update("exit", torch.tensor([1, 0]), torch.tensor([[3.0, 1.0, 2.0], [6.0, 3.0, 4.0]]).double())
    store.update("exit", torch.tensor([2]), torch.tensor([[0.0, 0.0, 0.0]]).double())
    accuracy, nll = token_means(store, "exit", seed=0)
    assert (accuracy.value, nll.value) == (4 / 6, 9 / 6)
    assert accuracy.index.tolist() == nll.index.tolist() == [0, 1]


def test_a_share_of_right_answers_has_an_exact_interval():
    store = RowStore()
    found = MatchResult("exact", ("7", "8", "9"), ("7", "8", None), ("7", "7", "9"))
    keep_matches(store, "answer", found)
    share = share_right(store, "answer", seed=0)
    assert share.value == found.accuracy == 1 / 3
    assert (share.low, share.high, share.n) == pytest.approx((*exact_interval(1, 3), 3))
    assert not math.isnan(share.low)


def test_where_nothing_was_written_there_is_no_share():
    assert share_right(RowStore(), "answer", seed=0) is None
