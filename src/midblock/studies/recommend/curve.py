"""Curve: what one view of a model gives each part of its depth, higher where tuning acts more, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64

from midblock.base import Estimate, generator

Values = Float64[np.ndarray, " n"]
Draws = Float64[np.ndarray, "R n"]
Span = tuple[int, int]  # first and last block

DRAWS = 200  # of a curve; each is cut anew
HALF = 1.959964  # of a 95 % interval, in standard deviations
INTERVALS = "the intervals"


@dataclass(frozen=True, eq=False)
class Curve:
    """One view of the depth.

    Attributes:
        verb: whose numbers these are.
        title: what they are, in words that begin a sentence.
        about: the model they were measured on.
        spans: the parts of the depth, bottom first: mostly single blocks, of a swap its segments.
        values: one for each part.
        draws: the same in resamples; None where nothing tells how sure they are.
        resampled: what was resampled: "prompts", "steps" or "the intervals" (where prompts are not kept; as if blocks
            went up and down apart from each other, which is the more cautious reading).
        doubt: why the run itself does not say where, as a clause; "" where it does.
        intervenes: the model was changed, not only looked at.
        gain: the values are gains: where the best part's is not above 0, none is.
    """

    verb: str
    title: str
    about: str
    spans: tuple[Span, ...]
    values: Values
    draws: Draws | None = field(default=None, repr=False)
    resampled: str = ""
    doubt: str = ""
    intervenes: bool = False
    gain: bool = False

    def by_block(self, total: int) -> list[float]:
        """The value of each of L blocks; NaN where none was measured."""
        found = [float("nan")] * total
        for (first, last), value in zip(self.spans, self.values.tolist(), strict=True):
            found[first : last + 1] = [value] * (last - first + 1)
        return found

    def window(self, parts: Span) -> Span:
        """The blocks that some parts are."""
        return self.spans[parts[0]][0], self.spans[parts[1]][1]


def over_intervals(estimates: Sequence[Estimate], seed: int) -> tuple[Draws | None, str]:
    """Draws from intervals, and what was resampled; nothing where an interval is missing."""
    value, half = (np.array(each) for each in zip(*((e.value, (e.high - e.low) / 2) for e in estimates), strict=True))
    if not np.isfinite(half).all():
        return None, ""
    noise = generator(seed, "recommend", len(value)).normal(size=(DRAWS, len(value)))
    return value + noise * half / HALF, INTERVALS


def over_units(rows: Float64[np.ndarray, "N n"], counts: Float64[np.ndarray, "N"], seed: int) -> Draws | None:
    """Draws of Σ rows / Σ counts with the units (prompts, steps) resampled; None where there are fewer than three."""
    N = len(rows)
    if N < 3:
        return None
    times = generator(seed, "recommend", "units", N).multinomial(N, np.full(N, 1 / N), DRAWS).astype(float)
    return (times @ rows) / (times @ counts)[:, None]
