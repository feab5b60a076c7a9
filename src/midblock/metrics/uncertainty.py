"""Intervals over prompts: bootstrap for means, delete-group jackknife where a decomposition is needed.

Prompts are the unit: tokens of one prompt are not independent. A bootstrap draws prompts twice, which breaks
similarity and rank estimates (a prompt is perfectly similar to its own copy), so those use the jackknife, which only
leaves prompts out: of G groups SE² = (G−1)/G · Σ(θ_g − θ̄)², and the interval is θ ± t_{G−1}·SE. Cost: one product of
1,000 × N for all means; G evaluations more of what is jackknifed. Source for unequal groups: Busing et al. 1999.
Described in docs/metrics.md, "Uncertainty".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import stdtrit
from torch import Tensor

from midblock.base import LEVEL, Estimate, generator
from midblock.base.bootstrap import resample

GROUPS = 20
SPLITS = 5


def bootstrap_means(values: Float[Tensor, "N C"], seed: int) -> list[Estimate]:
    """Mean of each column with the percentile interval of 1,000 bootstrap samples of the rows.

    The same samples serve all columns. NaN marks a prompt without a value in that column and is counted out.
    """
    known = torch.isfinite(values)
    N = len(values)
    weights = torch.from_numpy(resample(N, seed)).double()
    filled = values.double().nan_to_num(0.0)
    means = (weights @ filled) / (weights @ known.double())
    count = known.sum(0)
    # Summed row by row: down the columns, a column's rounding would depend on its neighbours.
    centre = filled.T.contiguous().sum(1) / count
    tail = (1 - LEVEL) / 2
    low, high = torch.nanquantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    blank = torch.full_like(low, torch.nan)
    low, high = torch.where(count > 1, low, blank), torch.where(count > 1, high, blank)
    columns = zip(centre.tolist(), low.tolist(), high.tolist(), count.tolist(), strict=True)
    return [Estimate(*column) for column in columns]


@dataclass(frozen=True)
class Folds:
    """The whole sample and the samples with one group of prompts left out.

    Attributes:
        whole: indices of everyone, 1×N.
        kept: the folds, gathered into at most two batches of equal size (groups differ in size by one at most).
    """

    whole: Int[Tensor, "1 N"]
    kept: tuple[Int[Tensor, "_ _"], ...]

    @classmethod
    def of(cls, N: int, seed: int, groups: int = GROUPS) -> Folds:
        """Part N prompts at random into groups (fewer when prompts are few)."""
        order = generator(seed, "jackknife", N).permutation(N)
        parts = np.array_split(order, min(groups, N))
        folds = [torch.from_numpy(np.sort(np.setdiff1d(order, part))) for part in parts]
        sizes = sorted({len(fold) for fold in folds})
        kept = tuple(torch.stack([fold for fold in folds if len(fold) == size]) for size in sizes)
        return cls(torch.arange(N)[None], kept)


def jackknife(compute: Callable[[Tensor], dict[str, Tensor]], folds: Folds) -> dict[str, Estimate]:
    """Evaluate metrics on the whole sample and on every fold; intervals from the spread over folds.

    Of G equal groups SE² = (G−1)/G · Σ(θ_g − θ̄)², and the interval is value ± t_{G−1}·SE. Groups that differ in size
    are weighted (Busing et al. 1999), or a metric that grows with the number of prompts would seem uncertain.

    Args:
        compute: from G×n index sets to {metric: G values}.
    """
    whole = compute(folds.whole)
    parts = [compute(kept) for kept in folds.kept]
    n = folds.whole.shape[1]
    # n over the number of prompts that a fold leaves out
    share = torch.cat([torch.full((len(kept),), n / (n - kept.shape[1]), dtype=torch.float64) for kept in folds.kept])
    estimates = {}
    for name, value in whole.items():
        G = len(share)
        half = torch.nan
        if G > 1:
            pull = (share - 1) * (value - torch.cat([part[name] for part in parts]))
            error = ((pull - (pull / share).sum()).square() / (share - 1)).mean().sqrt()
            half = float(stdtrit(G - 1, (1 + LEVEL) / 2) * error)
        centre = float(value)
        estimates[name] = Estimate(centre, centre - half, centre + half, n)
    return estimates


def halves(N: int, seed: int) -> list[tuple[Int[Tensor, "1 n"], Int[Tensor, "1 n"]]]:
    """Random splits of N prompts into two halves, for the noise that choosing other prompts would make."""
    splits = []
    for split in range(SPLITS):
        order = torch.from_numpy(generator(seed, "split", N, split).permutation(N))
        splits.append((order[: N // 2][None], order[N // 2 : N // 2 * 2][None]))
    return splits


def permutations(N: int, seed: int, count: int = 200) -> Int[Tensor, "P N"]:
    """Random orders of N prompts for a permutation null."""
    stream = generator(seed, "permutation", N)
    return torch.from_numpy(np.stack([stream.permutation(N) for _ in range(count)]))
