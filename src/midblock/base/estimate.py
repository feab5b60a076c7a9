"""Estimate: a value with its 95 % interval, and the bootstrap that intervals of means come from.

Samples (prompts) are what is resampled, never tokens: those of one prompt are not independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float64, Int64

from midblock.base.seeds import generator

LEVEL = 0.95
RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval (NaN where none is defined), and the number of samples it rests on."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of_draws(cls, value: float, draws: Float64[np.ndarray, "R"], n: int) -> Estimate:
        """A value with the percentile interval of its bootstrap draws; a single sample gives none."""
        return cls(value, *(quantiles(draws) if n > 1 else (math.nan, math.nan)), n)

    def within(self, bounds: tuple[float | None, float | None]) -> Estimate:
        """Cut the interval at the smallest and largest value possible."""
        low, high = np.clip([self.low, self.high], bounds[0], bounds[1])
        return Estimate(self.value, float(low), float(high), self.n)

    def exponential(self) -> Estimate:
        """The same of e^value: a perplexity from a negative log-likelihood."""
        return Estimate(_exp(self.value), _exp(self.low), _exp(self.high), self.n)

    def as_record(self) -> dict[str, float | None]:
        """For JSON, which has no NaN."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


@lru_cache(maxsize=8)
def resample(N: int, seed: int) -> Int64[np.ndarray, "R N"]:
    """How often each of N samples is in each bootstrap sample; not to be written to.

    The same for everything that rests on N samples under one seed, so that differences are paired.
    """
    return generator(seed, "bootstrap", N).multinomial(N, np.full(N, 1 / N), RESAMPLES)


def quantiles(draws: Float64[np.ndarray, "R"]) -> tuple[float, float]:
    """The percentile interval of bootstrap draws."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return low, high


def _exp(value: float) -> float:
    return math.inf if value >= 700 else math.exp(value)
