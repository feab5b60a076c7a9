"""Intervals over prompts: bootstrap for means, delete-group jackknife where a decomposition is needed.

Prompts are the unit: tokens of one prompt are not independent, and of prompts that are variants of one question the
question is. A bootstrap draws prompts twice, which breaks similarity and rank estimates (a prompt is perfectly similar
to its own copy), so those use the jackknife, which only leaves prompts out. Cost: two products of 1,000 × N for all
means; as many evaluations more as there are groups of what is jackknifed. Described in docs/metrics.md, "Uncertainty".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from midblock.base import Estimate, generator
from midblock.base.clusters import Clusters
from midblock.base.few import enough
from midblock.base.ratios import Ends, Ratios
from midblock.base.shares import share_intervals
from midblock.metrics.scales import Bounds, scale_of

GROUPS = 20
ALONE = 40  # prompts up to which each is a group of its own
SKEW = 2.0  # as of `Ratios.reach`; less than of plain values, which no scale has made even
SPLITS = 5


def bootstrap_means(
    values: Float[Tensor, "N C"], seed: int, *, shares: Sequence[bool] = (), clusters: Clusters | None = None
) -> list[Estimate]:
    """Mean of each column, with the interval of a studentised bootstrap of the rows.

    The same samples serve all columns. NaN marks a prompt without a value in that column and is counted out.

    Args:
        shares: for each column whether its values are shares of yes-or-no values, which have an interval of their own.
        clusters: which prompts are variants of one question, and are drawn together.
    """
    counted = torch.isfinite(values).double().numpy()
    sums, counts = values.double().nan_to_num(0.0).numpy(), counted
    if clusters is not None:
        sums, counts = clusters.sums(sums), clusters.sums(counts)
    ratios = Ratios.of(sums, counts[:, :1] if (counts == counts[:, :1]).all() else counts, seed)
    ends = ratios.intervals() if not any(shares) else _either(ratios, np.array(shares))
    found = (ratios.value.tolist(), ends[0].tolist(), ends[1].tolist(), counted.sum(0).astype(int).tolist())
    return [Estimate(value, low, high, n) for value, low, high, n in zip(*found, strict=True)]


def _either(ratios: Ratios, shares: Bool[np.ndarray, "C"]) -> Ends:
    plain, of_shares = ratios.intervals(), share_intervals(ratios)
    return np.where(shares, of_shares[0], plain[0]), np.where(shares, of_shares[1], plain[1])


@dataclass(frozen=True)
class Folds:
    """The whole sample and the samples with one group of prompts left out.

    Attributes:
        whole: indices of everyone, 1×N.
        kept: the folds, gathered into batches of equal size, by size.
        units: what was parted into groups: N prompts, or the questions that they are variants of.
        seed: decides the groups, and the resampling of what they give.
    """

    whole: Int[Tensor, "1 N"]
    kept: tuple[Int[Tensor, "_ _"], ...]
    units: int
    seed: int

    @classmethod
    def of(cls, N: int, seed: int, groups: int | None = None, clusters: Clusters | None = None) -> Folds:
        """Part N prompts at random into groups: one each where there are few, else 20.

        Args:
            clusters: which prompts are variants of one question, and stay together.
        """
        units = N if clusters is None else clusters.count
        if units == 1:  # nobody is left without it
            return cls(torch.arange(N)[None], (), units, seed)
        groups = groups or (units if units <= ALONE else GROUPS)
        parts = np.array_split(generator(seed, "jackknife", units).permutation(units), min(groups, units))
        member = np.arange(N) if clusters is None else clusters.numbers
        folds = [torch.from_numpy(np.flatnonzero(~np.isin(member, part))) for part in parts]
        sizes = sorted({len(fold) for fold in folds})
        kept = tuple(torch.stack([fold for fold in folds if len(fold) == size]) for size in sizes)
        return cls(torch.arange(N)[None], kept, units, seed)

    def intervals(
        self, values: Float64[np.ndarray, "M"], without: Float64[np.ndarray, "G M"], bounds: Sequence[Bounds]
    ) -> Ends:
        """The intervals of M values, given what they are with each group left out.

        Of G equal groups SE² = (G−1)/G · Σ(θ_g − θ̄)². Groups that differ in size are weighted (Busing et al. 1999), or
        a metric that grows with the number of prompts would seem uncertain. How many SE the interval goes is what a
        bootstrap of the groups' pseudo-values says (`Ratios.reach`), on the scale of the metric's bounds; as far to
        either side, for it is not the pseudo-values' tail alone that decides to which side such metrics err.
        """
        n = self.whole.shape[1]
        size = np.array([[float(n - kept.shape[1])] for kept in self.kept for _ in kept])
        columns = np.concatenate([values[None], without])
        known = np.isfinite(columns).all(0) & enough("jackknife", self.units)
        columns = np.where(known, columns, 0.0)
        scales = [scale_of(column, of) for column, of in zip(columns.T, bounds, strict=True)]
        spread = np.stack([there(column) for (there, _), column in zip(scales, columns.T, strict=True)], axis=1)
        share = n / size
        pull = (share - 1) * (spread[0] - spread[1:])
        error = np.sqrt(np.mean(np.square(pull - (pull / share).sum(0)) / (share - 1), axis=0))
        far = np.maximum(*Ratios.of(size * pull, size, self.seed).reach(SKEW))
        ends = [spread[0] - far * error, spread[0] + far * error]
        low, high = (np.array([back(y[None])[0] for (_, back), y in zip(scales, end, strict=True)]) for end in ends)
        return np.where(known, low, np.nan), np.where(known, high, np.nan)


def jackknife(
    compute: Callable[[Tensor], dict[str, Tensor]], folds: Folds, bounds: Mapping[str, Bounds] = MappingProxyType({})
) -> dict[str, Estimate]:
    """Evaluate metrics on the whole sample and on every fold; intervals from the spread over folds.

    Args:
        compute: from G×n index sets to {metric: G values}.
        bounds: smallest and largest value of each metric, None where open.
    """
    whole = compute(folds.whole)
    n = folds.whole.shape[1]
    if not whole:
        return {}
    if not folds.kept:
        return {name: Estimate(float(value), np.nan, np.nan, n) for name, value in whole.items()}
    parts = [compute(kept) for kept in folds.kept]
    values = np.array([float(value) for value in whole.values()])
    without = torch.stack([torch.cat([part[name] for part in parts]).double() for name in whole], dim=1).numpy()
    low, high = folds.intervals(values, without, [bounds.get(name, (None, None)) for name in whole])
    ends = zip(whole, values.tolist(), low.tolist(), high.tolist(), strict=True)
    return {name: Estimate(value, below, above, n) for name, value, below, above in ends}


def halves(N: int, seed: int, copies: Clusters | None = None) -> list[tuple[Int[Tensor, "1 n"], Int[Tensor, "1 m"]]]:
    """Random splits of N prompts into two halves, for the noise that choosing other prompts would make.

    Args:
        copies: which prompts repeat one another, and go into the same half; of one prompt there are no halves.
    """
    units, splits = N if copies is None else copies.count, []
    for split in range(SPLITS if units > 1 else 0):
        order = generator(seed, "split", units, split).permutation(units)
        both = [order[: units // 2], order[units // 2 : units // 2 * 2]]
        if copies is not None:
            both = [np.flatnonzero(np.isin(copies.numbers, half)) for half in both]
        splits.append((torch.from_numpy(both[0])[None], torch.from_numpy(both[1])[None]))
    return splits


def permutations(N: int, seed: int, count: int = 200, copies: Clusters | None = None) -> Int[Tensor, "P N"]:
    """Random orders of N prompts for a permutation null.

    Args:
        copies: which prompts repeat one another. They move together: all of one prompt to all of another where both
            come as often, else as nearly so as a permutation can.
    """
    units = N if copies is None else copies.count
    stream = generator(seed, "permutation", units)
    if copies is None:
        return torch.from_numpy(np.stack([stream.permutation(N) for _ in range(count)]))
    orders = np.empty((count, N), dtype=np.int64)
    for order in orders:
        given, taken = (np.argsort(stream.permutation(units)[copies.numbers], kind="stable") for _ in range(2))
        order[given] = taken
    return torch.from_numpy(orders)
