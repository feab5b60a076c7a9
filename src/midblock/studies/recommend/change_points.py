"""Change points of a curve by depth: where its level changes, and the stretch that stands out, with how likely noise
shows one as clear.

Levels are fitted by least squares (ruptures, an extra); how many, the Bayesian information criterion decides. The
stretch is the run of neighbouring parts over which most stands above the average of all. Whether noise shows as much is
asked twice: how often a curve of normal noise has a stretch as clear (the difference of the levels in and outside it
over what the fit leaves over), and how often the same values in another order have neighbours as much alike (Bartels'
rank version of von Neumann's ratio), which knows slow rises that are no levels. Described in docs/recommend.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy.stats import rankdata

from midblock.base import MidblockError, generator
from midblock.studies.recommend.curve import Span, Values

MOST_CUTS = 4
EXACT = 1e-3  # of the sum of squares: what is left over below that is no worse a fit
EVEN = 1e-9  # of the largest value: a curve that varies less is flat
NOISES = 999


@dataclass(frozen=True, eq=False)
class Levels:
    """A curve as levels.

    Attributes:
        cuts: the parts at which a new level begins.
        fitted: the level of each part.
        left: standard deviation of what the levels leave over.
    """

    cuts: tuple[int, ...]
    fitted: Values
    left: float

    @property
    def window(self) -> Span | None:
        """First and last part of the stretch that stands out; None where there is one level."""
        if not self.cuts:
            return None
        return raised(self.fitted - self.fitted.mean())

    def clearness(self, values: Values) -> float:
        """How far the stretch stands out, in units of what is left over; 0 where there is none, or it is everything."""
        window = self.window
        if window is None:
            return 0.0
        inside = np.zeros(len(values), dtype=bool)
        inside[window[0] : window[1] + 1] = True
        if inside.all():
            return 0.0
        size = (1 / inside.sum() + 1 / (~inside).sum()) ** 0.5
        step = float(values[inside].mean() - values[~inside].mean())
        return step / (self.left * size) if self.left > 0 else np.inf


def raised(over: Values) -> Span:
    """First and last index of the run whose sum is largest; of equals the shortest, of those the first."""
    sums = np.concatenate([[0.0], np.cumsum(over)])
    held = np.round(sums[None, 1:] - sums[:-1, None], 12)  # first × last
    width = np.arange(len(over))[None] - np.arange(len(over))[:, None]
    best = np.where((width >= 0) & (held == held[width >= 0].max()), width, len(over))
    first, last = np.unravel_index(int(np.argmin(best)), best.shape)
    return int(first), int(last)


def levels_of(values: Values) -> Levels:
    """Cut a curve into levels.

    Raises:
        MidblockError: ruptures is not installed.
    """
    n = len(values)
    total = float(np.square(values - values.mean()).sum())
    if n < 3 or float(np.ptp(values)) <= EVEN * float(np.abs(values).max()):
        return Levels((), np.full(n, values.mean()), 0.0)
    found = [_fitted(values, cuts) for cuts in _candidates(values)]
    rest = [float(np.square(values - fit).sum()) for _, fit in found]
    cost = [n * np.log(max(sse, EXACT * total) / n) + 2 * k * np.log(n) for k, sse in enumerate(rest)]
    best = int(np.argmin(cost))
    cuts, fit = found[best]
    spare = n - 1 - len(cuts)
    left = (rest[best] / spare) ** 0.5 if rest[best] > EVEN * total else 0.0
    return Levels(cuts, fit, float(left))


def _candidates(values: Values) -> list[tuple[int, ...]]:
    """The best cuts for each number of them, none first."""
    most = max(1, min(MOST_CUTS, len(values) // 3))
    search = _ruptures().KernelCPD(kernel="linear", min_size=1).fit(values[:, None])
    return [(), *(tuple(search.predict(n_bkps=count)[:-1]) for count in range(1, most + 1))]


def _fitted(values: Values, cuts: tuple[int, ...]) -> tuple[tuple[int, ...], Values]:
    parts = np.split(values, list(cuts))
    return cuts, np.concatenate([np.full(len(part), part.mean()) for part in parts])


def chance(values: Values, levels: Levels) -> float:
    """How often noise shows as much: twice the smaller of two chances; 1 where nothing stands out."""
    if levels.window is None:
        return 1.0
    return min(1.0, 2 * min(_as_clear(values, levels), as_alike(values)))


def _as_clear(values: Values, levels: Levels) -> float:
    """The share of curves of normal noise, the same for every part, in which a stretch stands out as clearly.

    Where all values are above 0 their logarithms are asked too and the larger share counts, so that a few large values
    of skewed noise are no stretch.
    """
    found = _share(len(values), levels.clearness(values))
    if bool((values > 0).all()):
        logs = np.log(values)
        found = max(found, _share(len(values), Levels(levels.cuts, *_log_fit(logs, levels)).clearness(logs)))
    return found


def as_alike(values: Values) -> float:
    """The share of orders of the same values in which neighbours are as much alike as they are."""
    ranks = rankdata(values)
    orders = generator(0, "recommend", "orders", len(ranks)).permuted(np.tile(ranks, (NOISES, 1)), axis=1)
    found = np.square(np.diff(ranks)).sum()
    return float((1 + (np.square(np.diff(orders, axis=1)).sum(1) <= found).sum()) / (1 + NOISES))


def _log_fit(logs: Values, levels: Levels) -> tuple[Values, float]:
    """The levels of the logarithms between the same cuts, and what they leave over."""
    fit = _fitted(logs, levels.cuts)[1]
    left = (np.square(logs - fit).sum() / (len(logs) - 1 - len(levels.cuts))) ** 0.5
    return fit, float(left) if levels.left > 0 else 0.0


def _share(n: int, clearness: float) -> float:
    if clearness <= 0:
        return 1.0
    return float((1 + (_noise(n) >= clearness).sum()) / (1 + NOISES))


@lru_cache(maxsize=16)
def _noise(n: int) -> Float64[np.ndarray, "999"]:
    """How clear the clearest stretch of pure noise is, curve by curve."""
    drawn = generator(0, "recommend", "noise", n).normal(size=(NOISES, n))
    return np.array([levels_of(values).clearness(values) for values in drawn])


def _ruptures() -> Any:
    try:
        import ruptures
    except ImportError as error:
        raise MidblockError("change points need ruptures", hint="pip install 'midblock[recommend]'") from error
    return ruptures
