"""Which depth curves rise and fall together, with intervals that know that neighbouring blocks are alike.

Blocks are no independent samples: a depth curve is smooth, and Fisher's interval for n blocks is far too narrow. The
blocks are therefore counted as fewer (Bartlett 1935, Quenouille 1947), after the curves' autocorrelations:
n_eff = n / (1 + 2 Σ_k (1 − k/n) ρ_a(k) ρ_b(k)), never more than have as few turns as the curves do (Bienaymé 1874), and
the interval is tanh(arctanh r ± 1.96 √(c/(n_eff − 3))). Two curves that only rise say nothing of each other: below
5 independent points everything is possible. Cost: a product of curves for each pair. Described in docs/metrics.md,
"Correlations between depth curves".
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.special import ndtri

from midblock.base import LEVEL, LayerTable, replace_atomically
from midblock.base.quoting import cell
from midblock.metrics.depth_curves import ROUNDING, depth_curves

TOGETHER = 0.7  # curves whose mean |r| reaches this form a cluster
LEAST_SHARED = 3  # blocks that two curves must share to have a correlation
LEAST_INDEPENDENT = 5  # points from which an interval is narrower than everything possible
LEAST_STEPS = 6  # blocks from which differences between neighbours are correlated
COLUMNS = (
    "a", "b", "pearson", "pearson_low", "pearson_high", "spearman", "spearman_low", "spearman_high", "n",
    "n_effective", "pearson_differences",
)  # fmt: skip

Values = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Correlations:
    """Correlations between all depth curves of a table.

    Attributes:
        curves: their labels, as `depth_curves` gives them.
        frame: a row for each unordered pair, in the order of `curves`: `a`, `b`, `pearson` and `spearman` with 95 %
            intervals (`…_low`, `…_high`), `n` blocks that both have, `n_effective` what they count for (Pearson's),
            `pearson_differences` of the steps from block to block (NaN with gaps or below 6 blocks).
        order: positions in `curves` that put like curves side by side, for a heatmap.
        clusters: for each curve the number of its cluster, counted from 0 along `order`. Average linkage on 1 − |r|,
            cut where the mean |r| falls below 0.7.
    """

    curves: tuple[str, ...]
    frame: pd.DataFrame
    order: tuple[int, ...]
    clusters: tuple[int, ...]


@dataclass(frozen=True)
class Correlation:
    """A correlation with its 95 % interval and the number of independent points that it counts as."""

    value: float
    low: float
    high: float
    n_effective: float


def correlate(table: LayerTable) -> Correlations:
    """Correlate every depth curve of a table with every other.

    Nothing is drawn at random. Fewer than two curves give an empty frame.

    Raises:
        MidblockError: the table has no decoder block.
    """
    curves = depth_curves(table)
    columns = {str(label): curves[label].to_numpy() for label in curves}
    pairs = [_pair(a, b, columns[a], columns[b]) for a, b in combinations(columns, 2)]
    frame = pd.DataFrame.from_records(pairs, columns=list(COLUMNS))
    order, clusters = _group(frame.pearson.to_numpy(dtype=float), len(columns))
    return Correlations(tuple(columns), frame, order, clusters)


def write_correlations(correlations: Correlations, path: Path) -> None:
    """Write the pairs as CSV (`correlations.csv`), every digit of them.

    Raises:
        MidblockError: when the place cannot be written.
    """
    with replace_atomically(path) as temporary:
        texts = {name: correlations.frame[name].map(cell, na_action="ignore") for name in ("a", "b")}
        correlations.frame.assign(**texts).to_csv(temporary, index=False, float_format="%.17g")


def pearson(x: Values, y: Values) -> Correlation:
    """Pearson's r of two series in order of depth; Fisher's z with the effective sample size (module docstring)."""
    r, n = _r(x, y), effective_size(x, y)
    return Correlation(r, *_interval(r, 1.0, n), n)


def spearman(x: Values, y: Values) -> Correlation:
    """Spearman's r, with the ranks' effective sample size and the standard error of Bonett and Wright (2000)."""
    from scipy.stats import rankdata  # a second to import, and most runs correlate nothing

    x, y = rankdata(x).astype(float), rankdata(y).astype(float)
    r, n = _r(x, y), effective_size(x, y)
    return Correlation(r, *_interval(r, 1 + r**2 / 2, n), n)


def effective_size(x: Values, y: Values) -> float:
    """How many independent points two autocorrelated series of n points are worth, 1…n.

    1/n_eff = 1/n · (1 + 2 Σ_k (1 − k/n) ρ_x(k) ρ_y(k)), over lags k ≤ n/2 up to the first at which either
    autocorrelation is not positive; and at most as many as would turn as often as the more restless of the two: n
    independent points have 2(n − 2)/3 turns on average.
    """
    n = len(x)
    both = np.stack([autocorrelation(x), autocorrelation(y)])[:, 1 : n // 2 + 1]
    ended = np.flatnonzero((both <= 0).any(axis=0))
    lags = np.arange(1, (ended[0] if len(ended) else both.shape[1]) + 1)
    inflation = 1 + 2 * float(((1 - lags / n) * both[:, : len(lags)].prod(axis=0)).sum())
    return min(n / inflation, 1.5 * max(_turns(x), _turns(y)) + 2)


def _turns(x: Values) -> int:
    """How often a series changes from rising to falling, or back."""
    steps = np.sign(np.diff(x))
    steps = steps[steps != 0]
    return int((steps[1:] != steps[:-1]).sum())


def autocorrelation(x: Values) -> Values:
    """Autocorrelation at lags 0…n-1, at most 1.

    The mean comes from the same few points, which pulls estimates down by about (1 + 3ρ)/n (Kendall 1954); that is
    put back. Without it intervals of smooth curves are too narrow.
    """
    n = len(x)
    x = x - x.mean()
    products = np.correlate(x, x, "full")[n - 1 :] / np.arange(n, 0, -1)
    rho = products / products[0]
    return np.minimum(rho + (1 + 3 * rho) / n, 1.0)


def _pair(a: str, b: str, x: Values, y: Values) -> tuple[object, ...]:
    shared = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    x, y = x[shared], y[shared]
    n = len(shared)
    if n < LEAST_SHARED or _is_constant(x) or _is_constant(y):
        return (a, b, *[np.nan] * 6, n, np.nan, np.nan)
    r, rank = pearson(x, y), spearman(x, y)
    if shared[-1] - shared[0] != n - 1:  # lags cannot be counted across gaps, so nothing is known of the interval
        r, rank = Correlation(r.value, -1.0, 1.0, np.nan), Correlation(rank.value, -1.0, 1.0, np.nan)
    whole = n >= LEAST_STEPS and shared[-1] - shared[0] == n - 1
    steps = _differences(x, y) if whole else np.nan
    return (a, b, r.value, r.low, r.high, rank.value, rank.low, rank.high, n, r.n_effective, steps)


def _differences(x: Values, y: Values) -> float:
    """Pearson's r of the steps between neighbours: what is left when both curves merely rise with depth."""
    steps = np.diff(x), np.diff(y)
    # Steps as large as each other but for rounding are a straight line.
    flat = any(np.ptp(step) <= ROUNDING * np.abs(of).max() for step, of in zip(steps, (x, y), strict=True))
    return np.nan if flat else _r(*steps)


def _is_constant(x: Values) -> bool:
    return bool(np.ptp(x) <= ROUNDING * np.abs(x).max())


def _r(x: Values, y: Values) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1, 1))


