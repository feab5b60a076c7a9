"""How few samples are too few: from how many on each kind of interval keeps its promise.

Below, the number has no interval, and this is the one place that says why. The least numbers are those from which the
simulations of benchmarks/coverage.py find what docs/results/coverage.md tells.
"""

from __future__ import annotations

from collections.abc import Mapping

from midblock.base.estimate import Estimate

# By kind of interval: of a mean or ratio (studentised bootstrap), of a share of 0/1 values, of what is computed from
# all samples together (jackknife), of how well pairs of steps agree, of a place (percentile bootstrap).
LEAST: Mapping[str, int] = {"mean": 4, "share": 2, "jackknife": 8, "pairs": 3, "percentile": 8}


def enough(kind: str, n: int) -> bool:
    """Whether so many samples give an interval of this kind.

    Args:
        n: what is resampled: prompts, or the questions that they are variants of; steps.
    """
    return n >= LEAST[kind]


def too_few(kind: str, n: int) -> str:
    """Why there is no interval; empty where there is one."""
    return "" if enough(kind, n) else f"{n} are too few for an interval: {LEAST[kind]} are needed"


def told(kind: str, estimate: Estimate, n: int | None = None) -> Estimate:
    """The estimate, without its interval where it rests on too few.

    Args:
        n: what is resampled, where that is not what the estimate counts.
    """
    if enough(kind, estimate.n if n is None else n):
        return estimate
    return Estimate(estimate.value, float("nan"), float("nan"), estimate.n)
