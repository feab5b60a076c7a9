"""Paired: do two models differ on the same items? The interval, the test, and what could have been seen.

A unit is an item, or all variants of one question together; its pull is how far it moves the difference, d_u, so that
the difference is Σ d_u / Σ w. The test turns signs: were neither model better, each unit's pull might as well be the
other way round. Of shares it is exact, by adding up all 2^m ways (McNemar's where units are items); of means by all
ways where they are few, else by drawing them. Cost: m additions of a vector, or 10,000 × m.

The smallest difference that would be seen in 80 of 100 such runs is (z₁₋α/₂ + z₀.₈)·SD(d)·√m/Σw, and of shares never
below what the fewest units that can be significant amount to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Float64

from midblock.base import Estimate, generator
from midblock.base.clusters import Clusters
from midblock.evaluation.exact_match import paired_interval, sign_test
from midblock.evaluation.token_mean import TokenMean, differences

ALPHA, POWER = 0.05, 0.8
DRAWN = 10_000  # ways in which signs are turned, where all of them are too many
LISTED = 13  # units up to which all ways are listed: 8,192
NEAR = 1e-9  # of the observed statistic: sums that differ by rounding alone are the same


@dataclass(frozen=True, eq=False)
class Marks:
    """What a model made of N items of a task.

    Attributes:
        values: its scores.
        weights: what each counts.
        share: values are 0 or 1, weights 1.
        clusters: which items are variants of one question; None where none are.
    """

    values: Float64[np.ndarray, "N"]
    weights: Float64[np.ndarray, "N"]
    share: bool
    clusters: Clusters | None = None

    def mean(self, seed: int = 0) -> TokenMean:
        """The score, with its interval."""
        index = torch.arange(len(self.values))
        sums, counts = torch.from_numpy(self.values * self.weights), torch.from_numpy(self.weights)
        return TokenMean.of(index, sums, counts, seed, share=self.share, clusters=self.clusters)


@dataclass(frozen=True)
class Paired:
    """How far the second model is from the first.

    Attributes:
        difference: second − first, with its 95 % interval.
        p: two-sided, of the test that turns signs.
        spread: SD of the units' pulls times √m over Σw: the difference's standard error.
        fewest: of shares 1/Σw, what one unit at least amounts to; NaN of means.
        units: what is resampled: items, or questions.
    """

    difference: Estimate
    p: float
    spread: float
    fewest: float
    units: int

    def detectable(self, alpha: float = ALPHA) -> float:
        """The smallest difference that is found at this level in 80 of 100 such runs; NaN where nothing tells it."""
        normal = NormalDist()
        reach = (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(POWER)) * self.spread
        floor = self.fewest * math.ceil(1 - math.log2(alpha))  # all m signs alike: p = 2·2^−m
        found = max(reach, floor) if math.isfinite(floor) else reach
        return found if found > 0 else math.nan


def paired(first: Marks, second: Marks, seed: int = 0) -> Paired:
    """Compare two models on the same items.

    Of shares the interval is Newcombe's where items stand alone; else it is that of a paired bootstrap over units.
    """
    pulls, total = _pulls(first, second)
    if first.share and first.clusters is None:
        low, high = paired_interval(*(torch.from_numpy(each.values == 1.0) for each in (first, second)))
        difference = Estimate(float(pulls.sum() / total), low, high, len(pulls))
    else:
        difference = differences([(first.mean(seed), second.mean(seed))], seed=seed)[0]
    m = len(pulls)
    spread = float(pulls.std(ddof=1) * math.sqrt(m) / total) if m > 1 else math.nan
    p = share_test(np.rint(pulls).astype(int)) if first.share else mean_test(pulls, seed)
    return Paired(difference, p, spread, 1 / total if first.share else math.nan, m)


def share_test(pulls: np.ndarray) -> float:
    """Exact test of whole pulls, turning signs: how likely |Σ ±d| is at least what it was.

    Args:
        pulls: of each unit, how many more items the second model has right; zeros tell nothing.
    """
    sizes = np.abs(pulls[pulls != 0])
    if not len(sizes):
        return 1.0
    if len(set(sizes.tolist())) == 1:
        return sign_test(int((pulls > 0).sum()), len(sizes))
    most = int(sizes.sum())
    ways = np.zeros(2 * most + 1)  # likelihood of each sum, −most … most
    ways[most] = 1.0
    for size in sizes.tolist():
        ways = 0.5 * (np.roll(ways, size) + np.roll(ways, -size))
    seen = abs(int(pulls.sum()))
    return min(1.0, float(ways[: most - seen + 1].sum() + ways[most + seen :].sum()))


def mean_test(pulls: Float64[np.ndarray, "m"], seed: int = 0) -> float:
    """Test of pulls of any size, turning signs: all ways where units are few, else so many drawn."""
    told = pulls[pulls != 0]
    if not len(told):
        return 1.0
    seen = abs(told.sum()) * (1 - NEAR)
    if len(told) <= LISTED:
        bits = (np.arange(2 ** len(told))[:, None] >> np.arange(len(told))) & 1
        return float((np.abs((1 - 2 * bits) @ told) >= seen).mean())
    signs = 1.0 - 2.0 * generator(seed, "signs", len(told)).integers(0, 2, (DRAWN - 1, len(told)), dtype=np.int8)
    return float((1 + (np.abs(signs @ told) >= seen).sum()) / DRAWN)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: below α where a difference holds with all of them considered."""
    found, largest = [1.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda place: p[place])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[place]))
        found[place] = largest
    return found


def _pulls(first: Marks, second: Marks) -> tuple[Float64[np.ndarray, "m"], float]:
    """Each unit's pull on the difference, and what they are divided by.

    Where two models count an item differently (other tokens), its pull is that on each model's own mean.
    """
    if np.array_equal(first.weights, second.weights):
        pulls, total = (second.values - first.values) * first.weights, float(first.weights.sum())
    else:
        parts = [_pull_on_mean(each) for each in (first, second)]
        pulls, total = parts[1] - parts[0], float(len(first.values))
    if first.clusters is not None:
        pulls = first.clusters.sums(pulls[:, None])[:, 0]
    return pulls, total


def _pull_on_mean(marks: Marks) -> Float64[np.ndarray, "N"]:
    mean = float((marks.values * marks.weights).sum() / marks.weights.sum())
    return mean + (marks.values - mean) * marks.weights / marks.weights.mean()
