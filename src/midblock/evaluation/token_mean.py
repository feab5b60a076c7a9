"""TokenMean: a mean over tokens whose interval resamples prompts, because a prompt's tokens go together.

With s_i the sum and c_i the number of prompt i's tokens it is Σ s_i / Σ c_i; each bootstrap sample draws prompts and
takes the same ratio (`Ratios`; `share_intervals` where a token's value is yes or no). Cost: five products of 1,000 × N.
Described in docs/causes/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Real
from torch import Tensor

from midblock.base import Estimate, MidblockError
from midblock.base.bootstrap import resample
from midblock.base.clusters import Clusters
from midblock.base.ratios import Ratios
from midblock.base.shares import share_intervals

NO_INTERVAL = (float("nan"), float("nan"))


@dataclass(frozen=True, eq=False)
class TokenMean:
    """A mean over the tokens of N prompts: sum over count, not a mean of the prompts' means.

    Attributes:
        interval: the mean in the unit of the tokens' values (nats per token for likelihoods), its 95 % interval from
            bootstrap samples of the prompts (NaN where they are too few), and N.
        index: the prompts' identities, ascending; those without a token that counts are left out.
        sums: each prompt's sum over its tokens.
        counts: each prompt's number of tokens.
        share: each token's value is 1 (yes) or 0 (no).
        clusters: which of the prompts are variants of one question; None where none are.
    """

    interval: Estimate
    index: Int[Tensor, "N"]
    sums: Float[Tensor, "N"]
    counts: Real[Tensor, "N"]
    share: bool = False
    clusters: Clusters | None = None

    @classmethod
    def of(
        cls,
        index: Int[Tensor, "M"],
        sums: Float64[Tensor, "M"],
        counts: Real[Tensor, "M"],
        seed: int = 0,
        *,
        share: bool = False,
        clusters: Clusters | None = None,
    ) -> TokenMean:
        """Finish M prompts' sums, given in any order.

        Args:
            share: whether each token's value is 1 or 0.
            clusters: which prompts are variants of one question, by their identities.

        Raises:
            MidblockError: no token counts.
        """
        order = torch.argsort(index, stable=True)
        order = order[counts[order] > 0]
        index, sums, counts = index[order], sums[order], counts[order]
        if not len(index):
            raise MidblockError("no token counts", hint="the region is empty in every prompt")
        mean = Estimate(float(sums.sum() / counts.sum()), *NO_INTERVAL, len(index))
        found = cls(mean, index, sums, counts, share, clusters.take(index.numpy()) if clusters else None)
        ratios = found._ratios(sums.double().numpy()[:, None], counts.double().numpy()[:, None], seed)
        low, high = share_intervals(ratios) if share else ratios.intervals()
        return replace(found, interval=Estimate(mean.value, float(low[0]), float(high[0]), mean.n))

    @property
    def value(self) -> float:
        """The mean."""
        return self.interval.value

    @property
    def low(self) -> float:
        """Lower end of its interval."""
        return self.interval.low

    @property
    def high(self) -> float:
        """Upper end of its interval."""
        return self.interval.high

    @property
    def n(self) -> int:
        """N, the number of prompts."""
        return self.interval.n

    @property
    def units(self) -> int:
        """What is resampled: prompts, or the questions that they are variants of."""
        return self.n if self.clusters is None else self.clusters.count

    def draws(self, seed: int = 0) -> Float64[np.ndarray, "R"]:
        """The mean in each bootstrap sample; means over the same prompts with one seed are drawn alike."""
        drawn = self._ratios(self.sums.double().numpy()[:, None], self.counts.double().numpy()[:, None], seed)
        times = resample(len(drawn.counts), seed)
        return drawn.value[0] + (times @ drawn.residuals)[:, 0] / (times @ drawn.counts)[:, 0]

    def _ratios(self, sums: Float64[np.ndarray, "N C"], counts: Float64[np.ndarray, "N K"], seed: int) -> Ratios:
        """Ratios of sums over these prompts, with what is resampled as rows."""
        if self.clusters is not None:
            sums, counts = self.clusters.sums(sums), self.clusters.sums(counts)
        return Ratios.of(sums, counts, seed)


def difference(a: TokenMean, b: TokenMean, *, seed: int = 0) -> Estimate:
    """b − a with the interval of a paired bootstrap: both are drawn with the same prompts.

    Raises:
        MidblockError: they are not about the same prompts.
    """
    return differences([(a, b)], seed=seed)[0]


def differences(
    pairs: Sequence[tuple[TokenMean, TokenMean]], *, seed: int = 0, together: bool = False
) -> list[Estimate]:
    """b − a of each pair (a, b), all of them about the same prompts.

    Args:
        together: intervals that all hold at once in 95 of 100 cases, for telling the largest of them.

    Raises:
        MidblockError: they are not about the same prompts.
    """
    first = pairs[0][0]
    if any(not torch.equal(first.index, each.index) for pair in pairs for each in pair):
        raise MidblockError("these means are not about the same prompts", hint="use one dataset, seed and region")
    columns = [_paired(a, b) for a, b in pairs]
    sums, counts = (np.stack([each[part] for each in columns], axis=1) for part in (0, 1))
    ratios = first._ratios(sums, counts, seed)
    if first.share:
        ratios = replace(ratios, error=np.hypot(ratios.error, _unseen(ratios.counts.sum(0))))
    low, high = ratios.together() if together else ratios.intervals()
    ends = zip(low.tolist(), high.tolist(), strict=True)
    found = [Estimate(b.value - a.value, *each, a.n) for (a, b), each in zip(pairs, ends, strict=True)]
    return [each.within((-1.0, 1.0)) for each in found] if first.share else found


def part_of_way(start: TokenMean, there: TokenMean, end: TokenMean, *, seed: int = 0) -> tuple[float, float]:
    """95 % interval of (start − there)/(start − end): how far something moved a mean from one model's to another's.

    All three are drawn with the same prompts.
    """
    moved, whole = (sums / counts.sum() for sums, counts in (_paired(there, start), _paired(end, start)))
    ratios = start._ratios(moved[:, None], whole[:, None], seed)
    if start.share:
        ratios = replace(ratios, error=np.hypot(ratios.error, _unseen(float(start.counts.sum())) / abs(whole.sum())))
    low, high = ratios.intervals()
    return float(low[0]), float(high[0])


def _unseen(tokens: float | Float64[np.ndarray, "C"]) -> float | Float64[np.ndarray, "C"]:
    """How far off a difference of shares may be where none was seen to change: by two more tokens, one that is lost
    and one that is won (Bonett and Price 2012)."""
    return 2**0.5 / tokens


def _paired(a: TokenMean, b: TokenMean) -> tuple[Float64[np.ndarray, "N"], Float64[np.ndarray, "N"]]:
    """Sums and counts whose ratio is b − a; where the two count other tokens, each prompt's pull on it."""
    sums = [each.sums.double().numpy() for each in (a, b)]
    counts = [each.counts.double().numpy() for each in (a, b)]
    if np.array_equal(counts[0], counts[1]):
        return sums[1] - sums[0], counts[0]
    pulls = [(s - each.value * c) / c.mean() for each, s, c in zip((a, b), sums, counts, strict=True)]
    return b.value - a.value + pulls[1] - pulls[0], np.ones_like(counts[0])
