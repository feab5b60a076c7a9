"""Judged: whether a curve says which blocks stand out, and how surely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from midblock.base.bootstrap import quantiles
from midblock.studies.recommend.change_points import Levels, chance, levels_of
from midblock.studies.recommend.curve import Curve, Span, Values

CHANCE = 0.05  # of seeing in noise what is told, over all curves that are looked at together
STABLE = 0.8  # share of resamples that find the same stretch
SAME = 0.5  # blocks in common over blocks in either


@dataclass(frozen=True, eq=False)
class Judged:
    """A curve and what it says.

    Attributes:
        cuts: the blocks at which a new level begins.
        window: first and last block of the stretch that stands out; None where none does.
        chance: share of curves of pure noise in which one stands out as clearly.
        stability: share of resamples in which much the same blocks stand out; None where nothing could be resampled.
        why_not: why it does not say where, as a clause; "" where it says it.
    """

    curve: Curve
    cuts: tuple[int, ...]
    window: Span | None
    chance: float
    stability: float | None
    why_not: str

    @property
    def says(self) -> bool:
        return not self.why_not

    def as_record(self, total: int) -> dict[str, Any]:
        """For `recommendation.json`; a block that was not measured has no score."""
        scores = [value if np.isfinite(value) else None for value in self.curve.by_block(total)]
        return {
            "verb": self.curve.verb,
            "title": self.curve.title,
            "about": self.curve.about,
            "scores": scores,
            "change_points": list(self.cuts),
            "blocks": list(self.window) if self.window else None,
            "chance": self.chance,
            "stability": self.stability,
            "resampled": self.curve.resampled,
            "says": self.says,
            "why_not": self.why_not,
        }


def judge(curve: Curve, *, looked_at: int = 1) -> Judged:
    """Ask a curve which blocks stand out.

    Args:
        looked_at: curves that are asked together: with many, one of pure noise would often seem to say something.

    Raises:
        MidblockError: ruptures is not installed.
    """
    levels = levels_of(curve.values)
    parts, found = levels.window, chance(curve.values, levels)
    stable = None if parts is None or curve.draws is None else _stability(parts, curve.draws)
    return Judged(
        curve,
        tuple(curve.spans[cut][0] for cut in levels.cuts),
        None if parts is None else curve.window(parts),
        found,
        stable,
        curve.doubt or _why_not(curve, levels, found * looked_at, stable),
    )


def judge_all(curves: Sequence[Curve]) -> list[Judged]:
    """Ask curves that are looked at together."""
    return [judge(curve, looked_at=len(curves)) for curve in curves]


def _why_not(curve: Curve, levels: Levels, noise: float, stable: float | None) -> str:
    if levels.window is None:
        return "it has one level over all of the depth"
    if noise > CHANCE:
        return "noise alone would often show as much"
    if stable is not None and stable < STABLE:
        return f"resampled ({curve.resampled}), other blocks stand out in {1 - stable:.0%} of the cases"
    if curve.gain and not _gains(curve, levels.window):
        return "what stands out there is no gain beyond its interval"
    return ""


def _stability(parts: Span, draws: np.ndarray) -> float:
    found = [levels_of(values).window for values in draws]
    return float(np.mean([window is not None and _alike(parts, window) for window in found]))


def _alike(one: Span, other: Span) -> bool:
    common = min(one[1], other[1]) - max(one[0], other[0]) + 1
    return common >= SAME * (max(one[1], other[1]) - min(one[0], other[0]) + 1)


def _gains(curve: Curve, parts: Span) -> bool:
    inside = slice(parts[0], parts[1] + 1)
    if curve.draws is None:
        return float(curve.values[inside].mean()) > 0
    drawn: Values = curve.draws[:, inside].mean(1)
    return quantiles(drawn)[0] > 0
