"""Ratios: the studentised bootstrap interval of means and of ratios of sums, and of many of them at once.

Of r = Σs/Σc over N samples (prompts), with residuals u = s − r·c and SE² = N/(N−1) · Σu²/(Σc)², the interval is
r − t₂·SE … r − t₁·SE, t₁ and t₂ the 2.5 % quantiles of (r* − r)/SE* over the draws, never nearer than Student's. The
side of the longer tail is widened by 1 + 6|skewness|/N, for a few samples seldom hold their own tail. Source: Efron and
Tibshirani 1993, section 12.5; the widening is ours. Coverage by tail: docs/results/coverage.md. Cost: at most five
products of 1,000 × N a column, two where every count is 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import stdtrit

from midblock.base.bootstrap import RESAMPLES, resample
from midblock.base.estimate import LEVEL
from midblock.base.few import enough

ROWS = 125  # draws that are multiplied at once: their counts are floats only for so long
SKEW = 6.0
LEAST_ERROR = 0.25  # of the standard error: a draw of nothing but like samples would be infinitely many of its own away
ROUNDING = 1e-12  # of the largest value: residuals below are rounding


Column = Float64[np.ndarray, "C"]
Ends = tuple[Float64[np.ndarray, "C"], Float64[np.ndarray, "C"]]


@dataclass(frozen=True, eq=False)
class Ratios:
    """C ratios of sums over the same N samples, r = Σs/Σc: means where every count is 1.

    Attributes:
        value: r of each column; NaN where nothing counts.
        error: its standard error.
        known: samples that count (c ≠ 0) in each column.
        residuals: s − r·c.
        counts: c, a single column where all have the same.
        seed: decides the resampling.
    """

    value: Column
    error: Column
    known: Int64[np.ndarray, "C"]
    residuals: Float64[np.ndarray, "N C"]
    counts: Float64[np.ndarray, "N K"]
    seed: int

    @classmethod
    def of(cls, sums: Float64[np.ndarray, "N C"], counts: Float64[np.ndarray, "N K"], seed: int) -> Ratios:
        """Columns of sums over counts; a sample that counts nothing must have the sum 0."""
        known = np.broadcast_to((counts != 0).sum(0), sums.shape[1:])
        with np.errstate(invalid="ignore", divide="ignore"):
            # Summed row by row: down the columns, a column's rounding would depend on its neighbours.
            total = np.ascontiguousarray(counts.T).sum(1)
            value = np.ascontiguousarray(sums.T).sum(1) / total
            residuals = sums - value * counts
            residuals[np.abs(residuals) <= ROUNDING * np.abs(sums).max(0, initial=0.0)] = 0.0
            error = np.sqrt(known / (known - 1) * np.square(residuals).sum(0)) / np.abs(total)
        return cls(value, error, known, residuals, counts, seed)

    def intervals(self) -> Ends:
        """Lower and upper ends, NaN where too few samples count."""
        return self._ends(*self.reach())

    def together(self) -> Ends:
        """The same, wide enough that all columns hold at once in 95 of 100 cases: for what is the best of several.

        The largest |r* − r|/SE* over the columns is what the draws are asked for (Westfall and Young 1993).
        """
        most = np.nanquantile(np.abs(self.studentized()).max(1, initial=0.0), LEVEL)
        far = np.maximum(most, self.student())
        return self._ends(far, far)

    def reach(self, skew: float = SKEW) -> Ends:
        """How many standard errors the interval goes down and up.

        Args:
            skew: how much farther the side of the longer tail goes, as of `widened`.
        """
        below, above = np.nanquantile(self.studentized(), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        return self.widened(np.maximum(above, self.student()), np.maximum(-below, self.student()), skew)

    def widened(self, down: Column, up: Column, skew: float = SKEW) -> Ends:
        """The side of the longer tail goes 1 + `skew`·|skewness|/N times as far."""
        leans = self.skewness()
        wider = 1 + skew * np.abs(leans) / np.maximum(self.known, 1)
        return down * np.where(leans < 0, wider, 1), up * np.where(leans > 0, wider, 1)

    def student(self) -> Column:
        """Student's t of the level."""
        return np.asarray(stdtrit(np.maximum(self.known - 1, 1), (1 + LEVEL) / 2))

    def _ends(self, down: Column, up: Column) -> Ends:
        told = np.array([enough("mean", int(n)) for n in self.known])
        ends = self.value - self.error * down, self.value + self.error * up
        return np.where(told, ends[0], np.nan), np.where(told, ends[1], np.nan)

    def skewness(self) -> Column:
        """Of the residuals; 0 where there are none."""
        u = self.residuals / np.maximum(np.abs(self.residuals).max(0, initial=0.0), np.finfo(float).tiny)
        square, cube = (np.power(u, power).sum(0) / np.maximum(self.known, 1) for power in (2, 3))
        return np.divide(cube, square**1.5, out=np.zeros_like(cube), where=square > 0)

    def studentized(self) -> Float64[np.ndarray, "R C"]:
        """(r* − r)/SE* of every draw; NaN where a draw counts nothing."""
        drawn = resample(len(self.residuals), self.seed)
        blocks = [self._studentized(drawn[row : row + ROWS].astype(float)) for row in range(0, RESAMPLES, ROWS)]
        # of a column without a value nothing is asked
        return np.where(np.isnan(self.value), 0.0, np.concatenate(blocks))

    def _studentized(self, drawn: Float64[np.ndarray, "r N"]) -> Float64[np.ndarray, "r C"]:
        u, c = self.residuals, self.counts
        moved, squares = drawn @ u, drawn @ np.square(u)
        if (c == 1).all():
            total, mixed, sizes = float(len(u)), moved, float(len(u))
        else:
            total, mixed, sizes = drawn @ c, drawn @ (u * c), drawn @ np.square(c)
        with np.errstate(invalid="ignore", divide="ignore"):
            away = moved / total
            spread = np.maximum(squares - 2 * away * mixed + away**2 * sizes, 0)
            error = np.sqrt(self.known / (self.known - 1) * spread) / np.abs(total)
            return np.where(self.error > 0, away / np.maximum(error, LEAST_ERROR * self.error), 0.0 * away)
