"""A mix: one model as a swap puts it together, and what was measured of it, prompt by prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from midblock.base import Estimate
from midblock.base.clusters import Clusters
from midblock.evaluation import TokenMean, difference
from midblock.evaluation.exact_match import paired_interval
from midblock.interventions.answer_rows import share_right, token_means
from midblock.interventions.swap.cells import Cell
from midblock.trace import RowStore


@dataclass(frozen=True)
class Mix:
    """One model as a swap puts it together.

    Attributes:
        body: whose blocks the model keeps where nothing is swapped: 0 the base, 1 the tuned model.
        cell: the other model's blocks in it; None for none, which is a reference.
        head: whose final norm and head read it: 0 the base's, 1 the tuned model's.
    """

    body: int
    cell: Cell | None
    head: int

    def key(self, kind: str) -> str:
        """Where the rows of a kind ("tokens" or "answer") stand in the store."""
        return f"{kind}|{self.body}|{self.cell or ''}|{self.head}"


@dataclass(frozen=True)
class MixScores:
    """What was measured of one mix, prompt by prompt; `exact_match` is None where nothing was generated."""

    accuracy: TokenMean
    nll: TokenMean
    exact_match: TokenMean | None

    @classmethod
    def of(cls, store: RowStore, mix: Mix, seed: int, clusters: Clusters | None = None) -> MixScores:
        """Finish the rows of one mix, `clusters` as of `token_means`."""
        accuracy, nll = token_means(store, mix.key("tokens"), seed, clusters)
        return cls(accuracy, nll, share_right(store, mix.key("answer"), seed, clusters))

    def levels(self) -> dict[str, Estimate]:
        """The mix's own numbers."""
        nll = self.nll.interval
        found = {"accuracy": self.accuracy.interval, "nll": nll, "perplexity": nll.exponential()}
        if self.exact_match is not None:
            found["exact_match"] = self.exact_match.interval
        return found

    def changes(self, before: MixScores, seed: int) -> dict[str, Estimate]:
        """What the swap changed, on the same prompts; exact match only where both have it."""
        nll = difference(before.nll, self.nll, seed=seed)
        found = {"accuracy": difference(before.accuracy, self.accuracy, seed=seed), "nll": nll}
        if torch.equal(before.nll.sums, self.nll.sums):  # to the bit: both predict the same, whatever the prompt
            found["accuracy"] = nll
        if self.exact_match is not None and before.exact_match is not None:
            found["exact_match"] = _match_change(before.exact_match, self.exact_match, seed)
        return found


def _match_change(before: TokenMean, after: TokenMean, seed: int) -> Estimate:
    if before.clusters is not None:
        return difference(before, after, seed=seed)
    low, high = paired_interval(before.sums > 0, after.sums > 0)
    return Estimate(after.value - before.value, low, high, after.n)
