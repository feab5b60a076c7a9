"""The shape of a curve over depth: does the middle do better than both ends (P1's inverted U)?

With M, B, T the means of the cells at 20–80 %, below and above, the contrast is M − max(B, T), the smaller of M − B and
M − T. The verdict asks the intervals of these two, from one bootstrap over prompts and holding together, on which side
of 0 they lie. Described in docs/causes/swap.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from midblock.base import Estimate
from midblock.evaluation import TokenMean, differences

LOWER, UPPER = 0.2, 0.8  # the ends: P1's first and last of five segments


@dataclass(frozen=True)
class DepthShape:
    """The middle against the ends.

    Attributes:
        contrast: mean of the middle minus the better of the two ends; above 0 in an inverted U.
        low, high: its 95 % interval, from bootstrap samples of the prompts; NaN where they are too few, and nothing is
            decided.
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
    lower, middle, upper = (_mean_of(part) for part in _parts(curve))
    over = differences([(lower, middle), (upper, middle)], seed=seed, together=True)
    contrast, low, high = (float(np.min([getattr(each, end) for each in over])) for end in ("value", "low", "high"))
    return DepthShape(host, head, contrast, low, high, _verdict(*over))


def _parts(curve: Sequence[TokenMean]) -> tuple[list[TokenMean], ...]:
    """The lower end, the middle and the upper end."""
    centres = (np.arange(len(curve)) + 0.5) / len(curve)
    lower, upper = centres < LOWER, centres > UPPER
    return tuple([curve[place] for place in np.flatnonzero(part).tolist()] for part in (lower, ~lower & ~upper, upper))


def _mean_of(cells: Sequence[TokenMean]) -> TokenMean:
    """The mean of cells over the same tokens."""
    value = sum(each.value for each in cells) / len(cells)
    sums = torch.stack([each.sums for each in cells]).mean(0)
    return replace(cells[0], interval=replace(cells[0].interval, value=value), sums=sums)


def _verdict(over_bottom: Estimate, over_top: Estimate) -> str:
    """Judge by the middle minus the lower end, and by the middle minus the upper end."""
    signs = (_sign(over_bottom), _sign(over_top))
    return {(1, 1): "inverted U", (-1, -1): "U", (1, -1): "rising", (-1, 1): "falling"}.get(signs, "undecided")


def _sign(change: Estimate) -> int:
    """1 or -1 where an interval lies on one side of 0, else 0."""
    return 1 if change.low > 0 else -1 if change.high < 0 else 0
