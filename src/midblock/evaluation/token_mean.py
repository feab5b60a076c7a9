"""TokenMean: a mean over tokens whose interval resamples prompts, because a prompt's tokens go together.

With s_i the sum and c_i the number of prompt i's tokens it is Σ s_i / Σ c_i; each bootstrap sample draws prompts and
takes the same ratio. Cost: two products of 1,000 × N. Described in docs/causes/README.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from midblock.base import Estimate, MidblockError
from midblock.base.bootstrap import estimate_of, resample


@dataclass(frozen=True, eq=False)
class TokenMean:
    """A mean over the tokens of N prompts: sum over count, not a mean of the prompts' means.

    Attributes:
        interval: the mean in the unit of the tokens' values (nats per token for likelihoods), its 95 % interval from
            bootstrap samples of the prompts (NaN for a single one), and N.
        index: the prompts' identities, ascending; those without a token that counts are left out.
        sums: each prompt's sum over its tokens.
        counts: each prompt's number of tokens.
    """

    interval: Estimate
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
        mean = float(sums.sum() / counts.sum())
        return cls(estimate_of(mean, _resampled(sums, counts, seed), len(index)), index, sums, counts)

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
    return estimate_of(b.value - a.value, b.draws(seed) - a.draws(seed), a.n)


def _resampled(sums: Float[Tensor, "N"], counts: Int[Tensor, "N"], seed: int) -> Float64[np.ndarray, "R"]:
    drawn = resample(len(sums), seed)
    return (drawn @ sums.double().numpy()) / (drawn @ counts.double().numpy())
