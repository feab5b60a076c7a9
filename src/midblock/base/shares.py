"""Shares: the interval of a share of yes-or-no values that come in prompts (tokens predicted rightly, places agreed).

Near 1 prompts are all alike, and neither a bootstrap nor a standard error sees what was not drawn. The interval of
Clopper and Pearson does, for so many independent values as have the same standard error (Korn and Graubard 1998):
n* = p(1 − p)/SE² · (t_{n*−1}/t_{N−1})². It is joined with the studentised bootstrap's (`Ratios`), which knows the tail
of prompts that go wrong as a whole, and ends at the latest where it would if each prompt were a single value: values
between 0 and 1 cannot be spread more.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from scipy.special import betaincinv, stdtrit

from midblock.base.estimate import LEVEL
from midblock.base.few import enough
from midblock.base.ratios import Column, Ends, Ratios

TAIL = (1 - LEVEL) / 2
ROUNDING = 1e-12


def share_intervals(shares: Ratios) -> Ends:
    """Lower and upper ends of shares, 0 to 1."""
    prompts = worth(shares)
    widest = clopper_pearson(shares.value * prompts, prompts)
    n = np.where(shares.error > 0, independent(shares), prompts)
    low, high = clopper_pearson(shares.value * n, n)
    drawn = shares.intervals()
    told = np.array([enough("share", int(known)) for known in shares.known])
    low = np.fmax(np.fmin(low, drawn[0]), widest[0])
    high = np.fmin(np.fmax(high, drawn[1]), widest[1])
    return np.where(told, low, np.nan), np.where(told, high, np.nan)


def worth(shares: Ratios) -> Column:
    """How many prompts of equal weight these are worth (Kish): as many as there are where all count alike."""
    counts = np.abs(shares.counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.broadcast_to(counts.sum(0) ** 2 / np.square(counts).sum(0), shares.value.shape)


def independent(shares: Ratios) -> Column:
    """n*: how many independent yes-or-no values are as uncertain as these shares."""
    with np.errstate(invalid="ignore", divide="ignore"):
        n = shares.value * (1 - shares.value) / shares.error**2
        return n * (stdtrit(np.maximum(n, shares.known) - 1, 1 - TAIL) / shares.student()) ** 2


def clopper_pearson(yes: Float64[np.ndarray, "C"], n: Float64[np.ndarray, "C"]) -> Ends:
    """The exact interval of a share of n independent values; neither need be whole."""
    no, tiny = n - yes, np.finfo(float).tiny
    low = np.where(yes <= ROUNDING * n, 0.0, betaincinv(np.maximum(yes, tiny), no + 1, TAIL))
    high = np.where(no <= ROUNDING * n, 1.0, betaincinv(yes + 1, np.maximum(no, tiny), 1 - TAIL))
    return low, high
