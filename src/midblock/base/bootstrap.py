"""The bootstrap: samples (prompts) drawn with replacement, and the percentile interval of what they give.

Prompts are what is resampled, never tokens: those of one prompt are not independent. Everything that rests on N prompts
under one seed is drawn alike, so that differences are paired. R = 1,000 draws of N counts are made once and kept.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Float64, Int64

from midblock.base.estimate import LEVEL, Estimate
from midblock.base.seeds import generator

RESAMPLES = 1000


@lru_cache(maxsize=8)
def resample(N: int, seed: int) -> Int64[np.ndarray, "R N"]:
    """How often each of N samples is in each bootstrap sample; not to be written to."""
    return generator(seed, "bootstrap", N).multinomial(N, np.full(N, 1 / N), RESAMPLES)


def quantiles(draws: Float64[np.ndarray, "R"]) -> tuple[float, float]:
    """The percentile interval of bootstrap draws."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return low, high


def estimate_of(value: float, draws: Float64[np.ndarray, "R"], n: int) -> Estimate:
    """A value with the percentile interval of its bootstrap draws; a single sample gives none."""
    return Estimate(value, *(quantiles(draws) if n > 1 else (math.nan, math.nan)), n)
