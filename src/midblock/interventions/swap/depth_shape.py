"""The shape of a curve over depth: does the middle do better than both ends (P1's inverted U)?

With M, B, T the means of the cells at 20–80 %, below and above, the contrast is M − max(B, T). The verdict asks the
intervals of M − B and of M − T, from one bootstrap over prompts, on which side of 0 they lie. Described in
docs/causes/swap.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from midblock.evaluation import TokenMean

FEWEST = 8  # prompts; a bootstrap of fewer is far too sure of itself
LOWER, UPPER = 0.2, 0.8  # the ends: P1's first and last of five segments


@dataclass(frozen=True)
class DepthShape:
    """The middle against the ends.

    Attributes:
        contrast: mean of the middle minus the better of the two ends; above 0 in an inverted U.
        low, high: its 95 % interval, from bootstrap samples of the prompts; NaN below eight, where
            nothing is decided.
        verdict: "inverted U", "U", "rising" or "falling" where the intervals say so, else "undecided".
    """

    host: str
    head: str
    contrast: float
    low: float
    high: float
    verdict: str

    def as_record(self) -> dict[str, Any]:
        found = {"host": self.host, "head": self.head, "metric": "accuracy", "contrast": self.contrast}
        ends = {"low": self.low, "high": self.high}  # JSON has no NaN
        return found | {name: end if end == end else None for name, end in ends.items()} | {"verdict": self.verdict}


def depth_shape(host: str, head: str, curve: Sequence[TokenMean], *, seed: int = 0) -> DepthShape:
    """Judge a curve of accuracies over the same prompts, bottom first.

    The middle holds the points whose centre lies between 20 and 80 % of the depth.

    Args:
        curve: three points or more.
    """
    values = _parts(np.array([[each.value for each in curve]]))[0]
    drawn = _parts(np.stack([each.draws(seed) for each in curve], axis=1))
    if curve[0].n < FEWEST:
        drawn = np.full_like(drawn, np.nan)
    over_bottom, over_top = (_interval(drawn[:, 1] - drawn[:, end]) for end in (0, 2))
    best = _interval(drawn[:, 1] - np.maximum(drawn[:, 0], drawn[:, 2]))
    contrast = float(values[1] - max(values[0], values[2]))
    return DepthShape(host, head, contrast, *best, _verdict(over_bottom, over_top))


def _parts(curves: Float64[np.ndarray, "R points"]) -> Float64[np.ndarray, "R 3"]:
    """Means of the lower end, the middle and the upper end."""
    S = curves.shape[1]
    centre = (np.arange(S) + 0.5) / S
    lower, upper = centre < LOWER, centre > UPPER
    parts = [curves[:, part].mean(1) for part in (lower, ~lower & ~upper, upper)]
    return np.stack(parts, axis=1)


def _interval(draws: Float64[np.ndarray, "R"]) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.025, 0.975]).tolist()
    return low, high


def _verdict(over_bottom: tuple[float, float], over_top: tuple[float, float]) -> str:
    """Judge by the intervals of the middle minus the lower end, and of the middle minus the upper end."""
    signs = (_sign(*over_bottom), _sign(*over_top))
    return {(1, 1): "inverted U", (-1, -1): "U", (1, -1): "rising", (-1, 1): "falling"}.get(signs, "undecided")


def _sign(low: float, high: float) -> int:
    """1 or -1 where an interval lies on one side of 0, else 0."""
    return 1 if low > 0 else -1 if high < 0 else 0