def _interval(r: float, factor: float, n: float) -> tuple[float, float]:
    """tanh(arctanh r ± z √(factor/(n − 3))); everything possible where n is too small."""
    if n < LEAST_INDEPENDENT:
        return -1.0, 1.0
    if abs(r) == 1:
        return r, r
    half = ndtri((1 + LEVEL) / 2) * np.sqrt(factor / (n - 3))
    return float(np.tanh(np.arctanh(r) - half)), float(np.tanh(np.arctanh(r) + half))


def _group(r: Float[np.ndarray, " pairs"], count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Order and clusters of the curves from the condensed matrix of their correlations; an unknown r counts as 0."""
    if count < 2:
        return tuple(range(count)), (0,) * count
    from scipy.cluster.hierarchy import fcluster, leaves_list, linkage, optimal_leaf_ordering  # as above

    distance = np.clip(1 - np.abs(np.nan_to_num(r)), 0, 1)
    tree = optimal_leaf_ordering(linkage(distance, "average"), distance)
    order = tuple(int(leaf) for leaf in leaves_list(tree))
    raw = fcluster(tree, 1 - TOGETHER, criterion="distance")
    number: dict[int, int] = {}
    for leaf in order:
        number.setdefault(int(raw[leaf]), len(number))
    return order, tuple(number[int(label)] for label in raw)
