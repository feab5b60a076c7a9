"""TokenMean: a mean over tokens whose interval resamples prompts, because a prompt's tokens go together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from midblock.base import Estimate, MidblockError, quantiles, resample


@dataclass(frozen=True, eq=False)
class TokenMean:
    """A mean over the tokens of N prompts: sum over count, not a mean of the prompts' means.

    Attributes:
        value: in the unit of the tokens' values (nats per token for likelihoods).
        low, high: its 95 % interval, from bootstrap samples of the prompts; NaN for a single one.
        index: the prompts' identities, ascending; those without a token that counts are left out.
        sums: each prompt's sum over its tokens.
        counts: each prompt's number of tokens.
    """

    value: float
    low: float
    high: float
    index: Int[Tensor, "N"]
    sums: Float[Tensor, "N"]
    counts: Int[Tensor, "N"]

    @classmethod
    def of(
        cls, index: Int[Tensor, "M"], sums: Float64[Tensor, "M"], counts: Int[Tensor, "M"], seed: int = 0
    ) -> TokenMean:
        """Finish M prompts' sums, given in any order.

        Raises:
            MidblockError: no token counts.
        """
        order = torch.argsort(index, stable=True)
        order = order[counts[order] > 0]
        index, sums, counts = index[order], sums[order], counts[order]
        if not len(index):
            raise MidblockError("no token counts", hint="the region is empty in every prompt")
        low, high = _quantiles(_resampled(sums, counts, seed), len(index))
        return cls(float(sums.sum() / counts.sum()), low, high, index, sums, counts)

    @property
    def n(self) -> int:
        """N, the number of prompts."""
        return len(self.index)

    @property
    def interval(self) -> Estimate:
        return Estimate(self.value, self.low, self.high, self.n)

    def draws(self, seed: int = 0) -> Float64[np.ndarray, "R"]:
        """The mean in each bootstrap sample; means over the same prompts with one seed are drawn alike."""
        return _resampled(self.sums, self.counts, seed)


def difference(a: TokenMean, b: TokenMean, *, seed: int = 0) -> Estimate:
    """b − a with the interval of a paired bootstrap: both are drawn with the same prompts.

    Raises:
        MidblockError: they are not about the same prompts.
    """
    if not torch.equal(a.index, b.index):
        raise MidblockError("these means are not about the same prompts", hint="use one dataset, seed and region")
    low, high = _quantiles(b.draws(seed) - a.draws(seed), a.n)
    return Estimate(b.value - a.value, low, high, a.n)


def _resampled(sums: Float[Tensor, "N"], counts: Int[Tensor, "N"], seed: int) -> Float64[np.ndarray, "R"]:
    drawn = resample(len(sums), seed)
    return (drawn @ sums.double().numpy()) / (drawn @ counts.double().numpy())


def _quantiles(draws: Float64[np.ndarray, "R"], N: int) -> tuple[float, float]:
    return quantiles(draws) if N > 1 else (math.nan, math.nan)
