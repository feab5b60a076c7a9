"""Rows of predicted answers, as probe and swap keep them: one for each example, finished to means with intervals."""

from __future__ import annotations

import torch

from midblock.base import Estimate
from midblock.evaluation import MatchResult, TokenMean, wilson
from midblock.trace import RowStore


def token_means(store: RowStore, key: str, seed: int) -> tuple[TokenMean, TokenMean]:
    """Accuracy and NLL over the tokens of rows that `Targets.sums` made."""
    rows = store.rows[key].finish()
    counts = rows.values[:, 2].long()
    nll, accuracy = (TokenMean.of(rows.index, rows.values[:, column], counts, seed) for column in (0, 1))
    return accuracy, nll


def keep_matches(store: RowStore, key: str, found: MatchResult) -> None:
    """Put greedy answers into the store: 1 where an answer is right, else 0."""
    store.update(key, torch.arange(found.n), found.correct.double()[:, None])


def share_right(store: RowStore, key: str, seed: int) -> TokenMean | None:
    """The share of right greedy answers; None where none were written."""
    if key not in store.rows:
        return None
    rows = store.rows[key].finish()
    return TokenMean.of(rows.index, rows.values[:, 0], torch.ones_like(rows.index), seed)


def with_wilson(share: TokenMean) -> Estimate:
    """A share of right answers with Wilson's interval."""
    return Estimate(share.value, *wilson(round(float(share.sums.sum())), share.n), share.n)
