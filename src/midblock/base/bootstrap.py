"""The bootstrap: samples (prompts) drawn with replacement.

Prompts are what is resampled, never tokens: those of one prompt are not independent; of prompts that are variants of
one question, the questions. Everything that rests on N of them under one seed is drawn alike, so that differences are
paired. R = 1,000 draws of N counts are made once and kept.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float64, Int16

from midblock.base.estimate import LEVEL
from midblock.base.seeds import generator

RESAMPLES = 1000
ROOM = 2**24  # counts that are drawn at once


@lru_cache(maxsize=8)
def resample(N: int, seed: int) -> Int16[np.ndarray, "R N"]:
    """How often each of N samples is in each bootstrap sample; not to be written to."""
    stream, chances, drawn = generator(seed, "bootstrap", N), np.full(N, 1 / N), np.empty((RESAMPLES, N), np.int16)
    step = max(1, ROOM // N)
    for first in range(0, RESAMPLES, step):
        part = drawn[first : first + step]
        part[:] = stream.multinomial(N, chances, len(part))
    return drawn


def quantiles(draws: Float64[np.ndarray, "R"]) -> tuple[float, float]:
    """The percentile interval of bootstrap draws."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return low, high
