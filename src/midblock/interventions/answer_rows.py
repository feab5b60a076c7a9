"""Rows of predicted answers, as probe and swap keep them: one for each example, finished to means with intervals."""

from __future__ import annotations

import torch

from midblock.base.clusters import Clusters
from midblock.evaluation import MatchResult, TokenMean
from midblock.trace import RowStore


def token_means(store: RowStore, key: str, seed: int, clusters: Clusters | None = None) -> tuple[TokenMean, TokenMean]:
    """Accuracy and NLL over the tokens of rows that `Targets.sums` made.

    Args:
        clusters: which examples are variants of one question, by their places.
    """
    rows = store.rows[key].finish()
    counts = rows.values[:, 2].long()
    nll, accuracy = (
        TokenMean.of(rows.index, rows.values[:, column], counts, seed, share=column == 1, clusters=clusters)
        for column in (0, 1)
    )
    return accuracy, nll


def keep_matches(store: RowStore, key: str, found: MatchResult) -> None:
    """Put greedy answers into the store: 1 where an answer is right, else 0."""
    store.update(key, torch.arange(found.n), found.correct.double()[:, None])


def share_right(store: RowStore, key: str, seed: int, clusters: Clusters | None = None) -> TokenMean | None:
    """The share of right greedy answers; None where none were written."""
    if key not in store.rows:
        return None
    rows = store.rows[key].finish()
    ones = torch.ones_like(rows.index)
    return TokenMean.of(rows.index, rows.values[:, 0], ones, seed, share=True, clusters=clusters)
