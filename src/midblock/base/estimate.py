"""Estimate: a value with its 95 % interval, the one way in which the house says how sure a number is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval (NaN where none is defined), and the number of samples it rests on."""

    value: float
    low: float
    high: float
    n: int

    def within(self, bounds: tuple[float | None, float | None]) -> Estimate:
        """Cut the interval at the smallest and largest value possible."""
        return Estimate(self.value, _cut(self.low, *bounds), _cut(self.high, *bounds), self.n)

    def exponential(self) -> Estimate:
        """The same of e^value: a perplexity from a negative log-likelihood."""
        return Estimate(_exp(self.value), _exp(self.low), _exp(self.high), self.n)

    def best_of(self, count: int) -> Estimate:
        """With the interval that the best of so many needs, or it would too often seem to be something (Bonferroni)."""
        wider = widened(count)
        return Estimate(
            self.value,
            self.value - wider * (self.value - self.low),
            self.value + wider * (self.high - self.value),
            self.n,
        )

    def as_record(self) -> dict[str, float | None]:
        """For JSON, which has no NaN."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


def widened(count: int) -> float:
    """How much longer a normal interval is that leaves out one of `count` values as seldom as one does by itself."""
    of_one = (1 - LEVEL) / 2
    return NormalDist().inv_cdf(of_one / max(count, 1)) / NormalDist().inv_cdf(of_one)


def _cut(value: float, smallest: float | None, largest: float | None) -> float:
    """The value, or the bound it lies beyond; NaN stays."""
    if smallest is not None and value < smallest:
        return float(smallest)
    return float(largest) if largest is not None and value > largest else value


def _exp(value: float) -> float:
    return math.inf if value >= 700 else math.exp(value)
